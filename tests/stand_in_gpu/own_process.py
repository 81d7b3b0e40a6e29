"""Programs that use the stand-in, each in a process of its own, as torch stays changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench.stand_in_gpu.library import build, why_not

ROOT = Path(__file__).parents[2]
_WHY_NOT = why_not()
needs_stand_in = pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))


def run(*arguments: str) -> str:
    """Standard output of `python -m arguments`."""
    build()
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
