"""SIGKILL at any moment: what is resumed ends as what was never interrupted."""

import json
from pathlib import Path
from typing import Any

import pytest
from families import tiny_model
from forked import run_python
from streaming_jobs import NUM_BLOCKS, save, weight_bytes
from thoroughness import examples

from secateur.checkpoint.manifest import manifest_faults
from secateur.report.record import load_report

TESTS = Path(__file__).parent.parent


KILLS = {"moments": examples(20), "steps": examples(8), "factors": examples(8)}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder of results, what happened by kind); one process forks all jobs."""
    results = tmp_path_factory.mktemp("killed")
    folder = save(tiny_model("llama", NUM_BLOCKS), tmp_path_factory.mktemp("models") / "in", "20KB")
    kinds_and_kills = [str(word) for pair in KILLS.items() for word in pair]
    arguments = [str(folder), str(results), *kinds_and_kills]
    done = run_python(str(TESTS / "streaming_worker.py"), *arguments, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return results, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLS)
def test_killed_again_and_again(killed: tuple[Path, Any], kind: str) -> None:
    results, told = killed[0], killed[1][kind]
    # Some were killed with blocks finished, or this would prove nothing.
    assert len(told["finished"]) == KILLS[kind]
    assert any(0 < count < NUM_BLOCKS for count in told["finished"]), told
    unharmed = results / f"{kind}-expected"
    expected = weight_bytes(unharmed)
    outputs = sorted(path.name for path in (results / kind).iterdir())
    for name in outputs:
        if name.startswith("."):
            # Killed between the last fact and the folder that held it.
            assert not (results / kind / name / "job.json").exists()
            continue
        assert weight_bytes(results / kind / name) == expected, name
        assert manifest_faults(results / kind / name) == []
        assert load_report(results / kind / name).size == load_report(unharmed).size
    assert len([name for name in outputs if not name.startswith(".")]) == told["jobs"]
