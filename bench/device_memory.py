"""GPU memory that pruning and factoring of large shapes takes, counted on a machine without a GPU.

    python -m bench.device_memory [--methods 'wanda;wanda++'] [--shapes llama-3-8b]

Jobs are streamed from disk to disk with 128 x 2048 calibration tokens through a stand-in GPU
(bench/stand_in_gpu) that takes memory for every result and computes nothing. What libraries'
kernels take beside their results is not counted, nor are gaps that an allocator leaves. Weights are
zeros, a few blocks of the shape: memory does not grow with their number. Takes minutes, and 4 GB on
disk for a shape of 8B, 10 GB for 70B.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench.stand_in_gpu.begin import begin

DEVICE = begin(computes=False)

import torch  # noqa: E402

from bench.large_models import write_random_model  # noqa: E402
from bench.records import RESULTS, append_record  # noqa: E402
from secateur.compress_streaming import compress_streaming  # noqa: E402
from secateur.prepare import CalibrationChoice  # noqa: E402
from secateur.prepare_streaming import estimate_streaming, prepare_streaming  # noqa: E402
from secateur.progress import SilentProgress  # noqa: E402
from secateur.throughput.shapes import shape_named  # noqa: E402

BLOCKS = {"llama-3-70b-block": 4}
"""As the goal has it; two of other shapes."""
GOALS = {"llama-3-8b": 16 * 10**9, "llama-3-70b-block": 40 * 10**9}
"""Bytes, for Wanda and Wanda++."""
_PRUNE: dict[str, Any] = {"stage": "prune", "pattern": "2:4"}
_FACTOR: dict[str, Any] = {"stage": "factor", "method": "svd-whitened"}
METHODS: dict[str, dict[str, Any]] = {
    **{
        name: {**_PRUNE, "method": name}
        for name in ("magnitude", "wanda", "wanda++", "sparsegpt", "best-2:4")
    },
    "svd-whitened, rank 512": {**_FACTOR, "rank": 512},
}
MORE_METHODS: dict[str, dict[str, Any]] = {
    "admm": {**_PRUNE, "method": "admm"},
    "ria, conjugate gradient": {**_PRUNE, "method": "ria", "update": "conjugate_gradient"},
    "rgs": {**_PRUNE, "method": "rgs"},
    "wanda++, published": {
        **_PRUNE,
        "method": "wanda++",
        # Every round takes what the first one takes.
        "reconstruct": {"preset": "published", "rounds": 1},
    },
    "svd-whitened, rank 64": {**_FACTOR, "rank": 64},
    "svd-whitened, at once": {**_FACTOR, "rank": 64, "in_turn": False},
    "svd": {"stage": "factor", "method": "svd", "rank": 64},
}
"""Not in the tables: the estimate is held against them, too. What depends on values, such as swaps,
rows of equations or 2:4 beside low rank, cannot be counted without computing."""


def measure(folder: Path, stage: dict[str, Any], tokens: torch.Tensor) -> tuple[int, int]:
    """(largest memory counted, what `--dry-run` says), in bytes."""
    recipe = {"stages": [stage]}
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        output = Path(place) / "output"
        choice = CalibrationChoice(tokens, len(tokens), tokens.shape[1], seed=0)
        job = prepare_streaming(folder, recipe, choice, output=output, device="cuda")
        estimate = estimate_streaming(job)
        DEVICE.reset_peak()
        compress_streaming(
            folder,
            recipe,
            calibration=tokens,
            output=output,
            device="cuda",
            progress=SilentProgress(),
        )
        return DEVICE.peak(), estimate.device_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", default=",".join(GOALS))
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--blocks", type=int, help="instead of two, of 70B four")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the record")
    arguments = parser.parse_args()
    for name in arguments.shapes.split(","):
        shape = shape_named(name)
        blocks = arguments.blocks or BLOCKS.get(name, 2)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            write_random_model(folder, shape, blocks, "cuda")
            size = (arguments.samples, arguments.length)
            tokens = torch.randint(0, int(shape.fields["vocab_size"]), size)
            for method in arguments.methods.split(";"):
                peak, estimated = measure(folder, (METHODS | MORE_METHODS)[method], tokens)
                values = {
                    "shape": name,
                    "blocks": blocks,
                    "method": method,
                    "samples": arguments.samples,
                    "length": arguments.length,
                    "peak_bytes": peak,
                    "estimated_bytes": estimated,
                    "goal_bytes": GOALS.get(name) if method in ("wanda", "wanda++") else None,
                }
                append_record("device_memory", values, arguments.results)
                print(f"{name} {method}: {peak / 1e9:.1f} GB, estimated {estimated / 1e9:.1f}")


if __name__ == "__main__":
    main()
