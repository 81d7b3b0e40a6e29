import math
import re
from dataclasses import replace

import pytest
import yaml
from builders import (
    KINDS,
    PROMPTS,
    TEXTS,
    comparison,
    depth_variant,
    drop,
    layer,
    prune,
    quality,
    report,
    variant,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import EVIL, Reader
from training_builders import recover

from secateur.report import page, table
from secateur.report.comparison import Comparison, Sample, Variant


def pruned(setting: str = "2:4", **perplexities: float) -> list[Variant]:
    """Variants of the methods named, without reports."""
    return [
        variant(f"{family} {setting}", family, setting, value, report=None)
        for family, value in perplexities.items()
    ]


@pytest.fixture(scope="module")
def usual_page() -> str:
    return page.render_comparison(comparison())


@pytest.fixture(scope="module")
def report_page() -> str:
    stages = (prune(), drop(warnings=("blocks 3 and 4 are adjacent",)))
    return page.render_report(report(*stages, quality=(quality(),)))


def test_comparison_shows_every_number(usual_page: str) -> None:
    text = Reader(usual_page).text
    for row in table.comparison_rows(comparison()):
        assert all(cell in text for cell in row)
    for made in comparison().variants:
        assert f"{made.num_bytes:,}" in text
    for exact in ("8,393,472", "3,145,728", "49,152", "32,768", "9,950", "12,910", "912 MB"):
        assert exact in text


def test_comparison_shows_samples_protocol_machine_and_recipe(usual_page: str) -> None:
    text = Reader(usual_page).text
    for part in (*PROMPTS, *TEXTS.values(), "evaluation.txt", "calibration.txt", "Example CPU"):
        assert " ".join(part.split()) in text
    assert usual_page.count(f"<b>{PROMPTS[0]}</b>{TEXTS['wanda']}") == 2
    assert "transformers" in text
    assert "stage: prune" in text


def test_report_shows_every_number(report_page: str) -> None:
    text = Reader(report_page).text
    for part in ("24.12 ± 0.41", "22.2 s", "20.9 s", "16,801,344", "LlamaForCausalLM", "5f5f5f"):
        assert part in text
    for made in prune().layers:
        assert made.name in text
        assert table.format_optional(made.output_error) in text
    assert all(kind in text for kind in KINDS)
    assert "blocks 3 and 4 are adjacent" in text
    assert "dropped, in 22.2 s." in text


@pytest.mark.parametrize("name", ["usual_page", "report_page"])
def test_page_needs_nothing_but_itself(name: str, request: pytest.FixtureRequest) -> None:
    html = request.getfixturevalue(name)
    tags = Reader(html).tags
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(r"@import|url\((?!#)|javascript:|\bon\w+=", html)
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', html)) <= set(ids)


def test_equal_data_gives_an_equal_page(report_page: str) -> None:
    stages = (prune(), drop(warnings=("blocks 3 and 4 are adjacent",)))
    assert page.render_report(report(*stages, quality=(quality(),))) == report_page


def test_text_from_outside_is_escaped() -> None:
    evil = variant(
        EVIL,
        "wanda",
        EVIL,
        samples=(Sample(prompt=EVIL, text=EVIL),),
        report=report(
            prune(layers=(layer(name=EVIL, note=EVIL, method=EVIL, pattern=EVIL),), blocks=()),
            recipe={EVIL: EVIL},
            machine={EVIL: EVIL},
            seconds={EVIL: 1.0},
        ),
    )
    made = comparison(evil, title=EVIL, created=EVIL, machine={EVIL: EVIL}, versions={EVIL: EVIL})
    html = page.render_comparison(made)
    assert "<script" not in html.lower()
    assert "script" not in Reader(html).tags
    assert "&lt;script&gt;" in html


@settings(max_examples=6, deadline=None)
@given(prompt=st.text(max_size=30), text=st.text(max_size=80))
def test_any_sample_stays_text(prompt: str, text: str) -> None:
    one = variant("W", "wanda", "2:4", samples=(Sample(prompt=prompt, text=text),), report=None)
    assert Reader(page.render_comparison(comparison(one))).tags.isdisjoint({"script", "img"})


def test_recipe_is_yaml() -> None:
    recipe = {"version": 1, "stages": [{"stage": "prune", "pattern": "2:4", "ignore": ["é"]}]}
    html = page.render_report(report(recipe=recipe))
    found = re.search("<pre>(.*?)</pre>", html, re.DOTALL)
    assert found is not None
    assert yaml.safe_load(found[1].replace("&#39;", "'")) == recipe


@pytest.mark.parametrize(("value", "text"), [(math.nan, "NaN"), (math.inf, "inf")])
def test_perplexity_that_is_not_finite_is_shown_as_such(value: float, text: str) -> None:
    made = comparison(*pruned(wanda=value, sparsegpt=25.0))
    shown = Reader(page.render_comparison(made)).text
    assert f"{text} ± {text}" in shown
    assert f"wanda 2:4: perplexity is {text}." in shown
    assert page.headline(made) == (
        "At 2:4, sparsegpt has perplexity 25.00 against 20.31 dense (+23.1%)."
    )


def test_dense_model_that_is_not_finite() -> None:
    broken = variant("Dense", "dense", "dense", math.nan)
    made = replace(comparison(), variants=(broken, *pruned(wanda=math.nan)))
    assert "NaN" in Reader(page.render_comparison(made)).text
    assert "nothing measured here has a finite perplexity" in page.headline(made)


def test_headline_names_the_best_and_the_distance() -> None:
    assert page.headline(comparison()) == (
        "At 2:4, SparseGPT kept quality best: perplexity 24.71 against 20.31 dense (+21.7%), "
        "1.32 below Wanda."
    )


def test_headline_admits_a_gap_that_the_text_cannot_show() -> None:
    close = comparison(*pruned(wanda=25.0, sparsegpt=24.9))
    assert "0.10 below wanda, a gap within the standard errors" in page.headline(close)


def test_headline_of_the_dense_model_alone() -> None:
    alone = replace(comparison(), variants=comparison().variants[:1])
    assert page.headline(alone) == "Only the dense model was measured: perplexity 20.31 ± 0.35."
    page.render_comparison(alone)


def order(*groups: list[Variant]) -> list[str]:
    return page.published_order(comparison(*(one for group in groups for one in group)))


def test_order_that_holds_is_confirmed() -> None:
    assert order(pruned(magnitude=40.0, wanda=26.0, sparsegpt=25.0)) == [
        "The published order of perplexity, SparseGPT < Wanda < magnitude, holds at 2:4."
    ]
    broken = pruned(magnitude=math.inf, wanda=26.0, sparsegpt=25.0)
    assert "holds at 2:4" in order(broken)[0]


def test_order_that_does_not_hold_is_said_plainly() -> None:
    made = comparison(*pruned(magnitude=40.0, wanda=24.0, sparsegpt=25.0))
    sentence = (
        "The published order, SparseGPT < Wanda < magnitude, does not hold at 2:4: here, best "
        "first, Wanda 24.00, SparseGPT 25.00, magnitude 40.00."
    )
    assert page.published_order(made) == [sentence]
    assert sentence in Reader(page.render_comparison(made)).text


@pytest.mark.parametrize("wanda", [25.0, math.nan])
def test_order_does_not_hold_for_ties_and_nan(wanda: float) -> None:
    assert "does not hold" in order(pruned(magnitude=40.0, wanda=wanda, sparsegpt=25.0))[0]


def test_order_is_told_setting_by_setting() -> None:
    bad = pruned("50%", magnitude=20.0, wanda=26.0, sparsegpt=25.0)
    sentences = order(pruned(magnitude=40.0, wanda=26.0, sparsegpt=25.0), bad)
    assert "holds at 2:4." in sentences[0]
    assert "does not hold at 50%" in sentences[1]
    assert order(pruned(wanda=24.0, sparsegpt=25.0)) == []


@given(st.lists(st.floats(1, 1e6) | st.just(math.nan), min_size=3, max_size=3))
def test_order_is_confirmed_exactly_when_it_holds(values: list[float]) -> None:
    sparsegpt, wanda, magnitude = values
    sentences = order(pruned(sparsegpt=sparsegpt, wanda=wanda, magnitude=magnitude))
    assert len(sentences) == 1
    assert ("does not hold" in sentences[0]) is not (sparsegpt < wanda < magnitude)


def size_findings(made: Comparison) -> str:
    return " ".join(page.findings(made))


def test_zeros_in_a_dense_file_are_not_sold_as_size_or_speed() -> None:
    text = size_findings(comparison())
    assert "6 of 7 compressed models take the same 16.8 MB as the dense one" in text
    assert "bring neither size nor speed by themselves" in text
    assert "Measured prefill speed: 0.99 to 1.00 times dense." in text
    assert "ShortGPT 6 of 8 blocks: 81.2% of the dense bytes, +63.4% perplexity" in text
    assert "prefill at 1.29 times dense" in text


def test_packed_weights_are_reported_as_smaller() -> None:
    packed = variant("Wanda 2:4", "wanda", "2:4", num_bytes=10_000_000, report=None)
    text = size_findings(comparison(packed))
    assert "neither size nor speed" not in text
    assert "Wanda 2:4: 59.5% of the dense bytes" in text


def test_report_says_that_zeros_are_still_stored(report_page: str) -> None:
    assert "16.8 MB before, 16.8 MB after" in report_page
    only_depth = depth_variant(2, 33.0, 12_000.0).report
    assert only_depth is not None
    unpruned = replace(only_depth.size, num_zeros=0)
    html = page.render_report(replace(only_depth, size=unpruned))
    assert "still stored" not in html


def test_fallbacks_stand_at_the_top() -> None:
    fallback = layer(2, method="magnitude", note="too few tokens")
    one = variant("Wanda 2:4", "wanda", "2:4", report=report(prune(layers=(fallback,))))
    note = "Wanda 2:4: pruned by magnitude instead of wanda; too few tokens"
    html = page.render_comparison(comparison(one))
    assert html.index(note) < html.index("Side by side")
    assert '<tr class="noted">' in html
    assert any(note in caution for caution in page.cautions(comparison(one)))
    assert page.cautions(comparison()) == []


def test_what_several_variants_have_in_common_is_said_once() -> None:
    few = tuple(layer(block, note="odd shape") for block in range(2))
    many = tuple(layer(block, note="odd shape") for block in range(5))
    one = variant("Wanda 2:4", "wanda", "2:4", report=report(prune(layers=few)))
    two = variant("Wanda 50%", "wanda", "50%", report=report(prune(layers=many)))
    assert page.cautions(comparison(one, two)) == [
        "odd shape: Wanda 2:4 (2 layers), Wanda 50% (5 layers)"
    ]
    assert page.cautions(comparison(two)) == [
        "Wanda 50%: odd shape (5 layers: model.layers.0.self_attn.q_proj, "
        "model.layers.1.self_attn.q_proj, model.layers.2.self_attn.q_proj, …)"
    ]


def test_uneven_protocols_are_pointed_out() -> None:
    other = replace(quality(), text="other.txt")
    one = variant("Wanda 2:4", "wanda", "2:4", quality=other, report=None)
    assert "same tokens" in page.cautions(comparison(one))[0]


def test_report_compares_quality_before_and_after() -> None:
    made = report(quality=(quality(20.31, 0.35, "before"), quality()))
    text = Reader(page.render_report(made)).text
    assert "Perplexity on evaluation.txt: 20.31 before, 24.12 after (+18.8%)." in text
    assert "evaluation.txt before 20.31 ± 0.35" in text
    assert "evaluation.txt after 24.12 ± 0.41" in text


def test_report_headline_names_each_stage() -> None:
    made = report(prune("sparsegpt"), drop((4,)))
    assert page.report_headline(made) == (
        "50.0% of the weights in 56 matrices set to zero by SparseGPT, 2:4, "
        "then block 4 dropped, in 22.2 s."
    )
    nothing = replace(report(), stages=(), seconds={}, calibration=None)
    assert page.report_headline(nothing) == "Nothing was done, in 0 ms."
    page.render_report(nothing)


def test_page_of_a_training_is_not_called_a_compression() -> None:
    trained, pruned = report(recover()), report(prune(), recover())
    assert "<h1>Recovering examples/books-8m</h1>" in page.render_report(trained)
    assert "<h1>Compressing examples/books-8m</h1>" in page.render_report(pruned)
