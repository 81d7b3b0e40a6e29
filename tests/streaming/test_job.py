"""Who may work on which output, and what a changed job is told."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, model_from, tiny_model
from streaming_jobs import (
    CHAIN,
    edit_weights,
    factors,
    recipe_of,
    samples,
    save,
    stream,
    weight_bytes,
)
from transformers import LlamaConfig

from secateur.calibration.data import CalibrationSource
from secateur.checkpoint.load import load_model
from secateur.compress import compress
from secateur.errors import SecateurError
from secateur.models.swap import compressed_modules
from secateur.progress import SilentProgress
from secateur.report.facts import machine_facts, package_versions
from secateur.streaming.finished import BlockJournal
from secateur.streaming.job import (
    Facts,
    bytes_in_job,
    check_job,
    close_job,
    has_ended,
    job_folder,
    open_job,
    write_aside,
)

FACTS: Facts = {"recipe": {"method": "wanda", "pattern": (2, 4)}, "version": {"torch": "2"}}


class Stop(Exception):
    """Where a test ends a job."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_model("llama", 3), tmp_path / "in")


def interrupt_after(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """Have jobs stop once so many blocks are finished."""
    save_block = BlockJournal.save

    def save_and_stop(self: BlockJournal, index: int, *arguments: Any) -> None:
        if index == blocks:
            raise Stop
        save_block(self, index, *arguments)

    monkeypatch.setattr(BlockJournal, "save", save_and_stop)


def leave_interrupted(
    folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    interrupt_after(monkeypatch, 1)
    with pytest.raises(Stop):
        stream(folder, output, **options)
    monkeypatch.undo()
    assert job_folder(output).is_dir()
    assert not output.exists()


# What is refused.


def change_model(folder: Path) -> dict[str, Any]:
    edit_weights(folder, model__norm__weight=torch.full((32,), 1.5))
    return {}


def change_calibration(_: Path) -> dict[str, Any]:
    tokens = samples()
    tokens[4, 12] += 1
    return {"calibration": tokens}


CHANGES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "model": (change_model, r"model: model\.safetensors was [0-9a-f]{64}, is [0-9a-f]{64}\."),
    "calibration": (change_calibration, "calibration: sha256 of the tokens was .*, is "),
    "recipe": (
        lambda _: {"recipe": recipe_of(method="wanda", ignore=["re:.*q_proj"])},
        r"recipe: stages\.0\.ignore was \[\], is \['re:\.\*q_proj'\]\. Undo",
    ),
    "format": (
        lambda _: {"checkpoint_format": "compact"},
        "writing: format was dense, is compact",
    ),
    "dtype": (lambda _: {"dtype": "bfloat16"}, "loading: dtype was auto, is bfloat16"),
}


class Counting(SilentProgress):
    """Steps announced and done, by task."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}

    def begin(self, task: str, total: int) -> None:
        self.steps[task] = [total, 0]

    def advance(self, detail: str = "") -> None:
        list(self.steps.values())[-1][1] += 1


@pytest.mark.parametrize("tuned", [False, True])
def test_finished_blocks_count_as_progress(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned: bool
) -> None:
    tuning = {"rounds": 2, "granularity": "halves"} if tuned else None
    recipe = recipe_of(method="wanda", reconstruct=tuning)
    leave_interrupted(folder, tmp_path / "out", monkeypatch, recipe=recipe)
    progress = Counting()
    stream(folder, tmp_path / "out", recipe=recipe, resume=True, progress=progress)
    total, done = progress.steps["prune (wanda)"]
    assert total == done == 3 * (7 + (4 if tuned else 0))


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_job_is_not_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    output = tmp_path / "out"
    leave_interrupted(folder, output, monkeypatch)
    kept = {p: p.read_bytes() for p in job_folder(output).rglob("*") if p.is_file()}
    change, reason = CHANGES[name]
    with pytest.raises(SecateurError, match=f"cannot be resumed, .* {reason}") as caught:
        stream(folder, output, resume=True, **change(folder))
    assert f"delete {job_folder(output)} to start over" in str(caught.value)
    assert {p: p.read_bytes() for p in job_folder(output).rglob("*") if p.is_file()} == kept


def test_another_version_or_thread_count_is_not_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    leave_interrupted(folder, output, monkeypatch)
    versions = package_versions() | {"torch": "1.0", "transformers": "1.1"}
    monkeypatch.setattr("secateur.streaming.facts.package_versions", lambda: versions)
    with pytest.raises(SecateurError, match=r"version: torch was .*, is 1\.0; version: transf"):
        stream(folder, output, resume=True)
    monkeypatch.undo()
    machine = machine_facts() | {"threads": "96"}
    monkeypatch.setattr("secateur.streaming.facts.machine_facts", lambda _: machine)
    with pytest.raises(SecateurError, match="machine: threads was 1, is 96"):
        stream(folder, output, resume=True)
    monkeypatch.undo()
    stream(folder, output, resume=True)
    assert not job_folder(output).exists()


def test_many_and_long_changes_are_told_shortly(tmp_path: Path) -> None:
    with open_job(tmp_path / "out", FACTS) as job:
        (job / "block-00000.json").touch()
    other = {"recipe": {"method": "x" * 100}, "machine": {"threads": "1"}}
    with (
        pytest.raises(SecateurError) as caught,
        open_job(tmp_path / "out", other),
    ):
        raise AssertionError("it was opened")
    message = str(caught.value)
    assert f"recipe: method was wanda, is {'x' * 77}...; " in message
    assert "recipe: pattern was [2, 4], is absent; version: torch was 2, is absent; " in message
    assert "and 1 more changes. Undo the change" in message


def test_equal_facts_are_accepted_also_as_tuples(tmp_path: Path) -> None:
    for _ in range(2):
        with open_job(tmp_path / "out", FACTS) as job:
            (job / "block-00000.json").touch()
    assert (job / "block-00000.json").is_file()


def test_an_interrupted_job_is_not_overrun(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    leave_interrupted(folder, output, monkeypatch)
    with pytest.raises(
        SecateurError, match=r"interrupted run left finished blocks in .*\.out\.job"
    ):
        stream(folder, output)


def test_there_is_nothing_to_resume(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=r"nothing to resume: no interrupted .*\.out\.job"):
        stream(folder, tmp_path / "out", resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_the_same_job_through_a_link(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    interrupt_after(monkeypatch, 1)
    with pytest.raises(Stop):
        stream(folder, tmp_path / "link")
    monkeypatch.undo()
    with pytest.raises(SecateurError, match=r"left finished blocks in .*\.disk\.job"):
        stream(folder, tmp_path / "link")
    stream(folder, tmp_path / "link", resume=True)
    assert (tmp_path / "link" / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "in", "link"]


# Two at a time.


def test_a_second_process_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    leave_interrupted(folder, output, monkeypatch)
    # A lock belongs to the open file: another one in this process is as one of another process.
    with (job_folder(output) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for resume in (False, True):
            with pytest.raises(SecateurError, match=f"another process is working on {output}"):
                stream(folder, output, resume=resume)
    stream(folder, output, resume=True)


def test_a_job_that_began_since_is_seen(tmp_path: Path) -> None:
    output = tmp_path / "out"
    check_job(output, resume=False)
    with (
        open_job(output, FACTS) as job,
        pytest.raises(SecateurError, match="another process is working on"),
        open_job(output, FACTS),
    ):
        raise AssertionError("it was opened")
    assert (job / "weights").is_dir()


# What is left.


def test_nothing_is_left_before_a_block_is_finished(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 0)
    for output in (tmp_path / "out", tmp_path / "new" / "er" / "out"):
        with pytest.raises(Stop):
            stream(folder, output, activations="file")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_what_a_killed_job_left_while_it_tidied_up_does_not_count(
    folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job_folder(output).joinpath("weights").mkdir(parents=True)
    job_folder(output).joinpath("weights", "model-00001-of-00009.safetensors").write_bytes(b"old")
    job_folder(output).joinpath("block-00000.json").write_text("{}")
    stream(folder, output)
    stream(folder, tmp_path / "second")
    assert weight_bytes(output) == weight_bytes(tmp_path / "second")
    assert not job_folder(output).exists()


def test_killed_when_the_output_was_in_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"

    def stop(_: Path) -> None:
        raise Stop

    monkeypatch.setattr(CHAIN, "close_job", stop)
    with pytest.raises(Stop):
        stream(folder, output)
    monkeypatch.undo()
    assert has_ended(output)
    before = weight_bytes(output)
    with pytest.raises(SecateurError, match=r"cannot be resumed, .*loading: dtype"):
        stream(folder, output, resume=True, dtype="float16")
    report = stream(folder, output, resume=True)
    assert report.size.num_blocks == 3
    assert weight_bytes(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_killed_before_others_files_were_moved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    stream(folder, output)
    (output / "notes.txt").write_text("mine")

    def stop(*_: Path) -> None:
        raise Stop

    monkeypatch.setattr("secateur.checkpoint.write._carry_over", stop)
    with pytest.raises(Stop):
        stream(folder, output, overwrite=True)
    monkeypatch.undo()
    assert has_ended(output)
    stream(folder, output, overwrite=True, resume=True)
    assert (output / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [Path.unlink, spoil], ids=["gone", "damaged"])
def test_a_block_whose_weights_are_not_there_is_pruned_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]
) -> None:
    stream(folder, tmp_path / "expected")
    output = tmp_path / "out"
    leave_interrupted(folder, output, monkeypatch)
    (shard,) = (job_folder(output) / "weights").glob("*.safetensors")
    harm(shard)
    stream(folder, output, resume=True)
    assert weight_bytes(output) == weight_bytes(tmp_path / "expected")


def test_closing_leaves_the_facts_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_job(tmp_path / "out", FACTS) as job:
        (job / "block-00000.json").write_text("{}")
        (job / "activations-0.bin").write_bytes(b"12345")
        size = sum(path.stat().st_size for path in job.iterdir() if path.is_file())
        assert bytes_in_job(tmp_path / "out") == size
        assert size > 7
        seen: list[list[str]] = []
        monkeypatch.setattr(
            "secateur.streaming.job._remove",
            lambda folder, _: seen.append(sorted(path.name for path in folder.iterdir())),
        )
        close_job(job)
    assert seen == [["job.json", "lock"]]
    assert has_ended(tmp_path / "out")
    assert bytes_in_job(tmp_path / "elsewhere") == 0
    assert not has_ended(tmp_path / "elsewhere")


def test_a_text_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "entry.json"
    write_aside(path, "first")

    def stop(*_: Any) -> None:
        raise Stop

    monkeypatch.setattr("secateur.streaming.job.os.replace", stop)
    with pytest.raises(Stop):
        write_aside(path, "second")
    assert path.read_text() == "first"


# What cannot be streamed at all.


@pytest.mark.parametrize(
    "recipe",
    [
        {"stages": [{"stage": "drop_blocks", "blocks": [1]}]},
        {"stages": [*recipe_of(method="wanda")["stages"], {"stage": "drop_blocks", "blocks": [1]}]},
    ],
)
def test_other_recipes_are_refused(folder: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    with pytest.raises(SecateurError, match="only a recipe of one prune or factor stage"):
        stream(folder, tmp_path / "out", recipe=recipe)


REFUSED_FACTORS = {
    "gradients for directions": (
        {"budget": 0.1},
        "never whole, but importance directions takes gradients of the whole model: give "
        "importance output, or a rank in place of the budget, or compress without streaming",
    ),
    "gradients for ranks": (
        {"budget": 0.1, "importance": "loss", "in_turn": False},
        "importance loss takes gradients of the whole model",
    ),
    "directions at a rank": ({"rank": 16, "importance": "directions"}, "importance directions"),
    "shared inputs": (
        {"rank": 16, "joint": True, "importance": "output"},
        "joint must know which matrices share inputs before the first block: leave it out",
    ),
    "dense inputs": (
        {"rank": 16, "dense_targets": True},
        "dense_targets runs the dense blocks beside the compressed ones: leave it out",
    ),
}


@pytest.mark.parametrize("name", REFUSED_FACTORS)
def test_factors_that_need_the_whole_model_are_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    options, message = REFUSED_FACTORS[name]
    with pytest.raises(SecateurError, match=message):
        stream(folder, tmp_path / "out", recipe=factors(**options))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


REFUSED_FORMATS = {
    "factors as dense": (factors(rank=16), "dense", "written as the next ones find it"),
    "nothing to compress": (
        recipe_of(method="wanda", pattern="4:8"),
        "compact",
        "makes 2:4 or low-rank layers to write compactly, but wanda as asked for makes none",
    ),
    "no pattern": (
        recipe_of(method="wanda", pattern="unstructured", sparsity=0.5),
        "compact",
        "makes none: leave out the format, or give dense",
    ),
    "no factors": (
        factors(rank=16, overrides=[{"targets": ["re:.*"], "rank": None}]),
        "compact",
        "but svd-whitened as asked for makes none",
    ),
    "factors multiplied back": (
        factors(rank=16, write="dense"),
        "compact",
        "but svd-whitened as asked for makes none",
    ),
}


@pytest.mark.parametrize("name", REFUSED_FORMATS)
def test_formats_that_do_not_fit_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    recipe, checkpoint_format, message = REFUSED_FORMATS[name]
    with pytest.raises(SecateurError, match=message):
        stream(folder, tmp_path / "out", recipe=recipe, checkpoint_format=checkpoint_format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_fused_experts_are_no_24_layers(tmp_path: Path) -> None:
    folder = save(tiny_model("mixtral"), tmp_path / "in")
    recipe = recipe_of(method="magnitude", targets=["re:.*experts.*"])
    with pytest.raises(SecateurError, match="magnitude as asked for makes none"):
        stream(folder, tmp_path / "out", recipe=recipe, checkpoint_format="compact")


@pytest.mark.parametrize("pattern", ["1:4", "1:2", "2:8", "1:3", "1:6"])
def test_what_is_sparser_than_24_is_written_as_24(tmp_path: Path, pattern: str) -> None:
    sizes = {"hidden_size": 48, "intermediate_size": 96, "head_dim": 12}
    config = LlamaConfig(**FAMILIES["llama"](2).to_dict() | sizes)
    folder = save(model_from(config), tmp_path / "in")
    recipe = recipe_of(method="magnitude", pattern=pattern)
    stream(folder, tmp_path / "out", recipe=recipe, checkpoint_format="compact")
    assert compressed_modules(load_model(tmp_path / "out").model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": "gpu"}, "expected activations auto, device, host or file, got 'gpu'"),
        ({"dtype": "int8"}, "expected dtype one of auto, .*, got 'int8'"),
        ({"device": "meta"}, "device meta cannot be used"),
        ({"calibration": None}, "calibration"),
    ],
)
def test_bad_arguments(
    folder: Path, tmp_path: Path, options: dict[str, CalibrationSource], message: str
) -> None:
    with pytest.raises(SecateurError, match=message):
        stream(folder, tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_an_output_that_is_there(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    compress(folder, recipe_of(method="magnitude"), output=output)
    before = weight_bytes(output)
    with pytest.raises(SecateurError, match="is not empty"):
        stream(folder, output)
    with pytest.raises(SecateurError, match="is, or holds, the model that is read"):
        stream(output, output, overwrite=True)
    assert weight_bytes(output) == before
    stream(folder, output, overwrite=True)
    stream(folder, tmp_path / "new")
    assert weight_bytes(output) == weight_bytes(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "new", "out"]
