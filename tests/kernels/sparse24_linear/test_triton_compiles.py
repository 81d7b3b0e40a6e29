"""The Triton kernels of the 2:4 linear, compiled for two generations of GPUs without one."""

import json
import os
import subprocess
import sys

import pytest

from secateur_kernels.sparse24_linear.triton_config import TILES

MODULE = "secateur_kernels.sparse24_linear.triton_kernel"


@pytest.mark.slow
@pytest.mark.compiled
def test_no_tile_spills() -> None:
    # Without the interpreter, which cannot be switched off in this process.
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "secateur_kernels.testing.ahead_of_time", MODULE]
    command += ["--capability", "80", "90", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    for tile in TILES:
        name = f"{tile.tokens} x {tile.rows} x {tile.columns}"
        assert {r["capability"] for r in reports if name in r["name"]} == {80, 90}
    # sm_86 and sm_89 give a block 99 KB of shared memory.
    assert all(report["shared_bytes"] <= 99 * 1024 for report in reports)
