import gzip
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.calibration import data
from secateur.calibration.data import load_calibration, read_texts
from secateur.calibration.tokens import tokens_from_tensor
from secateur.errors import SecateurError

BOS = 1


class CharacterTokenizer:
    """Every character is a token, after the first token that begins a text."""

    def __init__(self, *, has_bos: bool = False) -> None:
        self.texts: list[str] = []
        self._has_bos = has_bos

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
        self.texts.append(text)
        first = [BOS] if add_special_tokens and self._has_bos else []
        return {"input_ids": first + [ord(character) for character in text]}


def windows_of(texts: list[str], num_samples: int, length: int, seed: int = 0) -> list[str]:
    tokens = load_calibration(
        texts, CharacterTokenizer(), num_samples=num_samples, max_seq_length=length, seed=seed
    )
    return ["".join(map(chr, sample.tolist())) for sample in tokens.samples]


@settings(deadline=None, max_examples=100)
@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=6),
    num_samples=st.integers(1, 5),
    length=st.integers(2, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_windows_are_pieces_of_the_joined_texts(
    texts: list[str], num_samples: int, length: int, seed: int
) -> None:
    joined = "".join(texts)
    if len(joined) < length:
        with pytest.raises(SecateurError, match=r"calibration is (empty|too short)"):
            windows_of(texts, num_samples, length, seed)
        return
    windows = windows_of(texts, num_samples, length, seed)
    assert len(windows) == num_samples
    assert all(len(window) == length and window in joined for window in windows)
    assert windows == windows_of(texts, num_samples, length, seed)


def test_windows_tell_where_in_the_text_they_lie() -> None:
    text = "".join(map(chr, range(300, 400)))
    tokens = load_calibration([text], CharacterTokenizer(), num_samples=9, max_seq_length=10)
    assert tokens.spans is not None
    for sample, (start, end) in zip(tokens.samples, tokens.spans, strict=True):
        assert "".join(map(chr, sample.tolist())) == text[start:end]


def test_seed_decides_alone() -> None:
    text = "".join(map(chr, range(300, 1300)))
    state = torch.get_rng_state()
    first = windows_of([text], 8, 10, seed=3)
    torch.manual_seed(17)
    assert windows_of([text], 8, 10, seed=3) == first
    assert windows_of([text], 8, 10, seed=4) != first
    assert len(set(first)) > 1
    torch.set_rng_state(state)
    windows_of([text], 8, 10, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_windows_reach_both_ends_of_the_text() -> None:
    assert windows_of(["abcd"], 3, 4) == ["abcd"] * 3
    assert set(windows_of(["abcdef"], 200, 4)) == {"abcd", "bcde", "cdef"}


def test_windows_go_across_documents_with_their_special_tokens() -> None:
    tokenizer = CharacterTokenizer(has_bos=True)
    tokens = load_calibration(["ab", "cd"], tokenizer, num_samples=2, max_seq_length=6)
    assert tokens.samples[0].tolist() == [BOS, ord("a"), ord("b"), BOS, ord("c"), ord("d")]


def test_windows_do_not_share_memory() -> None:
    tokens = load_calibration(["abcd"], CharacterTokenizer(), num_samples=2, max_seq_length=4)
    tokens.samples[0].zero_()
    assert tokens.samples[1].tolist() == list(map(ord, "abcd"))


def test_corpus_is_read_only_as_far_as_needed() -> None:
    tokenizer = CharacterTokenizer()
    texts = ["0123456789"] * 100
    load_calibration(texts, tokenizer, num_samples=1, max_seq_length=4)
    # 16 times as many tokens as the windows hold, in documents of 10.
    assert len(tokenizer.texts) == 7
    tokenizer.texts.clear()
    load_calibration(texts, tokenizer, num_samples=100, max_seq_length=4)
    assert tokenizer.texts == texts


def test_long_documents_are_tokenised_in_pieces_that_end_at_line_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data, "_CHARACTERS_AT_ONCE", 8)
    tokenizer = CharacterTokenizer(has_bos=True)
    text = "ab\ncd\nefghijklmnop\nq"
    tokens = load_calibration([text], tokenizer, num_samples=1, max_seq_length=len(text) + 1)
    assert tokenizer.texts == ["ab\ncd\n", "efghijkl", "mnop\nq"]
    assert tokens.samples[0].tolist() == [BOS, *map(ord, text)]


def test_defaults_are_128_windows_of_2048() -> None:
    tokens = load_calibration(["x" * 3000], CharacterTokenizer())
    assert [len(sample) for sample in tokens.samples] == [2048] * 128
    assert tokens.source == "1 texts"


def test_tensor_and_drawn_tokens_need_no_tokenizer() -> None:
    ids = torch.arange(6).view(2, 3)
    tokens = load_calibration(ids, None, num_samples=50, max_seq_length=2048)
    assert [sample.tolist() for sample in tokens.samples] == ids.tolist()
    drawn = tokens_from_tensor(ids)
    assert load_calibration(drawn, None) is drawn


def write_gzip(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


LINES = '{"text": "one"}\n\n{"content": "two", "id": 3}\n   \n"three"\n{"text": "v\\u00efer\\n"}'


@pytest.mark.parametrize("as_string", [False, True])
@pytest.mark.parametrize(
    ("name", "write", "text", "documents"),
    [
        ("a.txt", write_text, "one\r\ntwo ïé\u2028", ["one\ntwo ïé\u2028"]),
        ("a.md", write_text, "# one\n", ["# one\n"]),
        ("noending", write_text, "one", ["one"]),
        ("a.txt.gz", write_gzip, "one\ntwo ïé", ["one\ntwo ïé"]),
        ("a.jsonl", write_text, LINES, ["one", "two", "three", "vïer\n"]),
        ("a.jsonl.gz", write_gzip, LINES, ["one", "two", "three", "vïer\n"]),
        ("b.jsonl", write_text, LINES.replace("\n", "\r\n"), ["one", "two", "three", "vïer\n"]),
        ("empty.jsonl", write_text, "\n", []),
    ],
)
def test_files(
    tmp_path: Path,
    name: str,
    write: Callable[[Path, str], None],
    text: str,
    documents: list[str],
    as_string: bool,
) -> None:
    path = tmp_path / name
    write(path, text)
    assert list(read_texts(str(path) if as_string else path)) == documents


def test_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    write_text(tmp_path / "c.txt", "last")
    write_gzip(tmp_path / "b" / "deep" / "x.txt.gz", "third")
    write_text(tmp_path / "b" / "a.jsonl", '"second"\n')
    write_text(tmp_path / "a.md", "first")
    write_text(tmp_path / "b" / "ignored.py", "code")
    write_text(tmp_path / "b.csv", "1,2")
    assert list(read_texts(tmp_path)) == ["first", "second", "third", "last"]
    assert list(read_texts(str(tmp_path))) == ["first", "second", "third", "last"]


def test_source_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "some text")
    tokens = load_calibration(
        tmp_path / "a.txt", CharacterTokenizer(), num_samples=1, max_seq_length=4
    )
    assert tokens.source == str(tmp_path / "a.txt")


def test_folder_without_text_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "1,2")
    with pytest.raises(SecateurError, match=r"holds no files ending in \('.txt', '.md'"):
        list(read_texts(tmp_path))


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_empty_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(SecateurError, match=f"calibration is empty: {len(texts)} texts holds no"):
        windows_of(texts, 1, 2)


def test_short_text_is_refused() -> None:
    message = "2 texts gives 7 tokens, but one window of max_seq_length needs 8; give more text"
    with pytest.raises(SecateurError, match=message):
        windows_of(["abcd", "efg"], 1, 8)


@pytest.mark.parametrize(("num_samples", "length"), [(0, 8), (-1, 8), (1, 1), (1, 0)])
def test_nothing_to_draw_is_refused(num_samples: int, length: int) -> None:
    message = (
        "num_calibration_samples of at least 1 and max_seq_length of at least 2, "
        f"got {num_samples} and {length}"
    )
    with pytest.raises(SecateurError, match=message):
        windows_of(["abcdefghij"], num_samples, length)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
def test_seeds_that_not_all_generators_take_are_refused(seed: int) -> None:
    with pytest.raises(SecateurError, match=f"expected 0 <= seed < 2\\^32, got {seed}"):
        load_calibration(["abcdefghij"], CharacterTokenizer(), max_seq_length=4, seed=seed)


def test_text_without_tokenizer_is_refused() -> None:
    with pytest.raises(SecateurError, match="needs the model's tokenizer; give `tokenizer`"):
        load_calibration(["text"], None)


@pytest.mark.parametrize("source", ["./nothing", "/nothing/here", "nothing.txt", "a.jsonl.gz"])
def test_source_that_is_not_there_is_refused(source: str) -> None:
    for kind in (source, Path(source)):
        with pytest.raises(SecateurError, match="is neither a file nor a folder"):
            list(read_texts(kind))
    with pytest.raises(SecateurError, match="is neither a file nor a folder"):
        list(read_texts(Path("may-be-a-dataset")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "line 3: not JSON: Unterminated string"),
        ("plain", "line 3: not JSON: Expecting value"),
        ('{"other": "x"}', r"line 3: expected a string, or .* \('text', 'content'\); got .*other"),
        ('{"text": 5}', "line 3: expected a string"),
        ('{"text": null, "content": "x"}', "line 3: expected a string"),
        ("[1, 2]", r"line 3: expected a string, .*got \[1, 2\]"),
        ("7", "line 3: expected a string"),
    ],
)
def test_bad_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    write_text(path, f'"good"\n\n{line}\n"good"\n')
    with pytest.raises(SecateurError, match=f"a.jsonl, {message}"):
        list(read_texts(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"caf\xe9"),
        ("a.jsonl", b'"caf\xe9"\n'),
        ("a.txt.gz", gzip.compress(b"caf\xe9", mtime=0)),
        ("a.jsonl.gz", gzip.compress(b'"caf\xe9"', mtime=0)),
        ("b.txt.gz", b"not compressed"),
    ],
)
def test_file_that_is_not_text_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(SecateurError, match=f"{name} is not UTF-8 text: "):
            list(read_texts(source))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_json_line_ends_at_a_newline_only(tmp_path: Path, separator: str) -> None:
    # JSON allows these raw within a string, and writers that keep UTF-8 leave them there.
    document = f"one{separator}two"
    path = tmp_path / "a.jsonl"
    write_text(path, json.dumps({"text": document}, ensure_ascii=False) + "\n" + '"three"\n')
    assert list(read_texts(path)) == [document, "three"]


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"some text " * 100, mtime=0)[:-12])
    with pytest.raises(SecateurError, match=r"a\.txt\.gz"):
        list(read_texts(path))


def test_folder_within_may_be_named_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    write_text(tmp_path / "a.txt" / "b.txt", "text")
    assert list(read_texts(tmp_path)) == ["text"]


def test_text_in_place_of_a_source_is_refused() -> None:
    with pytest.raises(SecateurError):
        list(read_texts("a text of its own instead of a list of texts. " * 20))


class FakeDatasets(ModuleType):
    """Stands in for the `datasets` package."""

    def __init__(self, rows: list[Any], error: Exception | None = None) -> None:
        super().__init__("datasets")
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.num_read = 0
        self._rows = rows
        self._error = error

    def load_dataset(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        self.calls.append((args, kwargs))
        if self._error is not None:
            raise self._error
        return self._read()

    def _read(self) -> Iterator[Any]:
        for row in self._rows:
            self.num_read += 1
            yield row


@pytest.mark.parametrize(
    ("name", "arguments", "split"),
    [
        ("corpus", ("corpus", None), "train"),
        ("someone/corpus", ("someone/corpus", None), "train"),
        ("someone/corpus:en", ("someone/corpus", "en"), "train"),
        ("someone/corpus:en:test", ("someone/corpus", "en"), "test"),
        ("corpus::validation", ("corpus", None), "validation"),
        ("corpus:en:train[:10]", ("corpus", "en"), "train[:10]"),
    ],
)
def test_dataset_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, arguments: tuple[Any, ...], split: str
) -> None:
    fake = FakeDatasets([{"text": "one", "id": 1}, {"content": "two"}])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert list(read_texts(name)) == ["one", "two"]
    assert fake.calls == [(arguments, {"split": split, "streaming": True})]


def test_dataset_is_streamed_only_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets([{"text": "0123456789"}] * 1000)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    tokens = load_calibration("corpus", CharacterTokenizer(), num_samples=1, max_seq_length=10)
    assert fake.num_read == 16
    assert tokens.source == "corpus"


def test_dataset_without_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets([{"text": "one"}, {"tokens": [], "id": 1}])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    message = r"dataset a/b: expected rows with .* got \['id', 'tokens'\]"
    with pytest.raises(SecateurError, match=message):
        list(read_texts("a/b"))


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("no config en")])
def test_dataset_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([], error))
    with pytest.raises(SecateurError, match=f"dataset a/b:en cannot be read: {error}"):
        list(read_texts("a/b:en"))


def test_missing_datasets_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = r"a/b is not a file or folder here; .* pip install 'secateur\[datasets\]'"
    with pytest.raises(SecateurError, match=message):
        list(read_texts("a/b"))


def test_documents_of_one_text_begin_anew() -> None:
    together, apart = (
        load_calibration(
            texts, CharacterTokenizer(has_bos=True), num_samples=3, max_seq_length=6, seed=0
        )
        for texts in (["one text\n<|endoftext|>\nanother\n"], ["one text", "another"])
    )
    for sample, expected in zip(together.samples, apart.samples, strict=True):
        assert torch.equal(sample, expected)
