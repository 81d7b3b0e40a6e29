"""What a plan costs and buys beside each single method at the same speed, on this machine.

    python -m bench.planner --model FOLDER --calibration FILE --text FILE

Times and losses of all choices are measured once. For each target the plan is built, and the best
plan of low rank alone and of dropping alone; all are measured in turns with the dense model. One
record a target.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from bench.records import append_record
from secateur.calibration.data import load_calibration
from secateur.checkpoint.load import load_with_tokenizer, silence_transformers
from secateur.cli.plan_table import plan_table
from secateur.errors import SecateurError
from secateur.evaluate.forward import evaluating
from secateur.evaluate.perplexity import encode_text
from secateur.plain import to_plain
from secateur.plan.build import Bench, build_selection, measure_built, restricted
from secateur.plan.make import Target, plan_from
from secateur.plan.measure import Measured, measure_table
from secateur.plan.options import PlanOptions
from secateur.plan.solve import solve
from secateur.plan.table import Limit
from secateur.plan.workload import Workload
from secateur.progress import SilentProgress

EXAMPLE = Path("examples/books-8m")
LENGTH = 256
METHODS = ("plan", "low-rank", "drop")


def planner(
    model: Annotated[str, typer.Option(help="Model folder.")] = str(EXAMPLE),
    calibration: Annotated[Path, typer.Option(help="Text to calibrate on.")] = EXAMPLE
    / "calibration.txt",
    text: Annotated[Path, typer.Option(help="Text to measure on.")] = EXAMPLE / "evaluation.txt",
    targets: Annotated[str, typer.Option(help="Speed-ups, separated by commas.")] = "1.2,1.3,1.4",
    batch: Annotated[int, typer.Option(help="Sequences.")] = 2,
    length: Annotated[int, typer.Option(help="Tokens in each; 0 to decode.")] = 256,
    windows: Annotated[int | None, typer.Option(help="Only the first windows of the text.")] = None,
    num_samples: Annotated[int, typer.Option(help="Calibration windows.")] = 32,
    fractions: Annotated[str, typer.Option(help="Ranks, of break-even.")] = "0.25,0.5,0.75",
    rounds: Annotated[int, typer.Option(help="Timed turns.")] = 15,
    dtype: Annotated[str, typer.Option(help="To compute in.")] = "float32",
    device: Annotated[str | None, typer.Option(help="Default: the CPU.")] = None,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="Predicted selections alone, all in one run.")
    ] = False,
    shared: Annotated[
        bool, typer.Option("--shared", help="The machine has other work: say so in the records.")
    ] = False,
) -> None:
    silence_transformers()
    loaded = load_with_tokenizer(model, None, dtype, False, device)
    tokens = load_calibration(
        calibration, loaded.tokenizer, num_samples=num_samples, max_seq_length=LENGTH, seed=0
    )
    token_ids = encode_text(loaded.tokenizer, text.read_text(encoding="utf-8"))
    token_ids = token_ids[: windows * LENGTH] if windows else token_ids
    options = PlanOptions(
        rounds=rounds, rank_fractions=tuple(float(part) for part in fractions.split(","))
    )
    workload = Workload(batch, length or None)
    bench = Bench(loaded.model, tokens, workload, rounds, options.damping, token_ids, LENGTH)
    facts = {
        "model": Path(model).name,
        "calibration": calibration.name,
        "num_samples": num_samples,
        "text": f"{text.parent.name}/{text.name}",
        "max_seq_length": LENGTH,
        "num_tokens": len(token_ids) // LENGTH * (LENGTH - 1),
        "dtype": dtype,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "machine_shared": shared,
    }
    with evaluating(loaded.model):
        measured = measure_table(loaded.model, tokens, workload, options, SilentProgress())
        speedups = tuple(float(target) for target in targets.split(","))
        if frontier:
            record_frontier(measured, bench, dict.fromkeys(METHODS, speedups), facts)
            return
        for speedup in speedups:
            record_plan(measured, bench, Target(speedup=speedup), options, facts)


def record_frontier(
    measured: Measured, bench: Bench, targets: dict[str, tuple[float, ...]], facts: dict[str, Any]
) -> None:
    """Predicted selections of every method, built once each and measured in turns; one record.

    Args:
        measured: the table.
        bench: what is measured on.
        targets: speed-ups to select for, by `plan`, `low-rank` and `drop`.
        facts: of the run.
    """
    table = measured.table
    models, points = {}, {}
    for method, speedups in targets.items():
        offered = table if method == "plan" else restricted(table, method)
        for speedup in speedups:
            limit = Limit(milliseconds=table.dense_milliseconds / speedup)
            selection = solve(offered, limit)
            name = f"{method} {speedup:g}"
            models[name], _ = build_selection(bench, selection)
            points[name] = {
                "method": method,
                "target_speedup": speedup,
                "predicted_speedup": table.dense_milliseconds / selection.milliseconds,
                "predicted_loss": measured.dense_loss + selection.loss,
                "removed": [removal.name for removal in selection.removals],
            }
    found = measure_built(bench, models)
    for name, point in points.items():
        result = found[name]
        point |= {"speedup": result.speedup, **to_plain(result)}
        typer.echo(
            f"{name:14} {result.speedup:.3f} (predicted {point['predicted_speedup']:.3f})  "
            f"perplexity {result.perplexity:.2f}  loss {result.loss:.4f} "
            f"(predicted {point['predicted_loss']:.4f})"
        )
    values = {"kind": "frontier", "dense": to_plain(found["dense"]), "points": points}
    append_record("planner", values | {"time_scale": measured.time_scale} | facts)


def record_plan(
    measured: Measured, bench: Bench, target: Target, options: PlanOptions, facts: dict[str, Any]
) -> None:
    """Build and measure for one target; one record."""
    console = Console(emoji=False, width=160)
    try:
        plan = plan_from(measured, bench, target, options, source=facts["model"])
    except SecateurError as error:
        console.print(f"{target.words}: {error}")
        return
    console.print(plan_table(plan))
    values: dict[str, Any] = to_plain(plan)
    found = {"kind": "plan", "target_speedup": target.speedup, "dense_loss": measured.dense_loss}
    append_record("planner", found | values | facts)


if __name__ == "__main__":
    typer.run(planner)
