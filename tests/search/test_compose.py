import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from secateur.lowrank import Intervention
from secateur.progress import SilentProgress
from secateur.search.compose import Composition, Cuts, compose, published_order

A, B, C = Intervention("q", 0, 0.1), Intervention("mlp_in", 2, 0.1), Intervention("mlp_in", 2, 0.5)
GRID = [Intervention(m, b, f) for m in ("q", "mlp_out") for b in range(3) for f in (0.1, 0.6)]


def run(candidates: list[Intervention], gain: Callable[[Cuts], float]) -> Composition:
    best = max(published_order(candidates), key=lambda cut: gain((cut,)))
    return compose(candidates, best, gain, SilentProgress())


def test_published_order_is_top_block_first_and_small_fractions_first() -> None:
    cuts = [A, C, B, Intervention("q", 2, 0.9)]
    assert published_order(cuts) == [Intervention("q", 2, 0.9), B, C, A]


def test_accepts_what_improves_and_nothing_else() -> None:
    worth = {A: 2.0, B: 1.0, C: -1.0}
    found = run([A, B, C], lambda cuts: sum(worth[cut] for cut in cuts))
    assert found.cuts == (B, A)
    assert [step.cut for step in found.steps] == [B, A]
    assert found.num_trials == 3


def test_a_tie_is_no_improvement() -> None:
    found = run([A, B], lambda cuts: 0.5)
    assert found.cuts == ()
    assert found.steps == ()


def test_one_cut_of_a_matrix_replaces_the_other() -> None:
    found = run([B, C], lambda cuts: sum({B: 1.0, C: 2.0}[cut] for cut in cuts))
    assert found.cuts == (C,)
    assert [(step.cut, step.replaces) for step in found.steps] == [(B, None), (C, B)]


def test_begins_again_from_the_best_single_cut_where_greed_ends_below_it() -> None:
    # B comes first and blocks A, which alone would have been better.
    values = {(): 0.0, (B,): 1.0, (A,): 3.0, (B, A): 0.5, (A, B): 0.5, (A, C): 4.0, (C,): 0.1}
    found = run([A, B, C], lambda cuts: values.get(cuts, -1.0))
    assert found.cuts == (A, C)
    assert [step.cut for step in found.steps] == [A, C]
    assert found.num_trials == 3 + 2


@given(st.randoms(use_true_random=False), st.booleans())
def test_never_worse_than_dense_or_the_best_single_cut(rng: random.Random, with_nan: bool) -> None:
    known: dict[frozenset[Intervention], float] = {}

    def gain(cuts: Cuts) -> float:
        places = [(cut.matrix, cut.block) for cut in cuts]
        assert len(set(places)) == len(places)
        value = float("nan") if with_nan and cuts and rng.random() < 0.1 else rng.randint(-3, 3)
        return known.setdefault(frozenset(cuts), value)

    candidates = rng.sample(GRID, rng.randint(1, len(GRID)))
    singles = [gain((cut,)) for cut in candidates]
    best = max(
        published_order(candidates),
        key=lambda cut: -10.0 if gain((cut,)) != gain((cut,)) else gain((cut,)),
    )
    found = compose(candidates, best, gain, SilentProgress())
    value = gain(found.cuts)
    assert value >= gain(())
    assert all(value >= single for single in singles if single == single)
    scores = [gain(step.cuts) for step in found.steps]
    assert scores == sorted(set(scores))
    assert found.steps == () or found.steps[-1].cuts == found.cuts


def test_without_candidates_nothing_is_tried() -> None:
    found = compose([], A, lambda cuts: -float(len(cuts)), SilentProgress())
    assert found == Composition((), (), 0)
