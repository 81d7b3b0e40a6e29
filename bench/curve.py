"""How much of the gap between Wanda and dense is closed at 2:4, against time.

    python -m bench.texts --text FILE --output FOLDER
    python -m bench.curve --model FOLDER --calibration FILE --texts FOLDER

Time counts in runs of the plain reference Wanda that is kept in `bench.published`, which runs once
before and once after every setting. It is the process's CPU time, which on one thread
(OMP_NUM_THREADS=1) is the time on a quiet machine, whatever else runs: with more threads, or on a
GPU, it would not be. The model is in memory and the tokens are drawn; everything else, each
method's own measuring of errors included, is counted.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench.records import append_record
from bench.trials import Bench

SETTINGS: dict[str, dict[str, Any]] = {
    "wanda": {"method": "wanda"},
    "sparsegpt": {"method": "sparsegpt"},
    "admm": {"method": "admm"},
    "wanda++ published": {"method": "wanda++", "reconstruct": {"preset": "published"}},
    "wanda++, 1 round": {"method": "wanda++", "reconstruct": {"rounds": 1}},
    "wanda++": {"method": "wanda++"},
    "best-2:4, 1 round of 16": {
        "method": "best-2:4",
        "reconstruct": {"rounds": 1, "samples_per_round": 16, "samples_per_step": 1},
    },
    "best-2:4, 1 round of 32": {
        "method": "best-2:4",
        "reconstruct": {"rounds": 1, "samples_per_round": 32, "samples_per_step": 1},
    },
    "best-2:4, 1 round": {"method": "best-2:4", "reconstruct": {"rounds": 1}},
    "best-2:4, 2 rounds": {"method": "best-2:4", "reconstruct": {"rounds": 2}},
    "best-2:4, 3 rounds": {"method": "best-2:4", "reconstruct": {"rounds": 3}},
    "best-2:4": {"method": "best-2:4"},
    "best-2:4, 1 round, bf16 products": {
        "method": "best-2:4",
        "reconstruct": {"rounds": 1, "autocast": True},
    },
    "best-2:4, 2 rounds, bf16 products": {
        "method": "best-2:4",
        "reconstruct": {"rounds": 2, "autocast": True},
    },
    "best-2:4, bf16 products": {"method": "best-2:4", "reconstruct": {"autocast": True}},
    "best-2:4, halves": {"method": "best-2:4", "reconstruct": {"granularity": "halves"}},
    "best-2:4, 8 rounds": {"method": "best-2:4", "reconstruct": {"rounds": 8}},
}


def run(bench: Bench, name: str, tokens: torch.Tensor) -> dict[str, Any]:
    """Time one setting between two runs of the reference; what to record."""
    before = bench.reference_seconds(tokens)
    model, report, seconds = bench.prune(SETTINGS[name], tokens)
    after = bench.reference_seconds(tokens)
    quality = bench.quality(model)
    stage = report.stages[0]
    steps = ("calibrating", "pruning", "tuning", "propagating")
    return {
        **bench.facts,
        "setting": name,
        "cpu_seconds": seconds,
        "reference_cpu_seconds": [before, after],
        "times_reference": 2 * seconds / (before + after),
        "wall_seconds_of_steps": {step: getattr(stage, f"seconds_{step}") for step in steps},
        "perplexity": vars(quality),
        "perplexity_dense": vars(bench.dense_quality),
        "perplexity_wanda": vars(bench.wanda_quality),
        "gap_closed": bench.gap_closed(quality),
    }


def main(
    texts: Annotated[Path, typer.Option(help="Made by bench.texts.")],
    model: Annotated[str, typer.Option(help="Model folder.")] = "examples/books-8m",
    calibration: Annotated[Path, typer.Option(help="Text to calibrate on.")] = Path(
        "examples/books-8m/calibration.txt"
    ),
    num_samples: Annotated[int, typer.Option(help="Calibration windows of 256 tokens.")] = 64,
    windows: Annotated[int, typer.Option(help="Windows of 256 tokens of each text.")] = 64,
    settings: Annotated[
        str | None, typer.Option(help="Only these, between semicolons.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="The machine has no other work.")] = False,
) -> None:
    if torch.get_num_threads() > 1:
        raise typer.BadParameter("expected one thread, set OMP_NUM_THREADS=1")
    bench = Bench(model, calibration, texts, num_samples, windows)
    tokens = bench.tokens()
    # First use of threads and buffers.
    bench.reference_seconds(tokens[:2])
    names = [name.strip() for name in settings.split(";")] if settings else list(SETTINGS)
    for name in names:
        record = run(bench, name, tokens) | {"machine_shared": not quiet}
        append_record("curve", record)
        closed = record["gap_closed"]
        typer.echo(
            f"{name:34} {record['times_reference']:5.1f} times the reference  "
            f"choose {closed['choose']:6.1%}  report {closed['report']:6.1%}"
        )


if __name__ == "__main__":
    typer.run(main)
