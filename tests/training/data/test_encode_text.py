import gzip
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizers import BOS, EOS, CountingTokenizer, byte_tokenizer, ids_of
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.texts import pieces
from secateur.training.data import TrainingData, TrainingText, load_training_data
from secateur.training.data.windows import WindowDataset


def windows(data: TrainingData) -> list[list[int]]:
    return [data.dataset[row]["input_ids"].tolist() for row in range(data.num_windows)]


def stream_of(data: TrainingData) -> list[int]:
    return [token for window in windows(data) for token in window]


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=6),
    length=st.integers(2, 12),
    max_tokens=st.none() | st.integers(1, 60),
    adds_bos=st.booleans(),
    has_eos=st.booleans(),
)
def test_windows_are_the_joined_documents(
    texts: list[str], length: int, max_tokens: int | None, adds_bos: bool, has_eos: bool
) -> None:
    kept = [text for text in texts if text.strip()]
    stream = [
        token for text in kept for token in [*[BOS] * adds_bos, *ids_of(text), *[EOS] * has_eos]
    ][:max_tokens]
    expected = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
    text = TrainingText([texts], max_seq_length=length, max_tokens=max_tokens)
    tokenizer = byte_tokenizer(adds_bos=adds_bos, has_eos=has_eos)
    with tempfile.TemporaryDirectory() as cache:
        if not expected:
            problem = "too short: .* gives" if kept else "empty: .* holds no text"
            with pytest.raises(SecateurError, match=f"training text is {problem}"):
                load_training_data(text, tokenizer, Path(cache))
            return
        data = load_training_data(text, tokenizer, Path(cache))
        assert windows(data) == expected
        assert data.num_tokens == data.num_loss_tokens == len(expected) * length
        assert data.num_documents == len(kept)
        assert isinstance(data.dataset, WindowDataset)
        assert data.dataset.stored.largest_token == max(map(max, expected))
        assert len(data.dataset) == data.num_windows == len(expected)  # type: ignore[arg-type]


def test_items_are_what_a_model_takes(tokenizer: CountingTokenizer, tmp_path: Path) -> None:
    data = load_training_data(TrainingText([["abcdef"]], max_seq_length=3), tokenizer, tmp_path)
    item = data.dataset[1]
    assert set(item) == {"input_ids", "labels"}
    assert item["input_ids"].dtype == item["labels"].dtype == torch.int64
    assert item["labels"].tolist() == item["input_ids"].tolist() == ids_of("def")
    item["input_ids"].zero_()
    assert item["labels"].tolist() == ids_of("def")
    assert data.dataset[1]["input_ids"].tolist() == ids_of("def")


def test_every_kind_of_source(tokenizer: CountingTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("\none\n<|endoftext|>\n\n<|endoftext|>\nt</s>wo\n")
    (folder / "b.txt.gz").write_bytes(gzip.compress(b"three"))
    (folder / "c.jsonl").write_text('{"text": " four "}\n\n"five"\n')
    sources = [folder, folder / "a.txt", ["six"]]
    # The name of a special token that stands in a text is the text.
    first = [*ids_of("one"), EOS, *ids_of("t</s>wo"), EOS]
    rest = [*ids_of("three"), EOS, *ids_of(" four "), EOS, *ids_of("five"), EOS]
    stream = [*first, *rest, *first, *ids_of("six"), EOS]
    data = load_training_data(TrainingText(sources, 2), tokenizer, tmp_path / "cache")
    assert stream_of(data) == stream[: len(stream) // 2 * 2]
    assert data.num_documents == 8
    assert data.source == f"{folder}, {folder / 'a.txt'}, 1 texts"


def test_long_documents_are_tokenised_in_pieces(
    tokenizer: CountingTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 8)
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree\nfour\n" * 3)
    data = load_training_data(TrainingText(path, 4), tokenizer, tmp_path / "cache")
    stream = [*ids_of(("one\ntwo\nthree\nfour\n" * 3).strip()), EOS]
    assert stream_of(data) == stream[: len(stream) // 4 * 4]
    assert data.num_documents == 1
    assert max(map(len, tokenizer.texts)) < 24


def test_documents_are_tokenised_in_batches(tokenizer: CountingTokenizer, tmp_path: Path) -> None:
    load_training_data(TrainingText([["text"] * 1000], 8), tokenizer, tmp_path)
    # Beside the documents, what begins a text is asked for: with and without special tokens.
    assert tokenizer.num_calls == 3
    tokenizer.num_calls = 0
    load_training_data(TrainingText([["text"] * 10_000], 8), tokenizer, tmp_path)
    assert tokenizer.num_calls == 5


def test_tokenizer_without_end_of_sequence_is_mentioned(tmp_path: Path) -> None:
    text = TrainingText([["one", "two"]], 2)
    with_eos = load_training_data(text, byte_tokenizer(), tmp_path)
    without = load_training_data(text, byte_tokenizer(has_eos=False), tmp_path)
    streamed = load_training_data(
        replace(text, streaming=True), byte_tokenizer(has_eos=False), tmp_path
    )
    note = "documents follow one another with no token between: the tokenizer has no eos_token"
    assert with_eos.remarks == ()
    assert without.remarks == streamed.remarks == (note,)


@pytest.mark.parametrize("is_cached", [False, True])
def test_token_outside_the_vocabulary_is_refused(
    tokenizer: CountingTokenizer, tmp_path: Path, is_cached: bool
) -> None:
    text = TrainingText([["aaab"]], 2)
    largest = max(ids_of("b"))
    if is_cached:
        load_training_data(text, tokenizer, tmp_path)
    message = f"1 texts holds the token id {largest}, but the model's vocabulary has {largest} tok"
    with pytest.raises(SecateurError, match=message):
        load_training_data(text, tokenizer, tmp_path, vocab_size=largest)
    load_training_data(text, tokenizer, tmp_path, vocab_size=largest + 1)


def test_too_short_text_is_refused(tokenizer: CountingTokenizer, tmp_path: Path) -> None:
    with pytest.raises(
        SecateurError, match=r"2 texts gives 7 tokens, but one window of .* needs 8"
    ):
        load_training_data(TrainingText([["ab", "cde"]], 8), tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": [1]}, r"line 2: expected a string, or an object with .* \{\"tokens\": \[1\]\}"),
        (5, "line 2: expected a string"),
    ],
)
def test_row_without_text_is_refused(
    tokenizer: CountingTokenizer, tmp_path: Path, row: Any, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'"good"\n{json.dumps(row)}\n')
    with pytest.raises(SecateurError, match=rf"a\.jsonl, {message}"):
        load_training_data(TrainingText(path, 2), tokenizer, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_missing_source_is_refused(tokenizer: CountingTokenizer, tmp_path: Path) -> None:
    with pytest.raises(
        SecateurError, match=r"training source .*nothing\.txt is neither a file nor"
    ):
        load_training_data(TrainingText(tmp_path / "nothing.txt"), tokenizer, tmp_path)
