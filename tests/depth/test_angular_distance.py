import math

import pytest
import torch
from torch import Tensor

from secateur.depth.angular_distance import AngularDistance, nearest_span
from secateur.errors import SecateurError


def states(num_places: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """[place, sample, length, width]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_places, 3, 4, 7, generator=generator).to(dtype)


def added(hidden: Tensor, batch: int = 3) -> AngularDistance:
    distance = AngularDistance()
    for place, samples in enumerate(hidden):
        for part in samples.split(batch):
            distance.add(place, part)
    return distance


def direct(before: Tensor, after: Tensor) -> float:
    x, y = before[:, -1].double(), after[:, -1].double()
    cosine = (x * y).sum(-1) / (x.square().sum(-1).sqrt() * y.square().sum(-1).sqrt())
    return sum(math.acos(float(c)) / math.pi for c in cosine) / len(cosine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_equals_the_formula_on_last_tokens(dtype: torch.dtype, length: int, batch: int) -> None:
    hidden = states(dtype=dtype)
    expected = [direct(hidden[i], hidden[i + length]) for i in range(5 - length)]
    assert added(hidden, batch).spans(length) == pytest.approx(expected, abs=1e-12)


def test_known_angles() -> None:
    x = torch.tensor([[[3.0, 4.0]]])
    y = torch.tensor([[[-4.0, 3.0]]])
    assert added(torch.stack([x, 7 * x, y, -y]), 1).spans(1) == pytest.approx(
        (0.0, 0.5, 1.0), abs=1e-7
    )


def test_other_tokens_do_not_count() -> None:
    hidden = states()
    changed = hidden.clone()
    changed[:, :, :-1] = 9.0
    assert added(hidden).spans(2) == added(changed).spans(2)


def test_what_was_added_may_be_written_over() -> None:
    hidden, distance = states(2), AngularDistance()
    expected = added(hidden).spans(1)
    buffer = hidden[0].clone()
    distance.add(0, buffer)
    buffer.copy_(hidden[1])
    distance.add(1, buffer)
    assert distance.spans(1) == expected


def test_the_nearest_span_and_its_bounds() -> None:
    distances = (0.1, 0.4, 0.3, 0.2, 0.3)
    assert nearest_span(distances, 2, 0, 6) == (0, 1)
    assert nearest_span(distances, 2, 1, 6) == (3, 4)
    assert nearest_span(distances, 2, 1, 4) == (2, 3)


def test_of_equal_distances_the_deeper_span() -> None:
    assert nearest_span((0.2, 0.1, 0.1, 0.3), 2, 0, 5) == (2, 3)


def test_refusals() -> None:
    with pytest.raises(SecateurError, match=r"\[batch, length, width\], got \[2, 3\]"):
        AngularDistance().add(0, torch.ones(2, 3))
    with pytest.raises(SecateurError, match=r"got \[1, 0, 3\]"):
        AngularDistance().add(0, torch.ones(1, 0, 3))
    with pytest.raises(SecateurError, match="place 0 next, got place 1"):
        AngularDistance().add(1, torch.ones(1, 2, 3))
    for length in (0, 5):
        with pytest.raises(SecateurError, match=f"span of 1 to 4 blocks, got {length}"):
            added(states()).spans(length)
    with pytest.raises(SecateurError, match="span of 1 to 0 blocks"):
        AngularDistance().spans(1)
    with pytest.raises(SecateurError, match="room for 3 blocks in a row, but only 2 may go"):
        nearest_span((0.1, 0.2, 0.3), 3, 1, 3)
    with pytest.raises(SecateurError, match=r"from blocks \[1\] on are not"):
        nearest_span((0.1, math.nan, 0.3), 1, 0, 3)
    broken = states()
    broken[2, 0, -1, 0] = math.inf
    with pytest.raises(SecateurError, match="finite hidden states after the block, 1 of 21"):
        added(broken).spans(1)
