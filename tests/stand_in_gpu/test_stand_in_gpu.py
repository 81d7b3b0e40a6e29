"""Paths through a GPU, on a stand-in for one; in processes of their own, as torch stays changed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.stand_in_gpu.library import build, why_not

ROOT = Path(__file__).parents[2]
_WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    build()


def run(*arguments: str) -> str:
    """Standard output of `python -m arguments`."""
    places = [ROOT / "src", ROOT / "kernels", ROOT, ROOT / "tests"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_it_behaves_like_a_gpu() -> None:
    found = json.loads(run("stand_in_gpu.behaves"))
    mixed, too_much, generator = (
        found.pop(name) for name in ("mixed", "too much", "generator of the host")
    )
    assert mixed.startswith("RuntimeError: Expected all tensors to be on the same device")
    assert too_much.startswith("OutOfMemoryError: CUDA out of memory. Tried to allocate 4194304")
    assert generator.startswith("RuntimeError: Expected a 'cuda' device type for generator")
    assert found == {
        "device": "cuda:0",
        "product": [[5.0, 14.0], [14.0, 50.0]],
        "view shares memory": True,
        "gradient": "cuda:0",
        "deepcopy": "cuda:0",
        "number of the host": True,
        "indices of the host": [[3.0, 4.0, 5.0]],
        "pinned": [True, False],
        "counted": 4096,
        "given back": 0,
        "not computed": [[[0.0] * 3] * 2, True, 1.0],
    }


def test_stages_on_it_make_what_the_cpu_makes() -> None:
    plugin = ("-p", "bench.stand_in_gpu.pytest_plugin", "-p", "no:cacheprovider", "-n", "0", "-q")
    told = run("pytest", *plugin, "tests/gpu/use/test_stages_on_the_device.py")
    assert re.search(r"^\d+ passed in", told, re.MULTILINE), told


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
    assert re.match(
        "cuda has no memory to run one block on one calibration sample", too_short["error"]
    )


def test_counted_memory_is_within_the_estimate(tmp_path: Path) -> None:
    sizes = ("--blocks", "2", "--samples", "64", "--length", "512")
    methods = ("--methods", "wanda;wanda++", "--results", str(tmp_path))
    run("bench.device_memory", "--shapes", "llama-8m", *sizes, *methods)
    lines = (tmp_path / "device_memory.jsonl").read_text(encoding="utf-8").splitlines()
    for record in map(json.loads, lines):
        estimate = record["estimated_bytes"]
        assert 0.25 * estimate < record["peak_bytes"] <= estimate, record["method"]
    assert len(lines) == 2
