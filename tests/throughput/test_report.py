"""Records, words, pictures and the page of a run."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from throughput_builders import measurement, model, record

from secateur.errors import SecateurError
from secateur.report import throughput_words
from secateur.report.throughput_page import render_throughput
from secateur.report.throughput_plots import decode_svg, prefill_svg
from secateur.report.throughput_record import append_throughput, throughput_from_text

EVIL = "<script>alert('x')</script>\"&"


def test_lines_are_complete_and_read_back(tmp_path: Path) -> None:
    first, second = record(), record(created="later", notes=())
    path = tmp_path / "out.jsonl"
    append_throughput(first, path)
    append_throughput(second, path)
    text = path.read_text(encoding="utf-8")
    assert throughput_from_text(text) == (first, second)
    for line in text.splitlines():
        entry = json.loads(line)
        assert entry["model"]["name"] == entry["measurement"]["model"]
        assert entry["machine"] == first.machine


@pytest.mark.parametrize("line", ["{", "[]", '{"format_version": 2}', '{"format_version": 1}'])
def test_lines_of_other_kinds_are_refused(line: str) -> None:
    with pytest.raises(SecateurError, match=r"f\.jsonl, line 2 is no measurement of throughput"):
        throughput_from_text(f"\n{line}\n", "f.jsonl")


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=r"cannot write .*: Is a directory"):
        append_throughput(record(), tmp_path)


def test_speeds_are_against_the_baseline_under_the_same_workload() -> None:
    made = record()
    for one in made.measurements:
        expected = {"books": 1.0, "thin": 2.5, "sparse": 0.2}[one.model]
        assert throughput_words.decode_speedup(made, one) == pytest.approx(expected)
        assert throughput_words.prefill_speedup(made, one) == pytest.approx(expected)
    # 1 MB at 1 GB/s are 1 ms, of a token's 10 ms.
    assert throughput_words.times_of_floor(made, made.measurements[0]) == pytest.approx(10.0)
    lone = measurement("thin", prompt_length=99)
    assert throughput_words.decode_speedup(replace(made, measurements=(lone,)), lone) is None


def test_rows_claim_nothing_for_references() -> None:
    shown = {(row.model, row.batch): row for row in throughput_words.rows(record())}
    assert shown["thin", "1"].decode_ratio == "2.50×"
    assert shown["thin", "4"].prefill_ratio == "2.50×"
    assert shown["books", "1"].decode_ratio == "–"
    assert shown["sparse", "1"].decode_ratio == "reference"
    assert shown["sparse", "1"].prefill_ratio == "reference"
    assert shown["thin", "1"].per_token == "4.00 / 8.00 ms"
    assert shown["thin", "1"].memory == "–"


def test_sentences_name_the_fastest_and_never_a_reference() -> None:
    made = record()
    said = throughput_words.headline(made)
    assert said.startswith("thin decodes 2.50× as fast as books at batch 1 after 16 tokens")
    thin, sparse = throughput_words.findings(made)
    assert thin == "thin: 50% of the baseline's bytes; decode 2.50×, prefill 2.50× of the " + (
        "baseline's speed."
    )
    assert sparse.endswith("reference, no speed-up claimed.")
    cautions = throughput_words.cautions(made)
    assert cautions[0] == "Other work ran beside it."
    assert cautions[1].startswith("sparse: reference, no speed-up claimed.")
    assert len(cautions) == 2
    fast = replace(made, copy_bandwidth=1e7)
    assert "where the floor does not hold" in throughput_words.cautions(fast)[-1]


def test_a_slow_or_unbeaten_model_is_not_praised() -> None:
    made = record(
        models=(model("books"), model("thin")),
        measurements=(measurement("books"), measurement("thin", 0.02)),
    )
    assert "no other model decodes faster" in throughput_words.headline(made)
    unmeasured = (measurement("books", None), measurement("thin", None))
    undecided = throughput_words.headline(replace(made, measurements=unmeasured))
    assert "no decoding that could be compared" in undecided
    lone = record(models=(model("books"),), measurements=(measurement("books", None),))
    assert "give more models to compare it with" in throughput_words.headline(lone)
    assert throughput_words.rows(lone)[0].per_token == "–"


@pytest.mark.parametrize("draw", [decode_svg, prefill_svg])
def test_pictures_are_svg_with_every_figure_in_words(draw: object) -> None:
    assert callable(draw)
    made = record(measurements=(*record().measurements, measurement("thin", None, new_tokens=1)))
    svg = draw(made)
    assert svg == draw(made)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    label = root.attrib["aria-label"]
    for word in ("books", "thin", "sparse", "Batch 4, prompts of 16 tokens"):
        assert word in label
    assert "(reference)" in svg


def test_the_page_holds_everything_and_escapes_names() -> None:
    made = record()
    page = render_throughput(made)
    assert page == render_throughput(made)
    for text in (
        "thin decodes 2.50×",
        "reference, no speed-up claimed",
        "4.00 / 8.00 ms",
        "float32",
    ):
        assert text in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    evil = record(
        baseline=EVIL, models=(model(EVIL),), measurements=(measurement(EVIL),), notes=(EVIL,)
    )
    assert "<script" not in render_throughput(evil)
    for text in ("<th>Note</th>", "Hatched: reference"):
        assert text in page
        assert text not in render_throughput(evil), "no model needs one"


def test_the_page_has_a_column_of_memory_where_it_was_measured() -> None:
    page = render_throughput(record())
    assert "Peak memory" not in page
    assert '<td class="n">–</td></tr>' not in page, "nor its cells"
    with_memory = measurement("books", peak_memory_bytes=3_000_000)
    page = render_throughput(record(measurements=(with_memory,)))
    assert '<th class="n">Peak memory</th></tr>' in page
    assert '<td class="n">3.00 MB</td></tr>' in page
