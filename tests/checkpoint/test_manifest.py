import json
from pathlib import Path
from typing import Any

import pytest

from secateur.checkpoint.manifest import (
    MANIFEST_FILE,
    file_sha256,
    manifest_faults,
    write_manifest,
)
from secateur.errors import SecateurError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 8192)
    (tmp_path / "config.json").write_text('{"a": 1}', encoding="utf-8")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "ï.txt").write_text("ü", encoding="utf-8")
    write_manifest(tmp_path)
    return tmp_path


def entries(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    assert values["format_version"] == 1
    files = values["files"]
    assert isinstance(files, dict)
    return files


def test_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == known
    # A million times the letter a, read in several pieces.
    path.write_bytes(b"a" * 10**6 + b"b" * 10**6)
    first = file_sha256(path)
    path.write_bytes(b"a" * 10**6 + b"b" * (10**6 - 1) + b"c")
    assert file_sha256(path) != first


def test_every_file_is_listed_but_the_manifest(folder: Path) -> None:
    files = entries(folder)
    assert list(files) == sorted(files)
    assert set(files) == {"weights", "config.json", "empty", "deep/er/ï.txt"}
    assert files["config.json"] == {
        "sha256": file_sha256(folder / "config.json"),
        "bytes": 8,
    }
    assert files["weights"]["bytes"] == 256 * 8192
    assert files["empty"]["bytes"] == 0
    assert manifest_faults(folder) == []


def test_writing_again_changes_nothing(folder: Path) -> None:
    before = (folder / MANIFEST_FILE).read_bytes()
    write_manifest(folder)
    assert (folder / MANIFEST_FILE).read_bytes() == before


@pytest.mark.parametrize("place", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 21) - 1])
def test_one_flipped_bit_is_found(folder: Path, place: int) -> None:
    path = folder / "weights"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert manifest_faults(folder) == ["weights has other content than when it was written"]
    content[place] ^= 1
    path.write_bytes(content)
    assert manifest_faults(folder) == []


def test_resized_and_missing_files_are_found(folder: Path) -> None:
    path = folder / "weights"
    path.write_bytes(path.read_bytes() + b"\0")
    (folder / "empty").write_bytes(b"x")
    (folder / "deep" / "er" / "ï.txt").unlink()
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert sorted(manifest_faults(folder)) == [
        "config.json is missing",
        "deep/er/ï.txt is missing",
        "empty has 1 bytes, expected 0",
        f"weights has {256 * 8192 + 1} bytes, expected {256 * 8192}",
    ]


def test_added_files_are_no_fault(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert manifest_faults(folder) == []


def test_folder_may_be_moved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("moved") / "there"
    folder.rename(moved)
    assert manifest_faults(moved) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, f"expected {MANIFEST_FILE} in .*, but it is missing"),
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "has no list of files"),
        ('{"files": ["config.json"]}', "has no list of files"),
    ],
)
def test_unreadable_manifest_is_refused(folder: Path, text: str | None, message: str) -> None:
    path = folder / MANIFEST_FILE
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(SecateurError, match=message):
        manifest_faults(folder)


@pytest.mark.parametrize("entry", [{}, {"sha256": "x"}, {"bytes": 8}, 5, None, "x", {"bytes": []}])
def test_entry_that_makes_no_sense_is_a_fault(folder: Path, entry: Any) -> None:
    text = json.dumps({"format_version": 1, "files": {"config.json": entry}})
    (folder / MANIFEST_FILE).write_text(text)
    (fault,) = manifest_faults(folder)
    assert "the manifest's entry for 'config.json'" in fault


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "deep/../../secret"])
def test_files_elsewhere_are_not_looked_at(folder: Path, name: str) -> None:
    text = json.dumps({"files": {name: {"sha256": "x", "bytes": 5}}})
    (folder / MANIFEST_FILE).write_text(text)
    (fault,) = manifest_faults(folder)
    assert fault.startswith("the manifest's entry for ")


@pytest.mark.parametrize(
    "name",
    ["model-2.safetensors", "deep/x.bin", "m.pt", "code.py", "model.safetensors.index.json"],
)
def test_added_weights_and_code_are_a_fault(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    assert manifest_faults(folder) == [f"{name} was added"]


def test_digests_that_are_known_are_not_made_again(folder: Path) -> None:
    expected = entries(folder)
    write_manifest(folder, {"weights": "0" * 64, "gone": "1" * 64})
    found = entries(folder)
    assert found.pop("weights") == {"sha256": "0" * 64, "bytes": expected.pop("weights")["bytes"]}
    assert found == expected
    assert manifest_faults(folder) == ["weights has other content than when it was written"]
