import hashlib
from itertools import pairwise
from pathlib import Path

import pytest
from byte_tokenizers import CountingTokenizer, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.training.data import (
    TrainingData,
    TrainingText,
    hold_out,
    load_held_out,
    load_training_data,
)
from secateur.training.data.split import _draw, spread
from secateur.training.data.windows import WindowDataset


@pytest.fixture
def data(tokenizer: CountingTokenizer, tmp_path: Path) -> TrainingData:
    """200 windows of 4, each of which says its number."""
    text = "".join(f"{number:04}" for number in range(200))
    return load_training_data(TrainingText([[text]], 4), tokenizer, tmp_path)


def numbers(data: TrainingData) -> list[int]:
    rows = (data.dataset[row]["input_ids"].tolist() for row in range(data.num_windows))
    return [int(bytes(token - 3 for token in row)) for row in rows]


def test_parts_are_disjoint_and_all(data: TrainingData) -> None:
    train, held_out = hold_out(data, num_windows=30, seed=3)
    assert sorted(numbers(train) + numbers(held_out)) == list(range(200))
    assert numbers(train) == sorted(numbers(train))
    assert numbers(held_out) == sorted(numbers(held_out))
    assert (train.num_windows, held_out.num_windows) == (170, 30)
    assert (held_out.num_tokens, held_out.num_loss_tokens) == (120, 120)
    assert held_out.num_documents == data.num_documents
    assert (held_out.source, held_out.max_seq_length) == (data.source, 4)
    assert len({data.sha256, train.sha256, held_out.sha256}) == 3
    assert isinstance(held_out.dataset, WindowDataset)
    tokens = b"".join(held_out.dataset.raw(row)[0].tobytes() for row in range(30))
    assert hashlib.sha256(tokens).hexdigest() == held_out.sha256


def test_text_is_held_out_in_a_few_stretches_all_over(data: TrainingData) -> None:
    held_out = numbers(hold_out(data, num_windows=40)[1])
    stretches = sum(after != before + 1 for before, after in pairwise([-9, *held_out]))
    assert 2 <= stretches <= 8
    assert held_out[0] < 60
    assert held_out[-1] >= 140


def test_seed_decides(data: TrainingData) -> None:
    assert numbers(hold_out(data, num_windows=30, seed=1)[1]) == numbers(
        hold_out(data, num_windows=30, seed=1)[1]
    )
    assert numbers(hold_out(data, num_windows=30, seed=1)[1]) != numbers(
        hold_out(data, num_windows=30, seed=2)[1]
    )


@settings(deadline=None, max_examples=200)
@given(
    available=st.integers(2, 60),
    share=st.floats(0, 1),
    stretches=st.integers(1, 10),
    seed=st.integers(0, 9),
)
def test_drawn_rows_are_different(available: int, share: float, stretches: int, seed: int) -> None:
    count = max(1, round(share * (available - 1)))
    rows = _draw(available, count, min(stretches, count), seed)
    assert len(set(rows)) == len(rows) == count
    assert rows == sorted(rows)
    assert 0 <= rows[0]
    assert rows[-1] < available


def test_every_window_may_be_held_out() -> None:
    for stretches in (1, 3):
        drawn = {row for seed in range(300) for row in _draw(12, 3, stretches, seed)}
        assert drawn == set(range(12))


@pytest.mark.parametrize("num_windows", [0, -1, 200, 300])
def test_nothing_left_on_one_side_is_refused(data: TrainingData, num_windows: int) -> None:
    message = f"at least 1 and fewer than all of 200 windows, got {num_windows}"
    with pytest.raises(SecateurError, match=message):
        hold_out(data, num_windows=num_windows)


def test_conversations_are_held_out_singly(tokenizer: CountingTokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": "ab", "response": "c" * (n % 5)} for n in range(100)]
    data = load_training_data(TrainingText([rows], 8), tokenizer, tmp_path)
    train, held_out = hold_out(data, num_windows=10)
    assert isinstance(held_out.dataset, WindowDataset)
    chosen = list(held_out.dataset.rows)
    assert all(b - a > 1 for a, b in pairwise(chosen))
    for name in ("num_windows", "num_tokens", "num_loss_tokens"):
        assert getattr(train, name) + getattr(held_out, name) == getattr(data, name)
    with_loss = sum(int((data.dataset[row]["labels"] != -100).sum()) for row in chosen)
    assert held_out.num_loss_tokens == with_loss
    padding = sum(int((data.dataset[row]["input_ids"] == 2).sum()) for row in chosen)
    assert held_out.num_tokens == 80 - padding


def test_held_out_of_held_out(data: TrainingData) -> None:
    train, held_out = hold_out(hold_out(data, num_windows=50)[0], num_windows=50, seed=4)
    assert (train.num_windows, held_out.num_windows) == (100, 50)
    assert not set(numbers(train)) & set(numbers(held_out))


def test_windows_spread_over_a_text(data: TrainingData) -> None:
    assert numbers(spread(data, 4)) == [0, 50, 100, 150]
    assert numbers(spread(data, 3)) == [0, 66, 133]
    assert spread(data, 200) is spread(data, 1000) is data
    with pytest.raises(SecateurError, match="num_windows of at least 1, got 0"):
        spread(data, 0)


def test_another_text_is_held_out_in_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("abcd" * 10)
    (tmp_path / "valid.txt").write_text("0123#4567" * 4)
    like = TrainingText(tmp_path / "train.txt", 3, max_tokens=3, streaming=True)
    held_out = load_held_out(tmp_path / "valid.txt", like, byte_tokenizer(), tmp_path)
    assert held_out.num_windows == 12
    assert held_out.source == str(tmp_path / "valid.txt")
    few = load_held_out(tmp_path / "valid.txt", like, byte_tokenizer(), tmp_path, num_windows=2)
    assert few.num_windows == 2
    with pytest.raises(SecateurError, match="the token id"):
        load_held_out(tmp_path / "valid.txt", like, byte_tokenizer(), tmp_path, vocab_size=9)
    rows = [{"prompt": "a", "response": "b"}]
    assert load_held_out(rows, like, byte_tokenizer(), tmp_path).num_loss_tokens == 2
