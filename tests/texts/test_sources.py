import errno
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from secateur.errors import SecateurError
from secateur.texts.dataset_rows import dataset_identity, dataset_rows
from secateur.texts.rows import Row, keys_of, text_of
from secateur.texts.sources import read_rows, read_texts, source_files


class FakeDatasets(ModuleType):
    """Stands in for the `datasets` package."""

    def __init__(self, rows: list[Any], error: Exception | None = None) -> None:
        super().__init__("datasets")
        self._rows = rows
        self._error = error

    def load_dataset(self, *args: Any, **kwargs: Any) -> list[Any]:
        if self._error is not None:
            raise self._error
        return self._rows

    def load_dataset_builder(self, name: str, config: str | None) -> Any:
        if self._error is not None:
            raise self._error
        return SimpleNamespace(cache_dir=f"/cache/{name}/{config}", hash="4711")


def test_rows_know_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text('{"x": 1}\n\n[2]\n')
    rows = list(read_rows(tmp_path, "training"))
    assert [row.value for row in rows] == ["text", {"x": 1}, [2]]
    places = [str(tmp_path / "a.txt"), f"{tmp_path / 'b.jsonl'}, line 1"]
    assert [row.place for row in rows] == [*places, f"{tmp_path / 'b.jsonl'}, line 3"]
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([{"x": 1}, {"y": 2}]))
    assert [row.place for row in dataset_rows("a/b:en")] == [
        "dataset a/b:en, row 1",
        "dataset a/b:en, row 2",
    ]


def test_row_without_text_is_named() -> None:
    with pytest.raises(SecateurError, match=r"dataset a/b: .* got \['id', 'x'\] in row 7"):
        text_of(Row("dataset a/b", "row", 7, {"x": 1, "id": 2}))
    with pytest.raises(SecateurError, match=r"a\.jsonl, line 7: .* got \{\"x\": 1\}"):
        text_of(Row("a.jsonl", "line", 7, {"x": 1}))
    assert keys_of("a" * 100) == "a" * 80


def test_purpose_is_named(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=r"nothing.txt is neither a file nor a folder, nor may"):
        source_files("nothing.txt", "training")
    with pytest.raises(SecateurError, match=r"training folder .* holds no files ending in"):
        source_files(tmp_path, "training")
    with pytest.raises(SecateurError, match=r"training source 'aaa.* is too long for the name"):
        source_files("a" * 300, "training")


def test_hidden_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / ".books"  # its own name is what was asked for
    for name in ("a.txt", "._a.txt", ".notes/b.txt", "more/b.txt"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text", encoding="utf-8")
    assert source_files(folder, "training") == [folder / "a.txt", folder / "more" / "b.txt"]


def test_identity_of_a_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([]))
    assert dataset_identity("a/b:en:test") == "a/b:/cache/a/b/en:4711:test"
    assert dataset_identity("c") == "c:/cache/c/None:4711:train"
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([], ValueError("no such")))
    with pytest.raises(SecateurError, match="dataset c cannot be read: no such"):
        dataset_identity("c")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[datasets\]'"):
        dataset_identity("c")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1" * 5000, "line 2: not JSON: Exceeds the limit"),
        ("[" * 100_000, "line 2: not JSON: maximum recursion depth"),
        (r'{"text": "a \ud800 b"}', r"line 2: a \\u escape stands for half a character"),
        (r'{"messages": [{"content": "\uDFFF\uD800"}]}', "line 2: .* half a character"),
    ],
)
def test_lines_that_nothing_can_read_are_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(SecateurError, match=message):
        list(read_rows(tmp_path, "training"))


def test_whole_characters_in_escapes_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(r'"\ud83d\ude00"' + "\n" + r'"\\ud800"' + "\n")
    assert list(read_texts(tmp_path, "training")) == ["\U0001f600", "\\ud800"]


def test_a_path_that_cannot_be_looked_at_is_named() -> None:
    with pytest.raises(SecateurError, match=r"training source 'a/a/.* cannot be read: File name"):
        source_files("a/" * 4000, "training")


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SecateurError, match=r"a\.txt cannot be read: Permission denied"):
        list(read_texts(tmp_path / "a.txt", "training"))
