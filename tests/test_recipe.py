import errno
import json
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.recipe import (
    DropBlocksStage,
    FactorStage,
    LayerOverride,
    PruneStage,
    Recipe,
    Sparsity,
    as_recipe,
    load_recipe,
    parse_sparsity,
    recipe_from_dict,
    recipe_from_text,
)
from secateur.recipe.prune_stage import Method, Update
from secateur.recipe.reconstruction import Reconstruction

EXAMPLES = Path(__file__).parents[1] / "examples" / "recipes"

# JSON text is kept from what YAML reads as something else: characters beyond 16 bits and numbers
# with an exponent but no point. Tests of their own below are expected to fail on those.
NAMES = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=8)
FRACTIONS = st.floats(1e-4, 1, exclude_max=True)
DAMPINGS = st.floats(1e-4, 1e15)


@st.composite
def patterns(draw: st.DrawFn) -> dict[str, Any]:
    """`pattern` and `sparsity` that agree, as a person may give them."""
    if draw(st.booleans()):
        return {"sparsity": draw(FRACTIONS)}
    group = draw(st.integers(2, 64))
    keep = draw(st.integers(1, group - 1))
    return {
        "pattern": f"{keep}:{group}",
        "sparsity": draw(st.sampled_from([None, 1.0 - keep / group])),
    }


TUNINGS = st.builds(
    Reconstruction,
    preset=st.sampled_from([None, "best", "wanda++"]),
    rounds=st.none() | st.integers(1, 100),
    samples_per_round=st.sampled_from([None, "all", 1, 77]),
    rate=st.none() | DAMPINGS,
    optimizer=st.sampled_from([None, "adam", "rmsprop"]),
    granularity=st.sampled_from([None, "block", "halves"]),
    parameters=st.sampled_from([None, "all", "matrices", "matrices_and_vectors"]),
    held_out=st.none() | FRACTIONS,
    autocast=st.none() | st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


@st.composite
def prune_stages(draw: st.DrawFn) -> PruneStage:
    values = draw(patterns())
    if "pattern" not in values:
        values["comparison_group"] = draw(st.sampled_from([None, "row", "matrix", "block"]))
    overrides = draw(
        st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=2), patterns()), max_size=2)
    )
    method = draw(st.sampled_from(get_args(Method)))
    if method in ("rgs", "wanda++", "gblm"):
        values["alpha"] = draw(DAMPINGS)
    if method in ("rgs", "wanda++"):
        values["norm"] = draw(st.sampled_from(["summed", "averaged"]))
    return PruneStage(
        method=method,
        update=draw(st.sampled_from([None, *get_args(Update)])),
        reconstruct=draw(st.none() | TUNINGS),
        targets=tuple(draw(st.lists(NAMES, min_size=1, max_size=3))),
        ignore=tuple(draw(st.lists(NAMES, max_size=3))),
        overrides=tuple(LayerOverride(targets=tuple(t), **value) for t, value in overrides),
        block_size=draw(st.integers(1, 10**6)),
        damping=draw(DAMPINGS),
        min_expert_tokens=draw(st.integers(1, 10**6)),
        calibrate_all_experts=draw(st.booleans()),
        **values,
    )


def drop_stages() -> st.SearchStrategy[DropBlocksStage]:
    indices = st.lists(st.integers(0, 200), min_size=1, max_size=5, unique=True)
    return st.one_of(
        st.builds(
            DropBlocksStage,
            count=st.integers(1, 100),
            criterion=st.sampled_from(["block_influence", "relative_magnitude", "perplexity"]),
            granularity=st.sampled_from(["block", "attention", "mlp"]),
            remeasure=st.booleans(),
            protect_first=st.integers(0, 9),
            protect_last=st.integers(0, 9),
            trace_loss=st.booleans(),
        ),
        st.builds(DropBlocksStage, blocks=indices.map(tuple), trace_loss=st.booleans()),
    )


RECIPES = st.builds(
    Recipe,
    stages=st.lists(st.one_of(prune_stages(), drop_stages()), min_size=1, max_size=3).map(tuple),
)


UNREADABLE = ["x", "", ":", "2:", ":4", "2", "2:4:8", "-2:4", "2.0:4", "2 : 4", "2/4"]
UNREADABLE += ["Unstructured", "²:4", "2:4 ", "+2:4", "0x2:4"]


def with_stage(**stage: Any) -> dict[str, Any]:
    return {"stages": [{"stage": "prune", "sparsity": 0.5, **stage}]}


def drop(**stage: Any) -> dict[str, Any]:
    return {"stages": [{"stage": "drop_blocks", **stage}]}


def text_of(values: Any) -> str:
    return yaml.safe_dump(values)


@settings(deadline=None, max_examples=100)
@given(recipe=RECIPES)
def test_round_trip_through_text(recipe: Recipe) -> None:
    assert recipe_from_text(recipe.to_yaml()) == recipe
    assert recipe_from_text(recipe.to_json()) == recipe
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert recipe_from_dict(json.loads(recipe.to_json())) == recipe
    assert recipe_from_dict(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize("name", ["\u2028", "\x85", "\t", "line\nbreak", "#", "- a", "0x10", "~"])
def test_round_trip_of_odd_names(name: str) -> None:
    recipe = Recipe(stages=(PruneStage(sparsity=0.5, targets=(name,)),))
    assert recipe_from_text(recipe.to_yaml()) == recipe
    assert recipe_from_text(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(PruneStage(sparsity=0.5, targets=("re:.*\U0001f600",)), id="emoji"),
        pytest.param(PruneStage(sparsity=1e-5), id="sparsity"),
        pytest.param(PruneStage(sparsity=0.5, damping=1e-6), id="damping"),
    ],
)
def test_json_is_read_as_json(stage: PruneStage) -> None:
    recipe = Recipe(stages=(stage,))
    assert recipe_from_text(recipe.to_yaml()) == recipe
    assert recipe_from_text(recipe.to_json()) == recipe


@pytest.mark.parametrize("number", ["1e-3", "5e-1", "1E-2"])
def test_numbers_may_have_an_exponent(number: str) -> None:
    text = f"stages: [{{stage: prune, sparsity: 0.5, damping: {number}}}]"
    expected = Recipe(stages=(PruneStage(sparsity=0.5, damping=float(number)),))
    assert recipe_from_text(text) == expected


def test_file(tmp_path: Path) -> None:
    recipe = Recipe(stages=(DropBlocksStage(count=2), PruneStage(pattern="2:4", ignore=("ï",))))
    for text in (recipe.to_yaml(), recipe.to_json()):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        assert load_recipe(path) == load_recipe(str(path)) == recipe


@pytest.mark.parametrize("name", ["recipe.json", "recipe.yaml"])
def test_file_with_a_byte_order_mark(tmp_path: Path, name: str) -> None:
    recipe = Recipe(stages=(DropBlocksStage(count=2),))
    (tmp_path / name).write_text(recipe.to_json(), encoding="utf-8-sig")
    assert load_recipe(tmp_path / name) == recipe


def test_file_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "recipe.yaml").write_text("stages: []")
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SecateurError, match=r"recipe\.yaml cannot be read: Permission denied"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", ["mine.json", "mine.yaml"])
def test_values_too_deep_are_refused(name: str) -> None:
    with pytest.raises(SecateurError, match=rf"{name} is not a valid recipe: too deep"):
        recipe_from_text("[" * 100_000, name)
    with pytest.raises(SecateurError, match=r"mine\.yaml is neither YAML nor JSON: maximum recur"):
        recipe_from_text("a: " + "[" * 3000, "mine.yaml")


@pytest.mark.parametrize("name", ["mine.json", "mine.yaml"])
def test_a_key_of_json_stands_once(name: str) -> None:
    text = '{"stages": [{"stage": "prune", "pattern": "2:4", "pattern": "4:8"}]}'
    with pytest.raises(SecateurError, match=rf"{name} is not .*: the key pattern stands twice"):
        recipe_from_text(text, name)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(SecateurError, match=f"expected a recipe file, but {path} is not a file"):
        load_recipe(path)


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00stages")
    with pytest.raises(SecateurError, match=r"recipe\.yaml"):
        load_recipe(path)


def test_defaults() -> None:
    (stage,) = recipe_from_text("stages: [{stage: prune, sparsity: 0.5}]").stages
    assert stage == PruneStage(sparsity=0.5)
    assert isinstance(stage, PruneStage)
    assert (stage.method, stage.pattern, stage.sparsity) == ("wanda", "unstructured", 0.5)
    assert (stage.targets, stage.ignore, stage.overrides) == (("Linear",), (), ())
    assert (stage.block_size, stage.damping, stage.min_expert_tokens) == (128, 0.01, 32)


@pytest.mark.parametrize(
    ("method", "published"),
    [
        ("magnitude", "matrix"),
        ("wanda", "row"),
        ("sparsegpt", "block"),
        ("ria", "matrix"),
        ("gblm", "row"),
        ("rgs", "row"),
        ("wanda++", "row"),
        ("admm", "matrix"),
        ("best-2:4", "matrix"),
    ],
)
def test_comparison_group_is_the_published_one_unless_said(method: Any, published: str) -> None:
    stage = PruneStage(method=method, sparsity=0.5)
    assert stage.comparison_group is None
    assert stage.resolved_comparison_group() == published
    for asked in ("row", "matrix", "block"):
        chosen = PruneStage(method=method, sparsity=0.5, comparison_group=asked)
        assert chosen.resolved_comparison_group() == asked


def test_calibration_is_needed_by_all_but_magnitude_and_named_blocks() -> None:
    magnitude = PruneStage(method="magnitude", sparsity=0.5)
    named = DropBlocksStage(blocks=(0,))
    assert not Recipe(stages=(magnitude, named)).needs_calibration
    for stage in (
        PruneStage(sparsity=0.5),
        PruneStage(method="sparsegpt", sparsity=0.5),
        PruneStage(method="best-2:4", pattern="2:4"),
        PruneStage(method="magnitude", sparsity=0.5, swaps=1),
        PruneStage(method="magnitude", sparsity=0.5, update="least_squares"),
        PruneStage(method="magnitude", sparsity=0.5, reconstruct=Reconstruction()),
        DropBlocksStage(count=1),
    ):
        assert Recipe(stages=(magnitude, stage)).needs_calibration


@settings(deadline=None, max_examples=100)
@given(group=st.integers(2, 1000), data=st.data())
def test_keep_and_group_say_how_many_go(group: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, group - 1))
    sparsity = parse_sparsity(f"{keep}:{group}", None)
    assert sparsity == Sparsity(fraction=1.0 - keep / group, keep=keep, group=group)
    assert (sparsity.is_grouped, sparsity.name) == (True, f"{keep}:{group}")
    assert parse_sparsity(f"{keep}:{group}", (group - keep) / group) == sparsity


def test_unstructured_sparsity() -> None:
    sparsity = parse_sparsity("unstructured", 0.3)
    assert sparsity == Sparsity(fraction=0.3)
    assert not sparsity.is_grouped


@pytest.mark.parametrize(
    "fraction", [None, 0.0, 1.0, -0.5, 1.5, 50.0, float("nan"), float("inf"), float("-inf")]
)
def test_unstructured_without_a_fraction_between_is_refused(fraction: float | None) -> None:
    message = (
        "unstructured sparsity needs `sparsity`, the fraction of weights to remove, above 0 and "
        f"below 1; got {fraction}"
    )
    with pytest.raises(SecateurError, match=re.escape(message)):
        parse_sparsity("unstructured", fraction)
    if fraction is not None:
        with pytest.raises(SecateurError, match=re.escape(message)):
            recipe_from_text(text_of(with_stage(sparsity=fraction)))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("0:4", "pattern 0:4 would remove every weight; keep at least one"),
        ("0:0", "pattern 0:0 would remove every weight"),
        ("2:0", "pattern 2:0 would remove every weight"),
        ("4:4", "pattern 4:4 keeps 4 of every 4 and would remove nothing; keep fewer"),
        ("5:4", "pattern 5:4 keeps 5 of every 4 and would remove nothing"),
        *[
            (bad, f"expected pattern `unstructured` or `keep:group` such as `2:4`, got '{bad}'")
            for bad in UNREADABLE
        ],
    ],
)
def test_pattern_that_cannot_be_is_refused(pattern: str, message: str) -> None:
    for fraction in (None, 0.5):
        with pytest.raises(SecateurError, match=re.escape(message)):
            parse_sparsity(pattern, fraction)
    for values in (
        {"stages": [{"stage": "prune", "pattern": pattern}]},
        with_stage(overrides=[{"targets": ["a"], "pattern": pattern}]),
    ):
        with pytest.raises(SecateurError, match=re.escape(message)):
            recipe_from_text(text_of(values))


@pytest.mark.parametrize(
    ("pattern", "fraction", "implied"),
    [
        ("1:4", 0.25, "0.75"),
        ("1:3", 0.667, "0.6667"),
        *[("2:4", fraction, "0.5") for fraction in (0.6, 1.0, 0.0, 50.0, -0.5)],
    ],
)
def test_sparsity_that_contradicts_the_pattern_is_refused(
    pattern: str, fraction: float, implied: str
) -> None:
    message = (
        f"pattern {pattern} removes {implied} of the weights, but sparsity says {fraction:.4g}; "
        "leave `sparsity` out with a keep:group pattern"
    )
    with pytest.raises(SecateurError, match=re.escape(message)):
        parse_sparsity(pattern, fraction)
    with pytest.raises(SecateurError, match=re.escape(message)):
        recipe_from_text(text_of(with_stage(pattern=pattern, sparsity=fraction)))


def test_sparsity_that_is_not_a_number_contradicts_every_pattern() -> None:
    with pytest.raises(SecateurError):
        parse_sparsity("2:4", float("nan"))


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "1:16"])
def test_pattern_needs_no_quotes(pattern: str) -> None:
    (stage,) = recipe_from_text(f"stages:\n  - stage: prune\n    pattern: {pattern}\n").stages
    assert stage == PruneStage(pattern=pattern)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"stage": []}, "stages.0.stage: expected one of prune, factor, drop_blocks, recover,"),
        ({**with_stage(), "extra": None}, "extra: unknown key; known are version, stages"),
        ({1: 2}, "1: unknown key"),
        (with_stage(sparsty=0.5), "stages.0.sparsty: unknown key; known are stage, method, "),
        (with_stage(Ignore=[]), "stages.0.Ignore: unknown key; known are stage, method, "),
        (with_stage(count=1), "stages.0.count: unknown key; known are stage, method, "),
        (
            with_stage(overrides=[{"targets": ["a"], "sparsity": 0.1, "x": 1}]),
            "stages.0.overrides.0.x: unknown key; known are targets, pattern, sparsity",
        ),
        (drop(n=1), "stages.0.n: unknown key; known are stage, criterion, count, blocks"),
        ({**with_stage(), "version": 3}, "version: expected one of 1, 2, got 3"),
        ({**with_stage(), "version": True}, "version: expected one of 1, 2, got True"),
        ({**with_stage(), "version": "1"}, "version: expected one of 1, 2, got '1'"),
        ({"version": 1}, "stages: is missing"),
        ({"stages": []}, "a recipe needs at least one stage"),
        ({"stages": None}, "stages: expected a list, got None"),
        ({"stages": "prune"}, "stages: expected a list, got 'prune'"),
        ({"stages": {"stage": "prune"}}, "stages: expected a list, got {'stage': 'prune'}"),
        ({"stages": ["prune"]}, "stages.0: expected keys and values, got 'prune'"),
        (
            {"stages": [{"stage": "prun"}]},
            "stages.0.stage: expected one of prune, factor, drop_blocks, recover, inherit, "
            "got 'prun'",
        ),
        (
            {"stages": [{"count": 1}]},
            "stages.0.stage: is missing; one of prune, factor, drop_blocks, recover, inherit",
        ),
        (
            {"stages": [*with_stage()["stages"], {"stage": "prune"}]},
            "stages.1: unstructured sparsity needs `sparsity`",
        ),
        (
            with_stage(method="obs"),
            "stages.0.method: expected one of magnitude, wanda, sparsegpt, ria, gblm, rgs, "
            "wanda++, admm, best-2:4, got 'obs'",
        ),
        (with_stage(method=None), "stages.0.method: expected one of magnitude, wanda, sparsegpt, "),
        (with_stage(targets="Linear"), "stages.0.targets: expected a list, got 'Linear'"),
        (with_stage(targets=[]), "stages.0: `targets` must name at least one layer"),
        (with_stage(targets=["a", 1]), "stages.0.targets.1: expected text, got 1"),
        (with_stage(ignore=None), "stages.0.ignore: expected a list, got None"),
        (with_stage(pattern=4), "stages.0.pattern: expected text, got 4"),
        (with_stage(block_size=0), "stages.0: expected block_size of at least 1, got 0"),
        (with_stage(block_size=1.5), "stages.0.block_size: expected a whole number, got 1.5"),
        (with_stage(block_size=True), "stages.0.block_size: expected a whole number, got True"),
        (with_stage(damping=0), "stages.0: expected damping above 0, got 0.0"),
        (with_stage(damping=-0.1), "stages.0: expected damping above 0, got -0.1"),
        (with_stage(damping=float("nan")), "stages.0: expected damping above 0, got nan"),
        (with_stage(damping=None), "stages.0.damping: expected float, got None"),
        (
            with_stage(min_expert_tokens=0),
            "stages.0: expected min_expert_tokens of at least 1, got 0",
        ),
        (with_stage(alpha=1.0), "stages.0: alpha is of scores by gradients (rgs, wanda++, gblm)"),
        (with_stage(norm="averaged"), "stages.0: norm is of the regional gradient score (rgs, "),
        (
            with_stage(method="gblm", norm="averaged"),
            "stages.0: norm is of the regional gradient score (rgs, wanda++), not of gblm",
        ),
        (
            with_stage(method="rgs", alpha=-1.0),
            "stages.0: expected alpha of at least 0, got -1.0",
        ),
        (
            with_stage(method="rgs", norm="mean"),
            "stages.0.norm: expected one of summed, averaged, got 'mean'",
        ),
        (
            with_stage(update="exact"),
            "stages.0.update: expected one of none, least_squares, conjugate_gradient, admm, "
            "sparsegpt, got 'exact'",
        ),
        (with_stage(swaps=-1), "stages.0: expected swaps of at least 0, got -1"),
        (
            with_stage(swaps=1, comparison_group="block"),
            "stages.0: swaps trade weights within a row; with comparison_group block",
        ),
        (
            with_stage(method="sparsegpt", swaps=1),
            "stages.0: swaps trade weights within a row; with comparison_group block",
        ),
        *[
            (
                with_stage(**chain, reconstruct={"preset": "published"}),
                "stages.0: reconstruct: frozen_mask false (as in the preset published) chooses "
                "masks anew by score alone: it goes with magnitude, wanda, ria, gblm, rgs and "
                f"wanda++, without swaps and update, not with {words}",
            )
            for chain, words in (
                ({"method": "best-2:4"}, "best-2:4"),
                ({"method": "rgs", "swaps": 2}, "rgs, swaps 2"),
                ({"method": "wanda++", "update": "admm"}, "wanda++, update admm"),
            )
        ],
        *[
            (with_stage(reconstruct=options), f"stages.0.reconstruct{fault}")
            for options, fault in (
                ({"rounds": 0}, ": reconstruct: expected rounds of at least 1, got 0"),
                ({"samples_per_step": 0}, ": reconstruct: expected samples_per_step of at"),
                ({"samples_per_round": 0}, ": reconstruct: expected samples_per_round of at"),
                ({"samples_per_round": "some"}, ".samples_per_round: expected "),
                ({"rate": 0}, ": reconstruct: expected a rate above 0, got 0.0"),
                ({"held_out": 1}, ": reconstruct: expected held_out of at least 0 and below 1"),
                ({"seed": -1}, ": reconstruct: expected 0 <= seed < 2^32, got -1"),
                ({"preset": "mine"}, ".preset: expected one of best, wanda++, published, got"),
                ({"learning_rate": 1}, ".learning_rate: unknown key; known are preset, rounds"),
            )
        ],
        (with_stage(sparsity="half"), "stages.0.sparsity: expected float, got 'half'"),
        (with_stage(sparsity=True), "stages.0.sparsity: expected float, got True"),
        (
            with_stage(comparison_group="column"),
            "stages.0.comparison_group: expected one of row, matrix, block, got 'column'",
        ),
        (
            with_stage(pattern="2:4", comparison_group="row"),
            "stages.0: comparison_group is for unstructured sparsity; with pattern 2:4 weights "
            "compete within their group",
        ),
        (with_stage(overrides={}), "stages.0.overrides: expected a list, got {}"),
        (with_stage(overrides=[{"sparsity": 0.1}]), "stages.0.overrides.0.targets: is missing"),
        (
            with_stage(overrides=[{"targets": [], "sparsity": 0.1}]),
            "stages.0.overrides.0: override: `targets` must name at least one layer",
        ),
        (
            with_stage(overrides=[{"targets": ["a"]}]),
            "stages.0.overrides.0: unstructured sparsity needs `sparsity`",
        ),
        (drop(), "stages.0: drop_blocks needs either `count` or `blocks`, and not both"),
        (
            drop(count=1, blocks=[1]),
            "stages.0: drop_blocks needs either `count` or `blocks`, and not both",
        ),
        (
            drop(blocks=[3, 1, 3]),
            "stages.0: drop_blocks: `blocks` must be distinct 0-based indices, got [3, 1, 3]",
        ),
        (
            drop(blocks=[-1]),
            "stages.0: drop_blocks: `blocks` must be distinct 0-based indices, got [-1]",
        ),
        (drop(blocks=[1.0]), "stages.0.blocks.0: expected a whole number, got 1.0"),
        (drop(count=0), "stages.0: drop_blocks: expected `count` of at least 1, got 0"),
        (drop(count=True), "stages.0.count: expected a whole number, got True"),
        (
            drop(count=1, criterion="angle"),
            "stages.0.criterion: expected one of block_influence, angular_distance, "
            "relative_magnitude, perplexity, got 'angle'",
        ),
        (None, "value: expected keys and values, got None"),
        ([1], "stages.0: expected keys and values, got 1"),
        ("prune", "value: expected keys and values, got 'prune'"),
    ],
)
def test_fault_is_named_with_its_place(values: Any, fault: str) -> None:
    readers: list[Callable[[], Recipe]] = [
        lambda: recipe_from_dict(values, "mine.yaml"),
        lambda: recipe_from_text(text_of(values), "mine.yaml"),
    ]
    for reader in readers:
        with pytest.raises(SecateurError) as caught:
            reader()
        assert str(caught.value).startswith(f"mine.yaml is not a valid recipe: {fault}")


def test_recipes_of_version_1_mean_what_they_meant() -> None:
    def resolved(stage: dict[str, Any], **recipe: Any) -> tuple[bool, str]:
        [found] = recipe_from_dict({**recipe, "stages": [stage]}).stages
        assert isinstance(found, FactorStage)
        return found.fits_in_turn, found.weighs_by

    stage = {"stage": "factor", "budget": 0.3}
    assert resolved(stage, version=1) == (False, "loss")
    assert resolved({**stage, "in_turn": True}, version=1) == (True, "loss")
    assert resolved({**stage, "importance": "output"}, version=1) == (False, "output")
    assert resolved(stage, version=2) == resolved(stage) == (True, "directions")
    old = recipe_from_dict({"version": 1, "stages": [stage, with_stage()["stages"][0]]})
    assert recipe_from_text(old.to_yaml()) == old
    assert old.stages[1] == recipe_from_dict(with_stage()).stages[0]
    fault = "recipe is not a valid recipe: stages.0: expected keys and values, got 3"
    with pytest.raises(SecateurError, match=re.escape(fault)):
        recipe_from_dict({"version": 1, "stages": [3]})


def test_source_is_called_recipe_unless_said() -> None:
    with pytest.raises(SecateurError, match=r"^recipe is not a valid recipe: stages: is missing$"):
        recipe_from_text("{}")


def test_long_values_are_cut_short() -> None:
    with pytest.raises(SecateurError) as caught:
        recipe_from_dict(with_stage(method="x" * 1000))
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("values", [{"preset": "x"}, {"loss": "x"}, {"granularity": "thirds"}])
def test_tuning_is_checked_in_python_too(values: Any) -> None:
    with pytest.raises(SecateurError, match=f"reconstruct: expected {next(iter(values))} one of"):
        Reconstruction(**values)


@pytest.mark.parametrize("values", [{"update": "x"}, {"norm": "x"}])
def test_chains_are_checked_in_python_too(values: Any) -> None:
    with pytest.raises(SecateurError, match=f"expected {next(iter(values))} "):
        PruneStage(method="rgs", sparsity=0.5, **values)


def test_presets_fill_what_is_not_said() -> None:
    assert PruneStage(sparsity=0.5).resolved_reconstruct() is None
    own = PruneStage(method="wanda++", pattern="2:4").resolved_reconstruct()
    assert own is not None
    assert (own.preset, own.rounds, own.samples_per_round, own.frozen_mask) == (
        "wanda++",
        5,
        32,
        True,
    )
    fewer = Reconstruction(rounds=2, samples_per_round="all")
    best = PruneStage(method="best-2:4", pattern="2:4", reconstruct=fewer).resolved_reconstruct()
    assert best is not None
    assert (best.preset, best.rounds, best.samples_per_step) == ("best", 2, 2)
    paper = Reconstruction(preset="published")
    stage = PruneStage(method="wanda++", pattern="2:4", reconstruct=paper)
    published = stage.resolved_reconstruct()
    assert published is not None
    assert (published.optimizer, published.rate, published.scale) == ("rmsprop", 3e-7, "absolute")
    assert not published.frozen_mask
    for tuning in (own, best, published):
        # Where the block is decides over its products.
        assert [name for name, value in vars(tuning).items() if value is None] == ["autocast"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_recipe(path: Path) -> None:
    assert load_recipe(path).stages


@pytest.mark.parametrize("values", [{"targets": ()}, {"block_size": 0}, {"damping": 0.0}])
def test_values_are_checked_in_python_too(values: Any) -> None:
    with pytest.raises(SecateurError, match=next(iter(values))):
        PruneStage(sparsity=0.5, **values)


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "{", "\t- a", "a: \x07", "!!python/none x"])
def test_text_that_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(SecateurError, match=r"mine\.yaml is neither YAML nor JSON: "):
        recipe_from_text(text, "mine.yaml")


def test_impossible_date_is_refused() -> None:
    with pytest.raises(SecateurError, match="expected pattern `unstructured` or `keep:group`"):
        recipe_from_text("stages:\n  - stage: prune\n    pattern: 2024-13-45\n")


def test_recipe_is_frozen() -> None:
    recipe = Recipe(stages=(PruneStage(sparsity=0.5),))
    for value, field in ((recipe, "version"), (recipe.stages[0], "stage")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field, 1)


def test_stages_alone_are_a_recipe() -> None:
    stage = {"stage": "prune", "method": "magnitude", "pattern": "2:4"}
    expected = recipe_from_dict({"stages": [stage]})
    assert recipe_from_dict([stage]) == recipe_from_dict(stage) == expected
    assert recipe_from_text("stage: prune\nmethod: magnitude\npattern: '2:4'\n") == expected
    (own,) = expected.stages
    for form in (own, [own], (stage,), [stage]):
        assert as_recipe(form) == expected
