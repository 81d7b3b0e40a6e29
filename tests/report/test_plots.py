import re
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import pytest
from builders import INFLUENCE, comparison, factor, layer, prune, report, variant
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.report import plots

SVG = "{http://www.w3.org/2000/svg}"
PICTURES: dict[str, Callable[[], str]] = {
    "perplexity": lambda: plots.perplexity_svg(comparison().variants),
    "layers": lambda: plots.layers_svg(prune()),
    "many layers": lambda: plots.layers_svg(prune(num_blocks=24)),
    "block influence": lambda: plots.block_influence_svg(INFLUENCE, (3, 4)),
    "seconds": lambda: plots.seconds_svg(report().seconds),
    "size": lambda: plots.size_svg(comparison().variants),
}


def words(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture(params=PICTURES)
def draw(request: pytest.FixtureRequest) -> Callable[[], str]:
    return PICTURES[request.param]


def test_picture_is_well_formed_with_alternative_text(draw: Callable[[], str]) -> None:
    root = ElementTree.fromstring(draw())
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert len(root.get("aria-label", "")) > 30


def test_equal_data_gives_equal_bytes_whatever_the_users_style(draw: Callable[[], str]) -> None:
    first = draw()
    users = {"font.size": 23, "svg.fonttype": "path", "svg.hashsalt": None, "axes.grid": True}
    with matplotlib.rc_context(users):  # type: ignore[arg-type]  # the stubs list every key
        assert draw() == first
        assert matplotlib.rcParams["font.size"] == 23


def test_picture_names_no_date_maker_or_address(draw: Callable[[], str]) -> None:
    svg = draw()
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)
    assert not re.search("metadata|DOCTYPE|matplotlib|dc:date|rdf", svg, re.IGNORECASE)


def test_ids_are_used_and_unique_across_pictures() -> None:
    page = "".join(draw() for draw in PICTURES.values())
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(ids)


def test_perplexity_shows_every_value_name_and_setting() -> None:
    shown = words(plots.perplexity_svg(comparison().variants))
    for value in ("41.77", "26.03", "24.71", "28.36", "22.48", "22.05", "33.19", "20.31"):
        assert value in shown
    for name in ("Magnitude", "Wanda", "SparseGPT", "ShortGPT", "Dense", "2:4", "50%"):
        assert name in shown


def test_perplexity_cuts_a_bar_off_and_says_so() -> None:
    variants = comparison(
        variant("A", "wanda", "2:4", 21.0), variant("B", "magnitude", "2:4", 9876.0)
    ).variants
    shown = words(plots.perplexity_svg(variants))
    assert "9,876" in shown
    assert "off scale ↑" in shown
    assert "off scale ↑" not in words(plots.perplexity_svg(comparison().variants))


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "NaN"), (float("inf"), "inf")])
def test_perplexity_that_is_not_finite_has_a_label(value: float, text: str) -> None:
    variants = comparison(variant("A", "wanda", "2:4", value)).variants
    svg = plots.perplexity_svg(variants)
    assert text in words(svg)
    assert not re.search(r'(d|x|y)="[^"]*(nan|inf)', svg, re.IGNORECASE)


def test_perplexity_of_the_dense_model_alone() -> None:
    assert "20.31" in words(plots.perplexity_svg(comparison().variants[:1]))
    dense = variant("Dense", "dense", "dense", float("nan"))
    assert "NaN" in words(plots.perplexity_svg([dense]))


def test_perplexity_brings_a_setting_together() -> None:
    names = ("Wanda 2:4", "Wanda 50%", "SparseGPT 2:4")
    variants = [variant(name, "wanda", name.split()[-1]) for name in names]
    shown = words(plots.perplexity_svg(variants))
    assert shown.count("2:4") == 1


def test_perplexity_of_many_variants_names_each() -> None:
    many = [variant(f"Wanda {i}%", "wanda", f"{i}%", 20.0 + i) for i in range(10, 34)]
    shown = words(plots.perplexity_svg(many))
    assert {f"{i}%" for i in range(10, 34)} <= set(shown)


def test_layers_writes_values_while_they_fit() -> None:
    assert words(plots.layers_svg(prune())).count("50") == 8 * 7
    wide = words(plots.layers_svg(prune(num_blocks=80)))
    assert wide.count("50") == 1  # the number of a block
    assert wide.count("self_attn.q_proj") == 2
    assert "75" in wide


def test_layers_without_calibration_shows_zeros_only() -> None:
    stage = prune(layers=(layer(output_error=None, sparsity=0.25),))
    shown = words(plots.layers_svg(stage))
    assert "25" in shown
    assert not any("error" in word for word in shown)


def test_layers_averages_experts_and_leaves_out_the_unknown() -> None:
    names = [f"model.layers.0.mlp.experts.{i}.up_proj" for i in range(3)]
    errors = (0.1, 0.3, None)
    stage = prune(
        layers=tuple(
            layer(name=name, output_error=error, sparsity=0.6)
            for name, error in zip(names, errors, strict=True)
        )
    )
    shown = words(plots.layers_svg(stage))
    assert "mlp.experts.*.up_proj" in shown
    assert "20" in shown
    assert "60" in shown


def test_layers_shows_ranks_where_all_values_are_still_stored() -> None:
    """64 of 256, and one matrix of full rank."""
    shown = words(plots.layers_svg(factor(1, 1, stored_dense=True)))
    assert {"25", "100"} <= set(shown)
    assert any("Rank" in word for word in shown)
    assert not any("kept" in word for word in shown)
    assert "50" in words(plots.layers_svg(factor(1, 1)))


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 0.0, 3.5])
def test_layers_with_any_error(error: float) -> None:
    stage = prune(layers=(layer(0, output_error=error), layer(1, output_error=0.1)))
    ElementTree.fromstring(plots.layers_svg(stage))


def test_block_influence_has_a_legend_only_for_dropped_blocks() -> None:
    assert "dropped" in words(plots.block_influence_svg(INFLUENCE, (3,)))
    assert "dropped" not in words(plots.block_influence_svg(INFLUENCE))
    assert "NaN" in words(plots.block_influence_svg((*INFLUENCE, float("nan"))))
    assert {"0.412", "0.061"} <= set(words(plots.block_influence_svg(INFLUENCE)))
    assert "Dropped: 3." in plots.block_influence_svg((*INFLUENCE, float("nan")), (3,))


def test_seconds_and_size_write_every_value() -> None:
    assert {"840 ms", "110 ms", "20.9 s", "370 ms"} <= set(words(PICTURES["seconds"]()))
    assert {"16.8 MB", "13.6 MB", "8.39M", "5.25M", "6.82M"} <= set(words(PICTURES["size"]()))
    big = variant("Big", "wanda", "2:4", num_bytes=140_000_000_000)
    assert {"140 GB", "GB", "billions"} <= set(words(plots.size_svg([big])))


def test_families_have_colours_of_their_own() -> None:
    assert len(set(plots.FAMILY_COLOURS.values())) == len(plots.FAMILY_COLOURS) >= 8
    assert plots.family_colour("new") not in plots.FAMILY_COLOURS.values()


@settings(max_examples=10, deadline=None)
@given(name=st.text(max_size=60), setting=st.text(max_size=20))
def test_any_name_gives_well_formed_text(name: str, setting: str) -> None:
    ElementTree.fromstring(plots.perplexity_svg([variant(name, "wanda", setting, 21.0)]))


def test_names_are_neither_formulas_nor_tags() -> None:
    svg = plots.size_svg([variant('$\\frac{1}$ <b> url(#x) id="y"', "wanda", "2:4")])
    assert '$\\frac{1}$ <b> url(#x) id="y"' in words(svg)
