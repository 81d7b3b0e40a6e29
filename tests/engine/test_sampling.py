import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.engine.sampling import SamplingKind, SamplingRows, next_tokens

VOCABULARY = 7
ALL = SamplingKind(sampled=True, filtered=True, logprobs=True)


def rows(
    temperature: list[float],
    uniform: list[float],
    top_p: list[float] | None = None,
    top_k: list[int] | None = None,
    min_p: list[float] | None = None,
) -> SamplingRows:
    count = len(temperature)
    nothing = torch.zeros(count)
    return SamplingRows(
        torch.tensor(temperature),
        torch.tensor(top_p or [1.0] * count),
        torch.tensor(top_k or [0] * count),
        torch.tensor(min_p or [0.0] * count),
        torch.ones(count),
        nothing,
        nothing,
        torch.zeros(count, 1, dtype=torch.int32),
        torch.tensor(uniform),
    )


def reference(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float, u: float
) -> set[int]:
    """Tokens that may be drawn: more than one where `u` is within rounding of a border."""
    weights = [math.exp((value - max(logits)) / temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda index: -weights[index])
    kept = order[:top_k] if top_k else order
    total, nucleus = sum(weights[index] for index in kept), []
    before = 0.0
    for index in kept:
        if before < top_p * total:
            nucleus.append(index)
        before += weights[index]
    # The likeliest weighs 1.
    nucleus = [index for index in nucleus if weights[index] >= min_p]
    total = sum(weights[index] for index in nucleus)
    allowed, cumulated = set(), 0.0
    # Probabilities are fp32: each is off by a few units in its last place.
    slack = 8 * len(logits) * torch.finfo(torch.float32).eps
    for index in sorted(nucleus):
        low, cumulated = cumulated, cumulated + weights[index] / total
        if low - slack <= u < cumulated + slack:
            allowed.add(index)
    return allowed


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.floats(0.25, 3.0),
    st.sampled_from([0.3, 0.5, 0.77, 0.95, 1.0]),
    st.integers(0, VOCABULARY + 2),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    st.floats(0.0, 1.0, exclude_max=True, width=32),
)
def test_tokens_are_those_of_a_reference_in_fp64(
    seed: int, temperature: float, top_p: float, top_k: int, min_p: float, u: float
) -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2
    options = rows([temperature], [u], [top_p], [top_k], [min_p])
    tokens, _ = next_tokens(logits, options, ALL)
    values, exact = logits[0].double().tolist(), float(torch.tensor(temperature))
    assert int(tokens) in reference(values, exact, top_p, top_k, min_p, u)


def test_draws_have_the_probabilities_of_the_softmax() -> None:
    count = 20_000
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(count, -1)
    uniform = ((torch.arange(count) + 0.5) / count).tolist()
    tokens, _ = next_tokens(logits, rows([0.7] * count, uniform), SamplingKind(sampled=True))
    frequencies = torch.bincount(tokens, minlength=4).double() / count
    # Evenly spaced numbers: each frequency is off by a border at either end, plus fp32.
    expected = torch.softmax(torch.tensor([0.0, 1.0, -1.0, 2.0]).double() / 0.7, 0)
    assert (frequencies - expected).abs().max() <= 2.5 / count


@pytest.mark.parametrize("size", [1, 511, 512, 513, 2000])
def test_draws_from_a_large_vocabulary_fall_where_the_numbers_do(size: int) -> None:
    count = 3001
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(size))
    logits[:, size // 2 :: 3] = -torch.inf if size > 1 else 0.0
    uniform = (torch.arange(count) + 0.5) / count
    options = rows([1.0] * count, uniform.tolist(), [1.0 - 1e-7] * count)
    cumulated = torch.softmax(logits.double(), -1)[0].cumsum(0)
    for kind in (SamplingKind(sampled=True), SamplingKind(sampled=True, filtered=True)):
        tokens, _ = next_tokens(logits.expand(count, -1), options, kind)
        assert torch.isfinite(logits[0, tokens]).all()
        assert bool((tokens.diff() >= 0).all())
        # Each probability is fp32, and so is the number.
        slack = 4 * torch.finfo(torch.float32).eps
        assert bool((cumulated[tokens] > uniform.double() - slack).all())
        below = torch.where(tokens > 0, cumulated[tokens - 1], 0.0)
        assert bool((below <= uniform.double() + slack).all())


def test_rows_do_not_depend_on_each_other_nor_on_what_others_need() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 300, generator=generator)
    options = rows(
        [0.0, 1.0, 1.3, 0.6, 0.9],
        [0.5, 0.1, 0.999, 0.3, 0.7],
        [1.0, 1.0, 1.0, 0.5, 0.9],
        [0, 0, 0, 0, 4],
        [0, 0, 0, 0, 0.1],
    )
    together, scores = next_tokens(logits, options, ALL)
    assert scores is not None
    kinds = [SamplingKind(), *[SamplingKind(sampled=True)] * 2, *[ALL] * 2]
    for row, kind in enumerate(kinds):
        alone = SamplingRows(*(getattr(options, name)[row : row + 1] for name in vars(options)))
        token, _ = next_tokens(logits[row : row + 1], alone, kind)
        assert token.item() == together[row].item()


def test_ties_go_to_the_lowest_token() -> None:
    tokens, _ = next_tokens(torch.tensor([[1.0, 3.0, 3.0]]), rows([0.0], [0.9]), ALL)
    assert tokens.tolist() == [1]


def test_the_largest_random_number_draws_a_token_that_has_a_probability() -> None:
    largest = 1 - 2**-24
    logits = torch.cat((torch.zeros(1, 50_000), torch.full((1, 500), -torch.inf)), 1)
    tokens, _ = next_tokens(logits, rows([1.0], [largest]), ALL)
    assert tokens.item() == 49_999


def test_logprobs_are_those_at_temperature_one() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    tokens, scores = next_tokens(logits, rows([0.0, 0.3, 2.0], [0.2, 0.4, 0.6]), ALL)
    expected = torch.log_softmax(logits.double(), -1)
    assert scores is not None
    chosen = expected.gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(scores.chosen.double(), chosen, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.top.double(), expected.topk(20).values, rtol=0, atol=1e-5)
    assert scores.top_tokens.equal(expected.topk(20).indices)


@pytest.mark.parametrize("kind", [SamplingKind(), SamplingKind(sampled=True)])
def test_logprobs_are_left_out_where_nobody_asks(kind: SamplingKind) -> None:
    assert next_tokens(torch.zeros(1, 3), rows([1.0], [0.0]), kind)[1] is None
