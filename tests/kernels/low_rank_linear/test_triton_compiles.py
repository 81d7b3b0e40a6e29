"""The Triton kernels of the low-rank linear, compiled for two generations of GPUs without one."""

import json
import os
import subprocess
import sys

import pytest

from secateur_kernels.low_rank_linear.triton_config import DOWN_TILES, UP_TILES

MODULE = "secateur_kernels.low_rank_linear.triton_kernel"


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
    tiles = [f"down bf16, {t.tokens} x {t.ranks} x {t.columns}" for t in DOWN_TILES]
    tiles += [f"up bf16, {t.tokens} x {t.features} x {t.ranks}" for t in UP_TILES]
    for name in tiles:
        assert {r["capability"] for r in reports if name in r["name"]} == {80, 90}
    # sm_86 and sm_89 give a block 99 KB of shared memory.
    bf16 = [report for report in reports if "bf16" in report["name"]]
    assert all(report["shared_bytes"] <= 99 * 1024 for report in bf16)
