"""Tables and the picture of the regional method, from records made by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench import regional_tables, training_tables


def curve(model: str, setting: str, times: float, closed: float) -> dict[str, Any]:
    return {
        "machine": {"processor": "Example CPU", "threads": "1"},
        "machine_shared": True,
        "model": model,
        "setting": setting,
        "calibration": "calibration.txt",
        "num_samples": 64,
        "length": 256,
        "windows": 32,
        "times_reference": times,
        "perplexity_dense": {"choose": 9.0, "report": 10.0},
        "perplexity_wanda": {"choose": 19.0, "report": 20.0},
        "gap_closed": {"choose": 0.9, "report": closed},
    }


def ablation(model: str, question: str, answer: str, **more: Any) -> dict[str, Any]:
    values = {"model": model, "question": question, "answer": answer, "moved": 0.0165}
    return {**values, "gap_closed": {"choose": 0.9, "report": 0.25}, **more}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(training_tables, "RESULTS", tmp_path)

    def writes(name: str, *records: dict[str, Any]) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    return writes


def test_without_records_nothing_is_claimed(write: Any) -> None:
    assert regional_tables.curve_table() == training_tables.NOT_MEASURED
    assert regional_tables.ablation_table() == training_tables.NOT_MEASURED


def test_curve_table_has_the_last_figure_of_every_setting(write: Any) -> None:
    write(
        "curve",
        curve("toy", "best-2:4", 30.0, 0.1),
        curve("toy", "best-2:4", 12.34, 0.756),
        curve("other", "wanda", 0.8, 0.0),
    )
    text = regional_tables.curve_table()
    assert "| best-2:4 | 12.3 | 76% |  |  |" in text
    assert "| wanda |  |  | 0.8 | 0% |" in text
    assert "toy: 64 x 256 tokens of calibration.txt; perplexity on 32 windows 10.00 dense" in text
    assert "CPU time on Example CPU, threads: 1; the machine had other work." in text


def test_ablation_table_says_what_else_tells_something(write: Any) -> None:
    held_out = {"error_trained_on": 0.1, "error_held_out": 0.2}
    write(
        "ablation",
        ablation("toy", "published setting, by the model's dtype", "bfloat16"),
        ablation("toy", "rounds, a quarter held out", "5", **held_out),
        ablation("other", "parts", "RGS alone"),
    )
    text = regional_tables.ablation_table()
    assert "bfloat16 | 25% (1.7% of kept weights moved) |  |" in text
    assert "| 5 | 25% (error 0.100 trained on, 0.200 held out) |  |" in text
    assert "| parts | RGS alone |  | 25% |" in text


def test_the_picture_names_settings_and_models() -> None:
    records = [
        curve("toy", "best-2:4, 1 round", 4.0, 0.6),
        curve("toy", "wanda++ published", 7.0, -0.05),
        curve("other", "wanda", 0.8, 0.0),
    ]
    svg = regional_tables.curve_svg(records)
    for text in ("toy", "other", "1 round", "wanda++ published", "20 times"):
        assert f">{text}<" in svg
    assert svg == regional_tables.curve_svg(records)
