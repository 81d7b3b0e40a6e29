"""A program: one stage on a stand-in GPU that has less and less memory; a JSON line each.

python -m stand_in_gpu.short_of_memory '{"stage": ...}' 0.9 0.5
"""

import json
import sys
from typing import Any

from bench.stand_in_gpu.begin import begin

DEVICE = begin()

import torch  # noqa: E402
from families import tiny_model  # noqa: E402

from secateur import SecateurError, compress_with_report  # noqa: E402


def compressed(stage: dict[str, Any]) -> tuple[dict[str, torch.Tensor], str]:
    """Weights, and the first note of a block."""
    tokens = torch.randint(0, 90, (16, 64), generator=torch.Generator().manual_seed(0))
    model, report = compress_with_report(
        tiny_model("llama", seed=0), {"stages": [stage]}, calibration=tokens, device="cuda"
    )
    notes = [block.note for block in report.stages[0].blocks]  # type: ignore[union-attr]
    return dict(model.state_dict()), next(filter(None, notes), "")


def main() -> None:
    stage, shares = json.loads(sys.argv[1]), map(float, sys.argv[2:])
    DEVICE.reset_peak()
    expected, _ = compressed(stage)
    peak = DEVICE.peak()
    for share in shares:
        DEVICE.set_capacity(int(share * peak))
        print(json.dumps(outcome(stage, expected)), flush=True)


def outcome(stage: dict[str, Any], expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    """How far weights are from the expected ones, or the error."""
    try:
        found, note = compressed(stage)
    except SecateurError as error:
        return {"error": str(error)}
    apart = max(
        float((found[name] - value).norm() / value.norm()) for name, value in expected.items()
    )
    return {"apart": apart, "note": note}


if __name__ == "__main__":
    main()
