"""SIGKILL at any moment: what is resumed ends as what was never interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from families import tiny_model
from streaming_jobs import NUM_BLOCKS, save, weight_bytes

from secateur.checkpoint.manifest import manifest_faults
from secateur.report.record import load_report

TESTS = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("moments", 20), ("steps", 8)])
def test_killed_again_and_again(tmp_path: Path, kind: str, kills: int) -> None:
    folder = save(tiny_model("llama", NUM_BLOCKS), tmp_path / "in", "20KB")
    results = tmp_path / "results"
    results.mkdir()
    arguments = [str(folder), str(results), str(kills), kind]
    done = subprocess.run(
        [sys.executable, str(TESTS / "streaming_worker.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    # Some were killed with blocks finished, or this would prove nothing.
    assert len(told["finished"]) == kills
    assert any(0 < count < NUM_BLOCKS for count in told["finished"]), told
    expected = weight_bytes(results / "expected")
    outputs = sorted(path.name for path in results.iterdir() if path.name != "expected")
    for name in outputs:
        if name.startswith("."):
            # Killed between the last fact and the folder that held it.
            assert not (results / name / "job.json").exists()
            continue
        assert weight_bytes(results / name) == expected, name
        assert manifest_faults(results / name) == []
        assert load_report(results / name).size == load_report(results / "expected").size
    assert len([name for name in outputs if not name.startswith(".")]) == told["jobs"]
