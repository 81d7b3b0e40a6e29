import math
from dataclasses import replace

import pytest
from builders import comparison, depth_variant, drop, layer, prune, quality, report, variant
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from secateur.errors import SecateurError
from secateur.report import table


def shown(renderable: RenderableType, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (20.314, "20.31"),
        (999.994, "999.99"),
        (9876.4, "9,876"),
        (3.2e9, "3.20e+09"),
        (math.nan, "NaN"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_format_number(value: float, text: str) -> None:
    assert table.format_number(value) == text


@pytest.mark.parametrize(
    ("value", "base", "text"),
    [
        (24.0, 20.0, "+20.0%"),
        (19.0, 20.0, "-5.0%"),
        (math.inf, 20.0, "+inf"),
        (math.nan, 20.0, "NaN"),
        (20.0, math.inf, "NaN"),
        (20.0, 0.0, "NaN"),
    ],
)
def test_format_change(value: float, base: float, text: str) -> None:
    assert table.format_change(value, base) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.11, "110 ms"),
        (0.9996, "1.0 s"),
        (59.96, "1 min 00 s"),
        (200.0, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (3900.0, "1 h 05 min"),
        (math.nan, "NaN"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert table.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text", "size"),
    [
        (0, "0", "0 B"),
        (999, "999", "999 B"),
        (8_393_472, "8.39M", "8.39 MB"),
        (999_600, "1.00M", "1.00 MB"),
        (140_000_000_000, "140B", "140 GB"),
    ],
)
def test_format_count_and_bytes(count: int, text: str, size: str) -> None:
    assert table.format_count(count) == text
    assert table.format_bytes(count) == size


@given(st.integers(0, 10**14))
def test_format_count_is_within_half_a_percent(count: int) -> None:
    text = table.format_count(count)
    scale = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1.0)
    assert float(text.rstrip("kMBT")) * scale == pytest.approx(count, rel=0.0051)


@given(st.text())
def test_printable_text_cannot_steer_a_terminal(text: str) -> None:
    assert all(character.isprintable() for character in table.printable(text))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.self_attn.q_proj", "self_attn.q_proj"),
        ("model.layers.31.mlp.experts.17.up_proj", "mlp.experts.*.up_proj"),
        ("transformer.h.0.attn.c_attn", "attn.c_attn"),
        ("lm_head", "lm_head"),
    ],
)
def test_layer_kind(name: str, kind: str) -> None:
    assert table.layer_kind(name) == kind


@pytest.mark.parametrize(("items", "text"), [((), "–"), ((3,), "3"), ((3, 4, 7), "3, 4 and 7")])
def test_listed(items: tuple[int, ...], text: str) -> None:
    assert table.listed(items) == text


def test_rows_hold_every_number() -> None:
    rows = table.comparison_rows(comparison())
    assert rows[0] == table.Row(
        *("Dense", "20.31 ± 0.35", "–", "0.0%", "8.39M", "8.39M", "16.8 MB", "–", "1.00×", "–")
    )
    assert rows[1] == table.Row(
        *("Magnitude 2:4", "41.77 ± 0.71", "+105.7%", "37.5%", "8.39M", "5.25M"),
        *("16.8 MB", "22.2 s", "0.99×", "–"),
    )


def test_speed_that_was_not_measured_is_a_dash() -> None:
    one = variant("Wanda 2:4", "wanda", "2:4", prefill_tokens_per_second=None)
    assert table.comparison_rows(comparison(one))[1].prefill == table.MISSING


@pytest.mark.parametrize("width", [80, 100])
def test_comparison_fits_a_terminal_with_every_number(width: int) -> None:
    text = shown(table.comparison_table(comparison()), width)
    assert max(map(len, text.splitlines())) <= width
    for row in table.comparison_rows(comparison()):
        cells = row._replace(non_zeros="", name=row.name.split()[0])
        assert all(cell in text for cell in cells)


def test_comparison_needs_a_dense_model_first() -> None:
    lone = replace(comparison(), variants=(variant("W", "wanda", "2:4"),))
    with pytest.raises(SecateurError, match="begins with the dense model, got W"):
        table.comparison_table(lone)
    with pytest.raises(SecateurError, match="got no variant"):
        table.comparison_table(replace(lone, variants=()))


def test_names_are_not_markup_for_a_terminal() -> None:
    one = variant("[red]W[/red]\x1b[2J", "wanda", "2:4")
    text = shown(table.comparison_table(comparison(one)), 120)
    assert "[red]W[/red] [2J" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_report_fits_a_terminal_with_every_number(width: int) -> None:
    made = report(prune(), drop(warnings=("blocks 3 and 4 are adjacent",)), quality=(quality(),))
    text = shown(table.report_table(made), width)
    assert max(map(len, text.splitlines())) <= width
    facts = ("8.39M → 8.39M, 37.5% zeros", "16.8 MB → 16.8 MB", "22.2 s", "912 MB", "24.12 ± 0.41")
    stages = (
        "wanda, 2:4, 50.0% zeros",
        "mlp.down_proj",
        "blocks 3 and 4 dropped, by block influence",
    )
    for part in (*facts, *stages, "! blocks 3 and 4 are adjacent"):
        assert part in text


def test_report_keeps_quality_before_and_after_apart() -> None:
    text = shown(table.report_table(report(quality=(quality(20.0, 0.3, "before"), quality()))))
    assert "Perplexity before, evaluation.txt  20.00 ± 0.30" in text
    assert "Perplexity after, evaluation.txt   24.12 ± 0.41" in text


def test_report_names_the_worst_layer() -> None:
    layers = (layer(0, output_error=0.1), layer(1, output_error=0.3), layer(2, output_error=None))
    text = shown(table.report_table(report(prune(layers=layers))))
    assert "0.200" in text
    assert "0.300 in block 1" in text


def test_report_without_calibration_or_stages() -> None:
    text = shown(table.report_table(report(prune(layers=(layer(output_error=None),)))))
    assert table.MISSING in text
    shown(table.report_table(replace(report(), stages=())))


def test_notes_say_what_fell_back_and_where() -> None:
    layers = [layer(block, method="magnitude", note="too few tokens") for block in range(5)]
    notes = table.report_notes(report(prune(layers=(*layers, layer(5)))))
    assert len(notes) == 1
    assert "pruned by magnitude instead of wanda; too few tokens (5 layers: " in notes[0]
    assert "model.layers.2.self_attn.q_proj, …)" in notes[0]
    assert table.report_notes(report()) == []


def test_short_name_leaves_the_setting_out() -> None:
    assert table.short_name(variant("Wanda 2:4", "wanda", "2:4")) == "Wanda"
    assert table.short_name(variant("2:4", "wanda", "2:4")) == "2:4"
    assert table.short_name(depth_variant(2, 33.0, 12_000.0)) == "ShortGPT"
