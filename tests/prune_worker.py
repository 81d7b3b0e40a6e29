"""One of several processes that prune a model together: started by test_processes_that_prune.py
as torchrun starts them, or called for one process alone.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from families import VOCAB_SIZE, tiny_model
from torch import Tensor

from secateur.calibration.tokens import tokens_from_tensor
from secateur.compress import compress, compress_with_report
from secateur.errors import SecateurError
from secateur.parallel import join_processes
from secateur.plain import to_plain
from secateur.settings import read_settings

LENGTH = 128
"""Tokens of a sample: eight samples are a batch."""

RECIPES: dict[str, dict[str, Any]] = {
    "wanda": {"method": "wanda"},
    "sparsegpt": {"method": "sparsegpt"},
    "rgs": {"method": "rgs"},
    "wanda++": {"method": "wanda++", "reconstruct": {"rounds": 2, "samples_per_round": 8}},
    "published": {"method": "wanda++", "reconstruct": {"preset": "published", "rounds": 2}},
    "halves": {
        "method": "wanda++",
        "reconstruct": {"rounds": 1, "granularity": "halves", "held_out": 0.2},
    },
    "best": {"method": "best-2:4", "reconstruct": {"rounds": 1}},
    "all experts": {"method": "wanda", "calibrate_all_experts": True},
}


def samples(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, VOCAB_SIZE, (count, LENGTH), generator=generator)


def prune(family: str, name: str, count: int = 20) -> tuple[dict[str, Tensor], Any]:
    """The weights, and the record of the stage as plain values without times."""
    model = tiny_model(family)
    recipe = {"stages": [{"stage": "prune", "pattern": "2:4", **RECIPES[name]}]}
    # Each reaches into the next: what is trained on depends on what is held out.
    spans = tuple((64 * n, 64 * n + LENGTH) for n in range(count))
    tokens = replace(tokens_from_tensor(samples(count)), spans=spans)
    _, report = compress_with_report(model, recipe, calibration=tokens)
    record: Any = to_plain(report.stages[0])
    return model.state_dict(), _timeless(record)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not k.startswith("seconds")}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def check_calls() -> None:
    """What the first process alone does, and values and tensors that go from one to all."""
    parallel, device = join_processes(torch.device("cpu"))
    assert (parallel.size, device.type) == (2, "cpu")
    assert parallel.gather(parallel.rank * 3) == [0, 3]
    assert parallel.from_first(lambda: parallel.rank + 10) == 10
    for dtype in (torch.bool, torch.bfloat16, torch.float64, torch.int64):
        tensor = (torch.arange(6).view(2, 3) * (1 - parallel.rank)).to(dtype)
        parallel.broadcast_(tensor, tensor.T)
        assert torch.equal(tensor, torch.arange(6).view(2, 3).to(dtype))
    sums = torch.full((3, 2), 2.0 + parallel.rank).T
    parallel.sum_(sums, sums[:, :1])
    assert sums.tolist() == [[10.0, 5.0, 5.0]] * 2

    def fail() -> int:
        raise SecateurError(f"process {parallel.rank} failed")

    try:
        parallel.from_first(fail)
    except SecateurError as error:
        caught = str(error)
    else:
        caught = "nothing"
    assert caught == "process 0 failed", caught


def write_and_refuse(output: Path) -> str:
    """`written` in a folder, by the first process, and the reason why one sample is too few."""
    recipe = {"stages": [{"stage": "prune", "method": "wanda", "pattern": "2:4"}]}
    compress(tiny_model("llama"), recipe, calibration=samples(3), output=output / "written")
    try:
        compress(tiny_model("llama"), recipe, calibration=samples(1), output=output / "refused")
    except SecateurError as error:
        return str(error)
    return "nothing was refused"


def main(output: Path, *cases: str) -> None:
    torch.set_num_threads(1)
    rank = read_settings().rank
    check_calls()
    (output / f"refused-{rank}.txt").write_text(write_and_refuse(output))
    for case in cases:
        family, name = case.split(":")
        weights, record = prune(family, name)
        torch.save(weights, output / f"{family}-{name}-{rank}.pt")
        (output / f"{family}-{name}-{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
