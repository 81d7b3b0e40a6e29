"""A GPU's memory, on a stand-in for one: where it is short, and how much is needed."""

import json
from pathlib import Path
from typing import Any

import pytest
from stand_in_gpu.own_process import needs_stand_in, run
from thoroughness import is_thorough

pytestmark = [needs_stand_in, pytest.mark.slow, pytest.mark.compiled]

STAGES: dict[str, dict[str, Any]] = {
    "wanda": {"stage": "prune", "method": "wanda", "pattern": "2:4"},
    "svd-whitened": {"stage": "factor", "method": "svd-whitened", "rank": 8},
}


@pytest.mark.parametrize("name", STAGES)
def test_where_memory_is_short_fewer_samples_run_together(name: str) -> None:
    """Memory runs out wherever it does, not where a test says so."""
    told = run("stand_in_gpu.short_of_memory", json.dumps(STAGES[name]), "0.8", "0.5", "0.3", "0.1")
    *short, too_short = (json.loads(line) for line in told.splitlines())
    for outcome in short:
        # The same masks; sums of factors are added up in other groups.
        assert outcome["apart"] <= (1e-3 if name == "svd-whitened" else 0)
        assert "memory was short" in outcome["note"]
    assert too_short["error"].startswith("cuda has no memory to run one block on one calibration")


def counted(place: Path, methods: str, blocks: int = 2, samples: int = 32) -> list[dict[str, Any]]:
    """The records of `bench.device_memory` for a small shape."""
    sizes = ("--blocks", str(blocks), "--samples", str(samples), "--length", "512")
    options = ("--methods", methods, "--results", str(place))
    run("bench.device_memory", "--shapes", "llama-8m", *sizes, *options)
    lines = (place / "device_memory.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_memory_does_not_grow_with_blocks_and_is_near_the_estimate(tmp_path: Path) -> None:
    """Batches decide here, of 8192 tokens."""
    factored = "svd-whitened, rank 64"
    methods = f"wanda++, published;{factored}"
    few = counted(tmp_path / "few", methods, 2)
    many = counted(tmp_path / "many", methods if is_thorough() else factored, 4)
    peaks = {record["method"]: record["peak_bytes"] for record in few}
    assert many
    for record in many:
        assert record["peak_bytes"] == peaks[record["method"]]
    _check_estimates(few)


def test_estimates_are_near_what_is_counted_where_matrices_decide(tmp_path: Path) -> None:
    _check_estimates(counted(tmp_path, "wanda++;best-2:4;svd-whitened, at once", samples=2))


def _check_estimates(records: list[dict[str, Any]]) -> None:
    """Above what is counted, as a tenth of the work is added for what no count sees."""
    for record in records:
        ratio = record["estimated_bytes"] / record["peak_bytes"]
        assert 1.0 <= ratio <= (1.45 if "svd" in record["method"] else 1.25), record
