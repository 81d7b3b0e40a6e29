"""The planner's tables, from a record made by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench import training_tables
from bench.planner_table import equal_speed, interpolated, planner_table


def point(method: str, speedup: float, perplexity: float, predicted: float = 0) -> dict[str, Any]:
    found = {"method": method, "speedup": speedup, "perplexity": perplexity, "loss_built": 4.0}
    if predicted:
        found |= {"predicted_speedup": predicted, "predicted_loss": 3.9, "removed": ["block 2"]}
    return found


RECORD: dict[str, Any] = {
    "kind": "frontier",
    "model": "toy",
    "dtype": "float32",
    "workload": "prefill, batch 2, length 256",
    "threads": 1,
    "machine": {"processor": "a CPU"},
    "machine_shared": False,
    "rounds": 41,
    "text": "toy/evaluation.txt",
    "dense": {"perplexity": 40.0},
    "points": {
        "plan 1.5": point("plan", 1.5, 45.0, 1.5),
        "low-rank 1.5": point("low-rank", 1.6, 62.5, 1.5),
        "drop 1.5": point("drop", 1.5, 44.0, 1.5),
        "--drop-blocks 1": point("drop-blocks", 1.25, 50.0),
        "svd-whitened --budget 0.4": point("svd-whitened", 1.4, 50.0),
        "svd-whitened --budget 0.6": point("svd-whitened", 1.6, 72.0),
    },
    "chosen": {"1.5": "drop 1.5"},
}


def test_perplexities_at_the_speed_of_the_plan() -> None:
    *_, row = equal_speed(RECORD).splitlines()
    # Low rank: 40 to 62.5 over 0.6, of which 0.5; the budget: the mean of 50 and 72 is 60.
    low_rank = 40.0 * (62.5 / 40.0) ** (0.5 / 0.6)
    assert row == f"| 1.5 | 1.50 | 44.00 | {low_rank:.2f} | 44.00 | 60.00 | not reached |"


def test_methods_of_newer_records_have_a_column() -> None:
    method = "svd-whitened, directions"
    points = RECORD["points"] | {"new 0.6": point(method, 2.0, 62.5)}
    heads, _, row = equal_speed({**RECORD, "points": points}).splitlines()
    place = heads.split(" | ").index("the same by directions")
    assert row.split(" | ")[place] == f"{40.0 * (62.5 / 40.0) ** 0.5:.2f}"
    assert "directions" not in equal_speed(RECORD)


def test_between_points_and_beyond() -> None:
    points = [(1.0, 4.0), (1.5, 16.0)]
    assert interpolated(points, 1.25) == pytest.approx(8.0)
    assert interpolated(points, 1.0) == pytest.approx(4.0)
    assert interpolated(points, 1.51) is None
    assert interpolated([(1.0, 4.0), (1.0, 5.0)], 1.0) == pytest.approx(4.0)


def test_the_last_record_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_tables, "RESULTS", tmp_path)
    assert planner_table() == training_tables.NOT_MEASURED
    old = {key: value for key, value in RECORD.items() if key != "chosen"}
    lines = [json.dumps(record) for record in (RECORD, {"kind": "plan"}, old)]
    (tmp_path / "planner.jsonl").write_text("\n".join(lines) + "\n")
    text = planner_table()
    assert "| plan 1.5 | 1.50 | 1.50 | 4.000 | 3.900 | 45.00 | block 2 |" in text
    assert "| `--drop-blocks 1` | 1.25 |  |  |  | 50.00 |  |" in text
    # The slowest prediction: 1.5 where 1.6 was measured.
    assert "off by at most 6.2%, predicted losses by at most 0.100 nats." in text
    assert "other work" not in text
