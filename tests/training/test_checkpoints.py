"""Whose a folder of checkpoints is, and which checkpoint in it is the last whole one."""

import json
from pathlib import Path

import pytest

from secateur.errors import SecateurError
from secateur.training.checkpoints import CheckpointFolder, digest

IDENTITY = {"the recipe": "a", "the model": "b", "versions": "c"}


def claimed(path: Path) -> Path:
    CheckpointFolder(path).claim(IDENTITY)
    (path / "checkpoint-2").mkdir()
    return path


def checkpoint(path: Path, step: int, state: str | None = '{"global_step": 1}') -> str:
    folder = path / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return str(folder)


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_folder(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "deep" / "stage-1"
    CheckpointFolder(path, resume).claim(IDENTITY)
    assert json.loads((path / "training.json").read_text()) == IDENTITY
    assert [entry.name for entry in path.iterdir()] == ["training.json"]


def test_resume_keeps_and_a_new_training_clears(tmp_path: Path) -> None:
    path = claimed(tmp_path / "stage-1")
    CheckpointFolder(path, resume=True).claim(IDENTITY)
    assert (path / "checkpoint-2").is_dir()
    CheckpointFolder(path).claim({**IDENTITY, "the model": "other"})
    assert not (path / "checkpoint-2").exists()
    assert json.loads((path / "training.json").read_text())["the model"] == "other"


def test_another_training_is_not_resumed_and_not_deleted(tmp_path: Path) -> None:
    path = claimed(tmp_path / "stage-1")
    message = "holds checkpoints of another training: the model has changed since. Start anew with"
    with pytest.raises(SecateurError, match=message):
        CheckpointFolder(path, resume=True).claim({**IDENTITY, "the model": "other"})
    message = "of another training: the recipe, versions have changed since"
    with pytest.raises(SecateurError, match=message):
        CheckpointFolder(path, resume=True).claim(
            {"the model": "b", "the recipe": "", "versions": ""}
        )
    assert (path / "checkpoint-2").is_dir()
    assert json.loads((path / "training.json").read_text()) == IDENTITY


@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_training_is_left_alone(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "chapter.txt").write_text("words")
    with pytest.raises(SecateurError, match=r"expected checkpoints of a training in .*thesis"):
        CheckpointFolder(path, resume).claim(IDENTITY)
    assert (path / "chapter.txt").read_text() == "words"


@pytest.mark.parametrize("owner", ["{", "[1, 2]", '"text"', ""])
def test_an_owner_that_cannot_be_read(tmp_path: Path, owner: str) -> None:
    path = claimed(tmp_path / "stage-1")
    (path / "training.json").write_text(owner)
    message = "of another training: the recipe, the model, versions have changed since"
    with pytest.raises(SecateurError, match=message):
        CheckpointFolder(path, resume=True).claim(IDENTITY)
    CheckpointFolder(path).claim(IDENTITY)
    assert not (path / "checkpoint-2").exists()


def test_only_the_first_process_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    CheckpointFolder(tmp_path / "stage-1").claim(IDENTITY)
    assert not (tmp_path / "stage-1").exists()


def test_remove(tmp_path: Path) -> None:
    path = claimed(tmp_path / "stage-1")
    CheckpointFolder(path).remove()
    CheckpointFolder(path).remove()
    assert not path.exists()


def test_the_last_whole_checkpoint(tmp_path: Path) -> None:
    place = CheckpointFolder(tmp_path / "stage-1")
    assert place.last_checkpoint() is None
    place.claim(IDENTITY)
    assert place.last_checkpoint() is None
    checkpoint(place.path, 4)
    last = checkpoint(place.path, 20)  # by number, not by name
    checkpoint(place.path, 100, state=None)
    checkpoint(place.path, 102, state='{"global_st')
    checkpoint(place.path, 104, state="[]")
    (place.path / "checkpoint-final").mkdir()
    (place.path / "checkpoint-200").write_text("a file")
    assert place.last_checkpoint() == last


def test_digests_tell_parts_apart() -> None:
    made = [digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("c", "ab"), digest()]
    assert len(set(made)) == 5
    assert digest("ab", "c") == made[0]
    assert all(len(item) == 64 for item in made)
