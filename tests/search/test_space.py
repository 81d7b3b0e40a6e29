from typing import Any

import pytest
from families import tiny_model

from secateur.errors import SecateurError
from secateur.lowrank import FRACTIONS
from secateur.models.inventory import take_inventory
from secateur.search import SearchOptions
from secateur.search.space import SearchSpace, rank_of, search_space

ATTENTION, GATED = ("q", "k", "v", "o"), ("mlp_in", "mlp_up", "mlp_out")


def space(family: str, num_blocks: int = 2, **options: Any) -> SearchSpace:
    inventory = take_inventory(tiny_model(family, num_blocks))
    return search_space(inventory, SearchOptions(**options))


@pytest.mark.parametrize(
    ("family", "types"),
    [
        ("llama", (*ATTENTION, *GATED)),
        ("gemma3", (*ATTENTION, *GATED)),
        ("gptj", (*ATTENTION, "mlp_in", "mlp_out")),
        ("opt", (*ATTENTION, "mlp_in", "mlp_out")),
        ("gpt2", ("qkv", "o", "mlp_in", "mlp_out")),
        ("phi3", ("qkv", "o", "mlp_in", "mlp_out")),
        ("mixtral", ATTENTION),
    ],
)
def test_every_family_has_its_types_in_every_block(family: str, types: tuple[str, ...]) -> None:
    found = space(family)
    assert list(found.sites) == [(name, block) for block in range(2) for name in types]


def test_the_published_grid_without_cuts_of_no_rank() -> None:
    found = space("llama")
    # Full ranks: 32, and 16 of k and v: fractions below 1/32 and 1/16 leave nothing.
    assert [cut.fraction for cut in found.cuts["q", 0]] == [0.9, 0.8, 0.6, 0.2, 0.1, 0.05]
    assert [cut.fraction for cut in found.cuts["v", 1]] == [0.9, 0.8, 0.6, 0.2, 0.1]
    assert [rank_of(cut, found.sites["q", 0]) for cut in found.cuts["q", 0]] == [
        28,
        25,
        19,
        6,
        3,
        1,
    ]
    assert found.notes == (
        "The fraction 0.05 leaves no rank in matrices of type k, v: not tried there.",
        "The fraction 0.01 leaves no rank in matrices of type q, k, v, o, mlp_in, mlp_up, "
        "mlp_out: not tried there.",
    )
    assert SearchOptions().fractions == FRACTIONS


def test_narrowed_by_options_and_by_places() -> None:
    found = space("llama", types=("mlp_out", "q"), blocks=(1,), fractions=(0.1, 0.9))
    assert list(found.sites) == [("q", 1), ("mlp_out", 1)]
    assert [cut.fraction for cut in found.cuts["q", 1]] == [0.9, 0.1]
    assert list(found.narrowed({("mlp_out", 1)}).cuts) == [("mlp_out", 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"types": ("q", "mlp")}, "expected matrix types out of q, k, v, .* got 'mlp'"),
        ({"types": ()}, "expected at least one of types, got none"),
        ({"types": ("q", "q")}, r"expected each of types once, got \['q', 'q'\]"),
        ({"blocks": (-1,)}, "expected blocks from 0, got -1"),
        ({"blocks": (0, 2)}, "expected blocks from 0 to 1, got 2"),
        ({"blocks": ()}, "expected at least one of blocks, got none"),
        ({"fractions": (0.5, 1.0)}, "expected kept fractions above 0 and below 1, got 1.0"),
        ({"fractions": (0.0,)}, "expected kept fractions above 0 and below 1, got 0.0"),
        ({"fractions": (float("nan"),)}, "expected kept fractions above 0 and below 1, got nan"),
        ({"fractions": (0.5, 0.5)}, "expected each of fractions once"),
        ({"fractions": ()}, "expected at least one of fractions, got none"),
        ({"fractions": (0.01,)}, "fractions that leave them a rank, but .* of full rank 16"),
        ({"filter": 0}, "expected filter of at least 1, got 0"),
        ({"batch_size": 0}, "expected batch_size of at least 1, got 0"),
        ({"analyse_items": -1}, "expected analyse_items of at least 0, got -1"),
        ({"max_new_tokens": 0}, "expected max_new_tokens of at least 1, got 0"),
        ({"compose": "some"}, "expected compose out of improving, all, none, got 'some'"),
        ({"validation_fraction": 1.0}, "expected a validation fraction above 0 and below 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        space("llama", **options)


def test_types_that_a_model_does_not_have() -> None:
    with pytest.raises(
        SecateurError, match=r"this model has, qkv, o, mlp_in, mlp_out, got q, mlp_up"
    ):
        space("gpt2", types=("q", "o", "mlp_up"))
