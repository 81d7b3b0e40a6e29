import math

import pytest
import torch

from secateur.depth.token_loss import TokenLoss
from secateur.errors import SecateurError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 7, 5), (2, 33, 19)])
def test_equals_log_softmax_in_double_precision(
    dtype: torch.dtype, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A few rows at a time, so that parts are put together.
    monkeypatch.setattr("secateur.depth.token_loss._MAX_FP32_LOGITS", 4 * shape[2])
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(shape, generator=generator)).to(dtype)
    ids = torch.randint(shape[2], shape[:2], generator=generator)
    total, count = 0.0, 0
    for sample, tokens in zip(logits.double(), ids.tolist(), strict=True):
        for row, token in zip(sample, tokens[1:], strict=False):
            total += math.log(float(row.exp().sum())) - float(row[token])
            count += 1
    loss = TokenLoss()
    for part in range(shape[0]):
        loss.add(logits[part : part + 1], ids[part : part + 1])
    # fp32 logarithms of values up to 20.
    assert loss.value() == pytest.approx(total / count, abs=20 * 2**-22)


def test_even_odds_lose_the_logarithm_of_the_vocabulary() -> None:
    loss = TokenLoss()
    loss.add(torch.zeros(2, 5, 8), torch.zeros(2, 5, dtype=torch.int64))
    assert loss.value() == pytest.approx(math.log(8), abs=1e-6)


def test_what_is_not_finite_stays_so() -> None:
    loss = TokenLoss()
    loss.add(torch.full((1, 3, 4), math.nan), torch.zeros(1, 3, dtype=torch.int64))
    assert math.isnan(loss.value())


def test_refusals() -> None:
    with pytest.raises(SecateurError, match=r"got \[1, 3, 4\] for \[1, 2\]"):
        TokenLoss().add(torch.zeros(1, 3, 4), torch.zeros(1, 2, dtype=torch.int64))
    alone = TokenLoss()
    alone.add(torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(SecateurError, match="at least two tokens"):
        alone.value()
