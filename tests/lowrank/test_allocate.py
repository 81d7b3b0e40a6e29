from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import inputs, normal
from torch import Tensor

from secateur.errors import SecateurError
from secateur.lowrank import (
    Allocation,
    Spectrum,
    allocate_ranks,
    break_even_rank,
    loss_importance,
    split_rows,
    stack_rows,
    whiten,
    whitened_svd,
)

Choice = tuple[int | None, int, float]


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def choices(spectrum: Spectrum, granularity: int) -> list[Choice]:
    """(rank, parameters, loss) of all that a layer may get, from the definitions."""
    rows, columns = spectrum.shape
    energy = [float(value) ** 2 for value in spectrum.singular_values]
    found: list[Choice] = []
    for rank in range(granularity, min(rows, columns) + 1, granularity):
        cost = rank * (rows + columns)
        if cost < rows * columns:
            loss = spectrum.importance * sum(energy[rank:]) / sum(energy)
            found.append((rank, cost, loss))
    return [*found, (None, rows * columns, 0.0)]


def brute_force(spectra: list[Spectrum], budget: int, granularity: int) -> float:
    every = product(*(choices(spectrum, granularity) for spectrum in spectra))
    return min(sum(c[2] for c in pick) for pick in every if sum(c[1] for c in pick) <= budget)


def check(spectra: list[Spectrum], budget: int, granularity: int) -> Allocation:
    """All that is promised, but for optimality."""
    allocation = allocate_ranks(spectra, budget, granularity)
    parameters, loss = 0, 0.0
    for spectrum in spectra:
        rank = allocation.ranks[spectrum.name]
        (chosen,) = [c for c in choices(spectrum, granularity) if c[0] == rank]
        assert rank is None or rank <= break_even_rank(*spectrum.shape)
        parameters, loss = parameters + chosen[1], loss + chosen[2]
        # Nothing better fits into what is left.
        for _, cost, better in choices(spectrum, granularity):
            if better < chosen[2] - 1e-12:
                assert cost - chosen[1] > budget - allocation.parameters
    assert parameters == allocation.parameters <= budget
    assert loss == pytest.approx(allocation.loss, abs=1e-12)
    assert allocation.lower_bound <= allocation.loss + 1e-12
    return allocation


@st.composite
def layers(draw: st.DrawFn) -> Spectrum:
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    size = min(rows, columns)
    values = draw(st.lists(st.floats(0, 10), min_size=size, max_size=size))
    values = sorted(values, reverse=True)
    values[0] = max(values[0], 0.5)
    return Spectrum("layer", (rows, columns), doubles(*values), draw(st.floats(0.1, 10)))


@settings(max_examples=200, deadline=None)
@given(st.lists(layers(), min_size=1, max_size=4), st.integers(1, 3), st.floats(0, 1))
def test_near_the_optimum_of_brute_force(
    drawn: list[Spectrum], granularity: int, part: float
) -> None:
    spectra = [
        Spectrum(f"layer {i}", s.shape, s.singular_values, s.importance)
        for i, s in enumerate(drawn)
    ]
    least = sum(choices(s, granularity)[0][1] for s in spectra)
    most = sum(choices(s, granularity)[-1][1] for s in spectra)
    budget = round(least + part * (most - least))
    allocation = check(spectra, budget, granularity)
    optimum = brute_force(spectra, budget, granularity)
    assert allocation.lower_bound <= optimum + 1e-9 <= allocation.loss + 2e-9
    # One step on one layer's hull, a jump to dense at most, is what can be missing.
    largest = max(choices(s, granularity)[0][2] for s in spectra)
    assert allocation.loss - optimum <= largest + 1e-9


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.01, 10), min_size=6, max_size=6), min_size=2, max_size=3),
    st.integers(0, 6),
)
def test_optimal_where_all_steps_cost_the_same(
    energies: list[list[float]], extra_steps: int
) -> None:
    # 6 x 6 has break-even rank 3, and rank 3 is as dear as dense: ranks 1 and 2. The last four
    # components share what little is left, so that the jump to dense is the worst step of all.
    spectra = [
        Spectrum(
            f"layer {i}",
            (6, 6),
            doubles(*[(e + 1) ** 0.5 for e in sorted(es)[-2:][::-1]], *[1e-3] * 4),
        )
        for i, es in enumerate(energies)
    ]
    budget = 12 * (len(spectra) + min(extra_steps, len(spectra)))
    allocation = check(spectra, budget, 1)
    assert allocation.loss == pytest.approx(brute_force(spectra, budget, 1), abs=1e-12)


def test_rank_goes_where_it_gains_most() -> None:
    steep = Spectrum("steep", (64, 64), 0.5 ** torch.arange(64, dtype=torch.float64))
    flat = Spectrum("flat", (64, 64), 0.99 ** torch.arange(64, dtype=torch.float64))
    allocation = check([steep, flat], 40 * 128, 4)
    steep_rank, flat_rank = allocation.ranks["steep"], allocation.ranks["flat"]
    assert steep_rank is not None
    assert steep_rank <= 12
    assert flat_rank is None or flat_rank >= 24
    even = [s.losses()[20] for s in (steep, flat)]
    assert allocation.loss < 0.8 * sum(even)


def test_a_layer_that_factors_cannot_help_stays_dense() -> None:
    # Below break-even the flat layer would lose more than half of its output; it stays dense.
    flat = Spectrum("flat", (32, 32), torch.ones(32))
    steep = Spectrum("steep", (32, 32), 0.3 ** torch.arange(32, dtype=torch.float64))
    allocation = check([flat, steep], 32 * 32 + 6 * 64, 2)
    assert allocation.ranks == {"flat": None, "steep": 6}


def test_importance_decides_between_equals() -> None:
    values = 0.9 ** torch.arange(32, dtype=torch.float64)
    spectra = [Spectrum("a", (32, 32), values), Spectrum("b", (32, 32), values, 5.0)]
    ranks = check(spectra, 24 * 64, 1).ranks
    first, second = ranks["a"], ranks["b"]
    assert first is not None
    assert second is None or second > first


def test_equal_gains_go_to_the_layer_named_first() -> None:
    values = 0.5 ** torch.arange(32, dtype=torch.float64)
    spectra = [Spectrum(name, (32, 32), values) for name in "abc"]
    assert allocate_ranks(spectra, 13 * 64, 1).ranks == {"a": 5, "b": 4, "c": 4}
    assert allocate_ranks(spectra, 14 * 64, 1).ranks == {"a": 5, "b": 5, "c": 4}
    assert allocate_ranks(spectra, 14 * 64 + 63, 1).parameters == 14 * 64


def test_equal_gains_of_what_is_left_go_to_the_layer_named_first() -> None:
    # The best step, rank 2 of the important layer, costs 36 and does not fit into the last 12.
    values = 0.5 ** torch.arange(6, dtype=torch.float64)
    spectra = [Spectrum(name, (6, 6), values) for name in "ab"]
    spectra.append(Spectrum("dear", (6, 30), values, 100.0))
    allocation = check(spectra, 12 + 12 + 36 + 12, 1)
    assert allocation.ranks == {"a": 2, "b": 1, "dear": 1}
    # A third of the dear step would be the best use of the rest.
    energy = values.square() / values.square().sum()
    gain = 100 * float(energy[1]) / 36
    least = 2 * float(energy[1:].sum()) + 100 * float(energy[1:].sum()) - 12 * gain
    assert allocation.lower_bound == pytest.approx(least)


def test_ranks_are_multiples_and_cheap_layers_come_cheaper() -> None:
    values = 0.95 ** torch.arange(64, dtype=torch.float64)
    wide = Spectrum("wide", (64, 256), values)
    narrow = Spectrum("narrow", (64, 64), values)
    allocation = check([wide, narrow], 48 * 320 // 2 + 16 * 128, 16)
    assert all(rank is None or rank % 16 == 0 for rank in allocation.ranks.values())
    # The same loss a rank, at 320 and 128 parameters: the narrow one is worth its rank first.
    assert allocation.ranks["narrow"] is None


def test_budget_for_everything_and_for_nothing_more() -> None:
    values = 0.9 ** torch.arange(32, dtype=torch.float64)
    spectra = [Spectrum("a", (32, 48), values), Spectrum("b", (32, 32), values)]
    all_dense = allocate_ranks(spectra, 32 * 48 + 32 * 32, 4)
    assert all_dense.ranks == {"a": None, "b": None}
    assert (all_dense.loss, all_dense.lower_bound) == (0.0, 0.0)
    least = 4 * (80 + 64)
    assert allocate_ranks(spectra, least, 4).ranks == {"a": 4, "b": 4}
    with pytest.raises(SecateurError, match=r"at least 576 .*rank 4, .* all 2 layers\), got 575"):
        allocate_ranks(spectra, least - 1, 4)


def test_nothing_is_spent_without_gain() -> None:
    values = torch.zeros(32)
    values[:3] = 1.0
    spectra = [Spectrum("rank 3", (32, 32), values)]
    allocation = check(spectra, 32 * 32, 1)
    assert allocation.ranks == {"rank 3": 3}
    assert allocation.loss == 0.0


def test_a_layer_too_small_for_the_granularity_is_dense() -> None:
    spectra = [Spectrum("small", (16, 16), torch.ones(16))]
    assert allocate_ranks(spectra, 256, 16).ranks == {"small": None}
    with pytest.raises(SecateurError, match="at least 256 parameters"):
        allocate_ranks(spectra, 255, 16)


def test_many_layers_fill_the_budget_to_a_granule() -> None:
    shapes = [(256, 256), (128, 256), (768, 256), (256, 768)]
    spectra = [
        Spectrum(
            f"{block}.{i}",
            shape,
            torch.arange(1, min(shape) + 1, dtype=torch.float64)
            ** -(0.2 + 0.1 * ((block + i) % 7)),
        )
        for block in range(12)
        for i, shape in enumerate(shapes)
    ]
    dense = sum(s.shape[0] * s.shape[1] for s in spectra)
    for kept in (0.3, 0.6, 0.8, 0.95):
        allocation = check(spectra, int(kept * dense), 16)
        left = int(kept * dense) - allocation.parameters
        assert 0 <= left < 16 * 1024
        assert allocation.loss - allocation.lower_bound < 0.02 * allocation.loss + 1e-3


def test_importance_is_the_mean_square_of_what_errors_do_to_the_loss() -> None:
    gradients, outputs = normal(50, 7), normal(50, 7, seed=1)
    importance = loss_importance(
        float(gradients.square().sum()), float(outputs.square().sum()), 50, 7
    )
    # Errors as long as the mean output, in random directions.
    errors = normal(20000, 7, seed=2)
    size = (outputs.square().sum() / 50).sqrt()
    errors *= size / errors.norm(dim=1, keepdim=True)
    moved = (errors @ gradients.T).square().mean()
    # The mean of 20000 squares in 7 dimensions: within 1 %.
    assert importance == pytest.approx(float(moved), rel=0.03)


def test_importance_of_a_stack() -> None:
    # The loss of the stack at each rank is the sum of its matrices' relative errors, weighed.
    tokens = inputs(200, 12)
    weights, importances = [normal(8, 12, seed=1), 20 * normal(4, 12, seed=2)], [3.0, 0.5]
    whitening = whiten(tokens.T @ tokens)
    energies = [float((tokens @ weight.T).square().sum()) for weight in weights]
    each = [i / e for i, e in zip(importances, energies, strict=True)]
    whitened = whitened_svd(stack_rows(weights, each), whitening)
    spectrum = Spectrum("stack", (12, 12), whitened.svd.values, sum(importances))
    for rank in (2, 5, 9):
        parts = split_rows(whitened.factors(rank), [8, 4], each)
        errors = [
            float((tokens @ (weight - part.dense()).T).square().sum()) / energy
            for weight, part, energy in zip(weights, parts, energies, strict=True)
        ]
        loss = sum(i * e for i, e in zip(importances, errors, strict=True))
        assert spectrum.losses()[rank] == pytest.approx(loss)


def test_bad_importance() -> None:
    for energies in ((0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (1.0, float("inf"))):
        with pytest.raises(SecateurError, match="positive finite energies of gradient and output"):
            loss_importance(*energies, num_tokens=5, rows=3)
    for num_tokens, rows in ((0, 3), (5, 0)):
        with pytest.raises(SecateurError, match="expected tokens and rows, got"):
            loss_importance(1.0, 1.0, num_tokens, rows)


def test_bad_layers() -> None:
    good = Spectrum("a", (4, 4), torch.ones(4))
    with pytest.raises(SecateurError, match=r"different names, got \['a', 'a'\]"):
        allocate_ranks([good, good], 100, 1)
    with pytest.raises(SecateurError, match=r"different names, got \[\]"):
        allocate_ranks([], 100, 1)
    with pytest.raises(SecateurError, match="granularity of at least 1, got 0"):
        allocate_ranks([good], 100, 0)
    with pytest.raises(SecateurError, match=r"4 singular values of a \[4, 6\], got \[5\]"):
        Spectrum("a", (4, 6), torch.ones(5))
    for values in (doubles(1.0, 2.0), doubles(1.0, -1.0), doubles(float("inf"), 1.0)):
        with pytest.raises(SecateurError, match="finite singular values of a, descending"):
            Spectrum("a", (2, 6), values)
    for values in (doubles(float("nan"), 1.0, 0.5), doubles(3.0, 1.0, 2.0)):
        with pytest.raises(SecateurError, match="finite singular values of a, descending"):
            Spectrum("a", (3, 6), values)
    with pytest.raises(SecateurError, match="a has no output on the calibration tokens"):
        Spectrum("a", (2, 6), torch.zeros(2))
    for importance in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(SecateurError, match="positive finite importance of a, got"):
            Spectrum("a", (2, 6), torch.ones(2), importance)
