import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.errors import SecateurError
from secateur.models.selection import matches, require_match, select_sites
from secateur.models.sites import WeightSite


class OddLinear(nn.Linear):
    """A linear under another class name."""


NAMES = [
    f"model.layers.{block}.{name}"
    for block in (0, 1, 10)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")
]


def make_sites() -> list[WeightSite]:
    return [
        WeightSite(
            name,
            OddLinear(2, 2) if name.endswith("down_proj") else nn.Linear(2, 2),
            "weight",
            stored_transposed=False,
        )
        for name in NAMES
    ]


SITES = make_sites()


LEFT_ALONE = {
    "lm_head": "outside the blocks (head or projection)",
    "model.layers.0.mlp.gate": "router or unknown kind of weight",
}


def selected(targets: list[str], ignore: list[str]) -> list[str]:
    return [site.name for site in select_sites(SITES, targets, ignore)]


def test_linear_stands_for_every_matrix() -> None:
    assert selected(["Linear"], []) == NAMES


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("model.layers.1.mlp.up_proj", ["model.layers.1.mlp.up_proj"]),
        ("OddLinear", [name for name in NAMES if name.endswith("down_proj")]),
        (r"re:.*q_proj", [name for name in NAMES if name.endswith("q_proj")]),
        (r"re:.*q_proj$", [name for name in NAMES if name.endswith("q_proj")]),
        (r"re:model\.layers\.1\.", NAMES[4:8]),
        (r"re:model\.layers\.1", NAMES[4:]),
        (r"re:.*\.(0|10)\.mlp", ["model.layers." + n for n in ("0.mlp.up_proj", "0.mlp.down_proj")]
            + ["model.layers." + n for n in ("10.mlp.up_proj", "10.mlp.down_proj")]),
        ("re:", NAMES),
    ],
)  # fmt: skip
def test_patterns(pattern: str, expected: list[str]) -> None:
    assert selected([pattern], []) == expected
    rest = [name for name in NAMES if name not in expected]
    if rest:
        assert selected(["Linear"], [pattern]) == rest


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "layers.0.mlp.up_proj",
        "model.layers.0",
        "linear",
        "model.layers.0.mlp.up_proj.weight",
        "re:q_proj",
        "re:layers",
        "re:.*Linear",
        "model.layers...mlp.up_proj",
        "",
    ],
)
def test_pattern_that_matches_nothing(pattern: str) -> None:
    assert not any(matches(site, pattern) for site in SITES)
    for kind, targets, ignore in (("target", [pattern], []), ("ignore", ["Linear"], [pattern])):
        message = f"{kind} {pattern!r} matches none of the model's 12 weight matrices"
        with pytest.raises(SecateurError, match=re.escape(message)):
            select_sites(SITES, targets, ignore)


@settings(deadline=None, max_examples=100)
@given(
    targets=st.lists(st.sampled_from([*NAMES, "Linear", "OddLinear"]), min_size=1, max_size=4),
    ignore=st.lists(st.sampled_from([*NAMES, "OddLinear"]), max_size=4),
)
def test_sites_keep_their_order_and_come_once(targets: list[str], ignore: list[str]) -> None:
    def wanted(patterns: list[str]) -> set[str]:
        return {
            site.name
            for site in SITES
            if {site.name, "Linear", type(site.module).__name__} & set(patterns)
        }

    ignored = {name for name in NAMES if name in ignore}
    ignored |= {name for name in NAMES if "OddLinear" in ignore and name.endswith("down_proj")}
    expected = [name for name in NAMES if name in wanted(targets) - ignored]
    if expected:
        assert selected(targets, ignore) == expected
    else:
        with pytest.raises(SecateurError, match="leave none of the model's 12 weight matrices"):
            selected(targets, ignore)


def test_iterators_are_read_once() -> None:
    chosen = select_sites(SITES, iter(["Linear"]), iter(["OddLinear"]))
    assert len(chosen) == 9


def test_ignoring_everything_is_refused() -> None:
    message = (
        r"targets \['OddLinear'\] less ignore \['Linear'\] leave none of the model's 12 weight "
        "matrices to work on"
    )
    with pytest.raises(SecateurError, match=message):
        select_sites(SITES, ["OddLinear"], ["Linear"])


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("model.layers.1.mlp.upproj", "nearest names: model.layers.1.mlp.up_proj, "),
        ("model.layer.10.self_attn.q_proj", "nearest names: model.layers.10.self_attn.q_proj, "),
        ("OddLiner", "nearest names: OddLinear"),
        ("re:^layers.1.mlp.down_proj$", "nearest names: model.layers.1.mlp.down_proj, "),
        ("###", "nearest names: " + ", ".join(NAMES[:3]) + "$"),
    ],
)
def test_nearest_names_are_shown(pattern: str, nearest: str) -> None:
    message = f"override target {re.escape(repr(pattern))} matches none of .*; {nearest}"
    with pytest.raises(SecateurError, match=message):
        require_match(SITES, pattern, "override target")


@pytest.mark.parametrize("pattern", ["re:(", "re:*", "re:[a"])
def test_regular_expression_that_cannot_be_read_is_refused(pattern: str) -> None:
    message = re.escape(f"{pattern!r} is not a regular expression after `re:`: ")
    for targets, ignore in (([pattern], []), (["Linear"], [pattern])):
        with pytest.raises(SecateurError, match=message):
            select_sites(SITES, targets, ignore)


def test_the_end_of_a_name_is_answered_with_the_pattern_for_it() -> None:
    message = r"'re:.*q_proj$' takes all that end so"
    with pytest.raises(SecateurError, match=re.escape(message)):
        select_sites(SITES, ["Linear"], ["q_proj"])
    assert any(matches(site, "re:.*q_proj$") for site in SITES)


@pytest.mark.parametrize("pattern", ["lm_head", "re:.*lm_head", r"re:.*mlp\.gate$"])
def test_what_is_left_alone_anyway_can_be_ignored(pattern: str) -> None:
    assert select_sites(SITES, ["Linear"], [pattern, "OddLinear"], LEFT_ALONE) == [
        site for site in SITES if not site.name.endswith("down_proj")
    ]


def test_a_target_that_is_left_alone_is_answered_with_the_reason() -> None:
    message = (
        "target 'lm_head' matches none of the model's 12 weight matrices: lm_head is left alone "
        "(outside the blocks (head or projection))"
    )
    with pytest.raises(SecateurError, match=re.escape(message)):
        select_sites(SITES, ["lm_head"], [], LEFT_ALONE)


@pytest.mark.parametrize("pattern", ["lm_hea", "head", "re:lm_head.weight", "mlp.gate"])
def test_a_name_of_nothing_is_refused_beside_what_is_left_alone(pattern: str) -> None:
    with pytest.raises(SecateurError, match="matches none of the model's 12 weight matrices"):
        select_sites(SITES, ["Linear"], [pattern], LEFT_ALONE)
