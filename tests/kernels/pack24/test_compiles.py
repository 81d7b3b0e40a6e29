"""The kernels that make masks and pack, compiled for two generations of GPUs without one."""

import json
import os
import subprocess
import sys

import pytest

MODULES = [
    "secateur_kernels.pack24.triton_kernel",
    "secateur_kernels.unpack24.triton_kernel",
    "secateur_kernels.threshold.triton_kernel",
]


@pytest.mark.slow
@pytest.mark.compiled
def test_nothing_spills() -> None:
    # Without the interpreter, which cannot be switched off in this process.
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "secateur_kernels.testing.ahead_of_time", *MODULES]
    command += ["--capability", "80", "90", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    for op in ("pack24", "unpack24", "keep_largest_per_row"):
        assert {r["capability"] for r in reports if r["name"].startswith(op)} == {80, 90}
    # Memory keeps busy only while several blocks share a multiprocessor.
    hot = [r for r in reports if "pack24" in r["name"] and "+" not in r["name"]]
    assert all(report["registers"] <= 64 for report in hot), hot
