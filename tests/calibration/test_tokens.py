import hashlib
import struct
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.calibration.tokens import CalibrationTokens, checked_tokens, tokens_from_tensor
from secateur.errors import SecateurError

SAMPLES = st.lists(
    st.lists(st.integers(0, 50), min_size=2, max_size=6).map(torch.tensor), min_size=1, max_size=9
)


def as_lists(tokens: CalibrationTokens) -> list[list[int]]:
    return [sample.tolist() for sample in tokens.samples]


def padded(rows: list[list[int]], sides: list[int], pad: int) -> tuple[Tensor, Tensor]:
    """Rows to one width of 9, `sides[i]` places of padding before row i and the rest behind."""
    ids = torch.full((len(rows), 9), pad)
    mask = torch.zeros(len(rows), 9, dtype=torch.long)
    for index, (row, start) in enumerate(zip(rows, sides, strict=True)):
        start = min(start, 9 - len(row))
        ids[index, start : start + len(row)] = torch.tensor(row)
        mask[index, start : start + len(row)] = 1
    return ids, mask


def test_tensor_is_taken_as_it_is() -> None:
    ids = torch.arange(12).view(3, 4)
    tokens = tokens_from_tensor(ids, source="mine")
    assert as_lists(tokens) == ids.tolist()
    assert (tokens.source, tokens.num_tokens, tokens.max_seq_length) == ("mine", 12, 4)
    assert tokens_from_tensor(ids).source == "token tensor"


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_any_integer_dtype_becomes_int64(dtype: torch.dtype) -> None:
    tokens = tokens_from_tensor(torch.tensor([[7, 8, 9]], dtype=dtype))
    assert as_lists(tokens) == [[7, 8, 9]]
    assert tokens.samples[0].dtype == torch.int64


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=9), min_size=1, max_size=5),
    sides=st.lists(st.integers(0, 7), min_size=5, max_size=5),
    pad=st.integers(0, 3),
    as_bool=st.booleans(),
)
def test_padding_is_removed_on_either_side(
    rows: list[list[int]], sides: list[int], pad: int, as_bool: bool
) -> None:
    # The padding's id is also a real token: only the mask tells them apart.
    ids, mask = padded(rows, sides[: len(rows)], pad)
    tokens = tokens_from_tensor(ids, mask.bool() if as_bool else mask)
    assert as_lists(tokens) == rows
    assert tokens.num_tokens == sum(map(len, rows))
    assert tokens.max_seq_length == max(map(len, rows))


def test_mask_without_padding_changes_nothing() -> None:
    ids = torch.arange(6).view(2, 3)
    with_mask = tokens_from_tensor(ids, torch.ones_like(ids))
    assert with_mask.sha256() == tokens_from_tensor(ids).sha256()


@pytest.mark.parametrize("hole", [[1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 1]])
def test_mask_with_holes_is_refused(hole: list[int]) -> None:
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], hole])
    message = "padding at the ends only, but the mask of calibration sample 2 has holes"
    with pytest.raises(SecateurError, match=message):
        tokens_from_tensor(torch.ones(3, 4, dtype=torch.long), mask)


@pytest.mark.parametrize("mask", [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
def test_sample_that_is_all_padding_is_too_short(mask: list[int]) -> None:
    message = (
        "calibration sample 1 of token tensor is too short: expected at least 2 tokens, "
        f"got {sum(mask)}"
    )
    with pytest.raises(SecateurError, match=message):
        tokens_from_tensor(torch.ones(2, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 1], mask]))


@pytest.mark.parametrize(
    ("ids", "got"),
    [
        (torch.zeros(4, dtype=torch.long), r"torch.int64 \[4\]"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"torch.int64 \[1, 2, 3\]"),
        (torch.zeros(2, 3), r"torch.float32 \[2, 3\]"),
        (torch.zeros(2, 3, dtype=torch.bool), r"torch.bool \[2, 3\]"),
    ],
)
def test_tensor_of_another_kind_is_refused(ids: Tensor, got: str) -> None:
    message = rf"token ids as an integer tensor \[samples, length\], got {got}"
    with pytest.raises(SecateurError, match=message):
        tokens_from_tensor(ids)


def test_mask_of_another_shape_is_refused() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(SecateurError, match=r"attention_mask \[2, 3\] as input_ids, got \[3, 2\]"):
        tokens_from_tensor(ids, torch.ones(3, 2))


def test_no_samples_are_refused() -> None:
    with pytest.raises(SecateurError, match="calibration is empty: token tensor holds no samples"):
        tokens_from_tensor(torch.zeros(0, 5, dtype=torch.long))
    with pytest.raises(SecateurError, match="calibration is empty: here holds no samples"):
        checked_tokens([], "here")


@pytest.mark.parametrize("length", [0, 1])
def test_short_sample_is_refused(length: int) -> None:
    samples = [torch.arange(3), torch.arange(length)]
    message = f"sample 1 of here is too short: expected at least 2 tokens, got {length}"
    with pytest.raises(SecateurError, match=message):
        checked_tokens(samples, "here")


@settings(deadline=None, max_examples=100)
@given(samples=SAMPLES, tokens_per_batch=st.integers(1, 30))
def test_batches_hold_all_samples_in_order(samples: list[Tensor], tokens_per_batch: int) -> None:
    batches = CalibrationTokens(tuple(samples), "test").batches(tokens_per_batch)
    assert all(batch.ndim == 2 and batch.dtype == torch.int64 for batch in batches)
    flat = [row.tolist() for batch in batches for row in batch]
    assert flat == [sample.tolist() for sample in samples]
    for batch in batches:
        assert batch.numel() <= tokens_per_batch or len(batch) == 1
    # No batch could have taken in the next one's first sample.
    for batch, following in pairwise(batches):
        same_length = batch.shape[1] == following.shape[1]
        assert not (same_length and batch.numel() + batch.shape[1] <= tokens_per_batch)


def test_digest_is_that_of_lengths_and_ids() -> None:
    samples = (torch.tensor([3, 1, 2]), torch.arange(20)[::4])
    digest = hashlib.sha256()
    for sample in samples:
        values = sample.tolist()
        digest.update(struct.pack(f"<{len(values) + 1}q", len(values), *values))
    assert CalibrationTokens(samples, "a").sha256() == digest.hexdigest()
    assert CalibrationTokens(samples, "b").sha256() == digest.hexdigest()


@pytest.mark.parametrize(
    "other", [[[1, 2, 3, 4]], [[3, 4], [1, 2]], [[1, 2], [3, 5]], [[1, 2, 3], [4]], [[1, 2]]]
)
def test_digest_tells_samples_apart(other: list[list[int]]) -> None:
    digests = {
        CalibrationTokens(tuple(torch.tensor(row) for row in rows), "test").sha256()
        for rows in ([[1, 2], [3, 4]], other)
    }
    assert len(digests) == 2


def test_vocabulary_is_checked() -> None:
    tokens = tokens_from_tensor(torch.tensor([[0, 5], [9, 3]]))
    tokens.check_vocabulary(10)
    message = (
        "token ids from 0 to 8, the model's vocabulary, but calibration sample 1 holds 9; "
        "was it made with another model's tokenizer"
    )
    with pytest.raises(SecateurError, match=message):
        tokens.check_vocabulary(9)
    negative = tokens_from_tensor(torch.tensor([[0, -1, 50]]))
    with pytest.raises(SecateurError, match="calibration sample 0 holds -1"):
        negative.check_vocabulary(10)
