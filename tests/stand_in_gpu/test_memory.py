"""A GPU's memory, on a stand-in for one: where it is short, and how much is needed."""

import json
from pathlib import Path
from typing import Any

import pytest
from stand_in_gpu.own_process import needs_stand_in, run

pytestmark = needs_stand_in

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


def counted(place: Path, method: str, blocks: int) -> dict[str, Any]:
    """The record of `bench.device_memory` for a small shape."""
    sizes = ("--blocks", str(blocks), "--samples", "64", "--length", "512")
    options = ("--methods", method, "--results", str(place))
    run("bench.device_memory", "--shapes", "llama-8m", *sizes, *options)
    (line,) = (place / "device_memory.jsonl").read_text(encoding="utf-8").splitlines()
    record: dict[str, Any] = json.loads(line)
    return record


def test_memory_is_within_the_estimate_and_does_not_grow_with_blocks(tmp_path: Path) -> None:
    few, many = (counted(tmp_path / str(blocks), "wanda", blocks) for blocks in (2, 4))
    assert 0.25 * few["estimated_bytes"] < few["peak_bytes"] <= few["estimated_bytes"]
    assert many["peak_bytes"] == few["peak_bytes"]
