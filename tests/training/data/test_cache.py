import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from byte_tokenizers import CHATML, CountingTokenizer, byte_tokenizer, ids_of
from torch.utils.data import DataLoader

from secateur.errors import OutOfSpaceError, SecateurError
from secateur.training.data import TrainingData, TrainingText, cache, load_training_data, stored
from secateur.training.data.stored import read_stored
from secateur.training.data.windows import WindowDataset

CHAT = [{"prompt": "a", "response": "bcd"}, {"prompt": "efg", "response": "h"}]


def folder_of(data: TrainingData) -> Path:
    assert isinstance(data.dataset, WindowDataset)
    return data.dataset.folder


def items(data: TrainingData) -> list[dict[str, list[int]]]:
    rows = (data.dataset[row] for row in range(data.num_windows))
    return [{name: value.tolist() for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("source", [["abcdefgh", "ijk"], CHAT])
@pytest.mark.parametrize("template", [None, CHATML])
def test_second_time_nothing_is_tokenised(
    tmp_path: Path, source: list[Any], template: str | None
) -> None:
    text = TrainingText([source], max_seq_length=64 if source is CHAT else 4)
    first = load_training_data(text, byte_tokenizer(template=template), tmp_path)
    tokenizer = byte_tokenizer(template=template)
    second = load_training_data(text, tokenizer, tmp_path)
    assert tokenizer.num_calls == 0
    assert items(second) == items(first)
    assert replace(second, dataset=first.dataset) == first
    assert [path.parent for path in tmp_path.rglob("windows.json")] == [folder_of(first)]
    # What is offered does not depend on the state that calls leave in a tokenizer.
    tokenizer(["abc", "d"], padding=True, truncation=True, max_length=2)
    tokenizer.num_calls = 0
    load_training_data(text, tokenizer, tmp_path)
    assert tokenizer.num_calls == 0


def variants(tmp_path: Path) -> list[tuple[TrainingText, CountingTokenizer]]:
    path = tmp_path / "a.txt"
    text = TrainingText(path, 4)
    changes = [
        {},
        {"max_seq_length": 5},
        {"max_tokens": 8},
        {"format": "text"},
        {"document_separator": "b"},
        {"document_separator": None},
        {"pack": False},
        {"sources": [path, path]},
        {"sources": [["a", "b"]]},
        {"sources": [["ab"]]},
        {"sources": [[{"text": "ab"}]]},
    ]
    tokenizers = [
        byte_tokenizer(merges=[("a", "b")]),
        byte_tokenizer(adds_bos=True),
        byte_tokenizer(has_eos=False),
        byte_tokenizer(template=CHATML),
    ]
    made = [(replace(text, **change), byte_tokenizer()) for change in changes]
    return made + [(text, tokenizer) for tokenizer in tokenizers]


def test_everything_that_matters_is_in_the_key(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    keys = []
    for content in ("a\nb", "a\nc"):
        path.write_text(content)
        keys += [cache.cache_key(text, tokenizer) for text, tokenizer in variants(tmp_path)]
    num_in_memory = 3
    assert len(set(keys)) == len(keys) - num_in_memory


def test_what_does_not_matter_is_not_in_the_key(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("same")
    text = TrainingText(tmp_path / "a.txt")
    others = [{"seed": 1}, {"shuffle_buffer": 3}, {"sources": tmp_path / "b.txt"}]
    tokenizer = byte_tokenizer()
    for change in others:
        other = replace(text, **change)
        assert cache.cache_key(other, tokenizer) == cache.cache_key(text, tokenizer)


def test_how_a_file_is_read_and_in_which_order_matters(tmp_path: Path) -> None:
    keys = set()
    names = [("x/a.txt", "x/b.txt"), ("y/b.txt", "y/a.txt"), ("z/a.jsonl", "z/b.jsonl")]
    for first, second in names:
        (tmp_path / first).parent.mkdir()
        (tmp_path / first).write_text('"a"')
        (tmp_path / second).write_text('"b"')
        tokenizer = byte_tokenizer()
        keys.add(cache.cache_key(TrainingText((tmp_path / first).parent), tokenizer))
        keys.add(cache.cache_key(TrainingText(tmp_path / names[0][0]), tokenizer))
    assert len(keys) == 4
    (tmp_path / "a.jsonl").write_text('"a"')
    as_rows = cache.cache_key(TrainingText(tmp_path / "a.jsonl"), byte_tokenizer())
    assert as_rows not in keys


def test_large_files_are_known_by_size_time_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_LARGE_BYTES", 100)
    monkeypatch.setattr(cache, "_END_BYTES", 10)
    path = tmp_path / "a.txt"

    def key(content: str, seconds: int = 1_000_000) -> str:
        path.write_text(content)
        os.utime(path, (seconds, seconds))
        return cache.cache_key(TrainingText(path), byte_tokenizer())

    first = key("a" * 150)
    assert key("a" * 150) == first
    others = [key("a" * 151), key("a" * 150, 1_000_001), key("b" + "a" * 149), key("a" * 149 + "b")]
    assert len({first, *others}) == 5
    # The price of not reading it: a change of the middle within one tick of the clock is not seen.
    assert key("a" * 70 + "b" * 10 + "a" * 70) == first
    assert key("a" * 40 + "b") != key("a" * 20 + "b" + "a" * 20)


def test_dataset_is_known_by_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("datasets")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    keys = []
    for hash_ in ("one", "two", "one"):
        builder = SimpleNamespace(cache_dir="x", hash=hash_)
        fake.load_dataset_builder = lambda *_, b=builder: b  # type: ignore[attr-defined]
        keys.append(cache.cache_key(TrainingText("a/b"), byte_tokenizer()))
    assert keys[0] == keys[2] != keys[1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def blank(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [Path.unlink, cut, lengthen, alter, blank])
@pytest.mark.parametrize("name", ["tokens.bin", "loss.bin", "starts.bin", "windows.json"])
def test_corrupt_cache_is_made_anew(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    text = TrainingText([CHAT], 16)
    first = load_training_data(text, byte_tokenizer(), tmp_path)
    expected = items(first)
    damage(folder_of(first) / name)
    if name == "windows.json" and damage in (lengthen, alter):
        page = folder_of(first) / name
        page.write_text(
            page.read_text().rstrip("\0").replace('"num_windows": ', '"num_windows": 1')
        )
    tokenizer = byte_tokenizer()
    second = load_training_data(text, tokenizer, tmp_path)
    assert tokenizer.num_calls > 0
    assert items(second) == expected
    assert read_stored(folder_of(second)) is not None
    assert [path.name for path in folder_of(second).parent.iterdir()] == [folder_of(second).name]


def test_files_untouched_since_they_were_described_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(load_training_data(TrainingText([CHAT], 16), byte_tokenizer(), tmp_path))
    for path in folder.glob("*.bin"):
        os.utime(path, ns=(0, 0))
    monkeypatch.setattr(stored, "_digest", lambda *_: "they were read")
    assert read_stored(folder) is not None
    alter(folder / "loss.bin")
    os.utime(folder / "loss.bin", ns=(0, (folder / "windows.json").stat().st_mtime_ns))
    assert read_stored(folder) is None


def test_cache_of_another_version_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TrainingText([["abcdefgh"]], 4)
    data = load_training_data(text, byte_tokenizer(), tmp_path)
    page = folder_of(data) / "windows.json"
    page.write_text(page.read_text().replace('"format_version": 1', '"format_version": 0'))
    tokenizer = byte_tokenizer()
    load_training_data(text, tokenizer, tmp_path)
    assert tokenizer.num_calls > 0


class Crash(BaseException):
    """What no handler of errors expects."""


def test_crash_leaves_nothing(tmp_path: Path) -> None:
    class Crashing(CountingTokenizer):
        def __call__(self, text: Any, **options: Any) -> Any:
            if self.num_calls > 2:
                raise Crash
            return super().__call__(text, **options)

    tokenizer = byte_tokenizer()
    tokenizer.__class__ = Crashing
    text = TrainingText([["text"] * 5000], 4)
    with pytest.raises(Crash):
        load_training_data(text, tokenizer, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert load_training_data(text, byte_tokenizer(), tmp_path).num_windows == 5000 * 5 // 4


@pytest.mark.parametrize("is_whole", [True, False])
def test_another_process_may_be_first(tmp_path: Path, is_whole: bool) -> None:
    text = TrainingText([["abcdefgh"]], 4)

    class Racing(CountingTokenizer):
        def __call__(self, text_: Any, **options: Any) -> Any:
            if not list(tmp_path.rglob("windows.json")):
                data = load_training_data(text, byte_tokenizer(), tmp_path)
                if not is_whole:
                    alter(folder_of(data) / "tokens.bin")
            return super().__call__(text_, **options)

    tokenizer = byte_tokenizer()
    # The name of the class is part of what the tokenizer is known by.
    Racing.__name__ = CountingTokenizer.__name__
    tokenizer.__class__ = Racing
    data = load_training_data(text, tokenizer, tmp_path)
    assert [item["input_ids"] for item in items(data)] == [ids_of("abcd"), ids_of("efgh")]
    assert read_stored(folder_of(data)) is not None
    assert [path.name for path in folder_of(data).parent.iterdir()] == [folder_of(data).name]


def test_what_a_killed_process_left_is_removed_in_time(tmp_path: Path) -> None:
    parent = tmp_path / "training-data"
    now = time.time()
    for name, age in ((".aside-old", 100_000), (".aside-new", 10)):
        (parent / name).mkdir(parents=True)
        (parent / name / "tokens.bin").write_bytes(b"x")
        for path in (parent / name / "tokens.bin", parent / name):
            os.utime(path, (now - age, now - age))
    load_training_data(TrainingText([["abcdefgh"]], 4), byte_tokenizer(), tmp_path)
    assert (parent / ".aside-new").exists()
    assert not (parent / ".aside-old").exists()


def test_default_folder_is_that_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "here"))
    data = load_training_data(TrainingText([["abcdefgh"]], 4), byte_tokenizer())
    assert folder_of(data).parent == tmp_path / "here" / "training-data"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_cache_is_as_readable_as_any_new_folder(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        data = load_training_data(TrainingText([["abcdefgh"]], 4), byte_tokenizer(), tmp_path)
    finally:
        os.umask(before)
    assert folder_of(data).stat().st_mode & 0o777 == 0o777 & ~umask


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    message = r"the cache .*file/training-data cannot be written: .*; set SECATEUR_CACHE to another"
    with pytest.raises(SecateurError, match=message):
        load_training_data(TrainingText([["abcdefgh"]], 4), byte_tokenizer(), tmp_path / "file")


def test_full_disk_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OutOfSpaceError, match=r"the cache .* cannot be written: .*No space left"):
        load_training_data(TrainingText([["abcdefgh"]], 4), byte_tokenizer(), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_source_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("text")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SecateurError, match=r"training source .*a\.txt cannot be read: .*denied"):
        cache.cache_key(TrainingText(tmp_path / "a.txt"), byte_tokenizer())


def test_token_ids_take_two_bytes_where_they_fit(tmp_path: Path) -> None:
    text = TrainingText([["abcdefgh"]], 4)
    small = load_training_data(text, byte_tokenizer(), tmp_path)
    assert (folder_of(small) / "tokens.bin").stat().st_size == 2 * 8
    large = byte_tokenizer()
    large.add_tokens([f"<{number}>" for number in range((1 << 16) - len(large) + 1)])
    data = load_training_data(text, large, tmp_path)
    assert (folder_of(data) / "tokens.bin").stat().st_size == 4 * 8
    assert items(data) == items(small)


def test_token_beyond_the_tokenizers_own_vocabulary_is_refused(tmp_path: Path) -> None:
    class Lying(CountingTokenizer):
        def __call__(self, text: Any, **options: Any) -> Any:
            return {"input_ids": [[1 << 16] * 8 for _ in text]}

    tokenizer = byte_tokenizer()
    tokenizer.__class__ = Lying
    with pytest.raises(SecateurError, match="gives the token id 65536, but its vocabulary ends"):
        load_training_data(TrainingText([["abc"]], 4), tokenizer, tmp_path)


def test_workers_map_the_files_themselves(tmp_path: Path) -> None:
    data = load_training_data(TrainingText([["a" * 40_000]], 4), byte_tokenizer(), tmp_path)
    data.dataset[0]
    assert len(pickle.dumps(data.dataset)) < 4000
    again = pickle.loads(pickle.dumps(data.dataset))
    assert torch.equal(again[5]["input_ids"], data.dataset[5]["input_ids"])
    loader = DataLoader(data.dataset, batch_size=64, num_workers=2)
    assert sum(len(batch["input_ids"]) for batch in loader) == data.num_windows


def test_digest_is_of_tokens_and_masks(tmp_path: Path) -> None:
    one = load_training_data(TrainingText([["abcdefgh"]], 4), byte_tokenizer(), tmp_path)
    same = load_training_data(TrainingText([["abcdefgh", "x"]], 4), byte_tokenizer(), tmp_path)
    other = load_training_data(TrainingText([["abcdefgi"]], 4), byte_tokenizer(), tmp_path)
    assert one.sha256 == same.sha256 != other.sha256
    assert np.fromfile(folder_of(one) / "tokens.bin", "<u2").tolist() == ids_of("abcdefgh")
    chats = [
        load_training_data(TrainingText([[row]], 8), byte_tokenizer(), tmp_path)
        for row in ({"prompt": "a", "response": "bcd"}, {"prompt": "ab", "response": "cd"})
    ]
    assert items(chats[0])[0]["input_ids"] == items(chats[1])[0]["input_ids"]
    assert chats[0].sha256 != chats[1].sha256
