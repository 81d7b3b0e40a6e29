"""Two processes that calibrate together end with the model that one makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import tiny_model
from forked import run_together
from prune_worker import prune, samples
from thoroughness import is_thorough, most_telling

TESTS = Path(__file__).parent
CASES = most_telling(
    [
        *(f"llama:{name}" for name in ("wanda", "sparsegpt", "rgs", "wanda++", "published")),
        *(f"mixtral:{name}" for name in ("wanda", "sparsegpt", "rgs", "wanda++", "all experts")),
        "llama:halves",
    ],
    ["llama:wanda", "llama:published", "llama:halves", "mixtral:sparsegpt", "mixtral:all experts"],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that two processes made."""
    path = tmp_path_factory.mktemp("processes")
    arguments = (str(TESTS / "prune_worker.py"), str(path), *CASES, "llama:best")
    if is_thorough():
        started_by_torchrun(arguments)
    else:
        run_together(2, *arguments)
    return path


def started_by_torchrun(arguments: tuple[str, ...]) -> None:
    """As a user starts them; what is forked need not import everything three times."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def made(folder: Path, case: str, rank: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    stem = f"{case.replace(':', '-')}-{rank}"
    record = json.loads((folder / f"{stem}.json").read_text())
    return torch.load(folder / f"{stem}.pt", weights_only=True), record


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_very_weights_of_one(folder: Path, case: str) -> None:
    weights, record = made(folder, case, 0)
    others, other_record = made(folder, case, 1)
    alone, alone_record = prune(*case.split(":"))
    for name, value in alone.items():
        # One sample is a step here, so that no sum of gradients depends on its order.
        assert torch.equal(weights[name], value), name
        assert torch.equal(others[name], value), name
    assert record == other_record
    for ours, theirs in zip(record["blocks"], alone_record["blocks"], strict=True):
        assert ours["output_error"] == pytest.approx(theirs["output_error"], rel=1e-12)
        assert ours["expert_tokens"] == theirs["expert_tokens"]
    for ours, theirs in zip(record["layers"], alone_record["layers"], strict=True):
        assert ours["num_tokens"] == theirs["num_tokens"]
        if "experts" not in ours["name"]:
            assert ours["output_error"] == theirs["output_error"]


@pytest.mark.slow
def test_several_samples_a_step_differ_by_rounding_alone(folder: Path) -> None:
    weights, _ = made(folder, "llama:best", 0)
    others, _ = made(folder, "llama:best", 1)
    alone, _ = prune("llama", "best")
    dense = tiny_model("llama").state_dict()
    for name, value in alone.items():
        assert torch.equal(weights[name], others[name]), name
        assert torch.equal(weights[name] == 0, value == 0), name
    apart = sum(float((weights[name] - value).abs().sum()) for name, value in alone.items())
    moved = sum(float((dense[name] - value).abs().sum()) for name, value in alone.items())
    assert apart < 1e-3 * moved


@pytest.mark.slow
def test_the_first_process_writes(folder: Path) -> None:
    assert (folder / "written" / "secateur_report.json").is_file()
    for rank in (0, 1):
        reason = (folder / f"refused-{rank}.txt").read_text()
        assert "expected at least one calibration sample for each of 2 processes, got 1" in reason
    assert not (folder / "refused").exists()
    assert samples(1).shape == (1, 128)
