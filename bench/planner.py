"""What plans cost and buy beside single methods at the same speed, on this machine.

    python -m bench.planner

Times and losses of all choices are measured once. For each target three models are built: the best
plan of all methods, of low rank alone and of dropping alone, each refined alike, and made anew on
all calibration samples, as `secateur compress` makes it of the recipe. Beside them are the single
methods as they are run without a planner: `svd-whitened` with a budget, and blocks dropped by Block
Influence. All are then timed in turns with the dense model; one record.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from torch import nn

from bench.records import append_record
from secateur.calibration.data import load_calibration
from secateur.checkpoint.load import load_with_tokenizer, silence_transformers
from secateur.compress import RecipeLike, compress_with_report
from secateur.errors import SecateurError
from secateur.evaluate.forward import evaluating
from secateur.evaluate.perplexity import encode_text
from secateur.models.swap import pack_model
from secateur.plain import to_plain
from secateur.plan.build import Bench, Built, held_out_losses, measure_built, restricted
from secateur.plan.make import best_measured
from secateur.plan.measure import Measured, measure_table
from secateur.plan.options import PlanOptions
from secateur.plan.refine import best_within
from secateur.plan.result import Measurement
from secateur.plan.table import SPARSE24, Limit
from secateur.plan.workload import Workload
from secateur.progress import SilentProgress

EXAMPLE = Path("examples/books-8m")
LENGTH = 256
PLANNED = ("plan", "low-rank", "drop")
# As a user asks for them, without a planner.
UNPLANNED: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "budget": (
        "svd-whitened --budget {}",
        [
            {"stage": "factor", "method": "svd-whitened", "budget": budget}
            for budget in (0.3, 0.4, 0.5, 0.6, 0.7)
        ],
    ),
    "count": ("--drop-blocks {}", [{"stage": "drop_blocks", "count": n} for n in (1, 2, 3)]),
}


@dataclass(frozen=True)
class Point:
    """A model to be measured, and what was known of it before."""

    model: nn.Module
    facts: dict[str, Any]


def planner(
    model: Annotated[str, typer.Option(help="Model folder.")] = str(EXAMPLE),
    calibration: Annotated[Path, typer.Option(help="Text to calibrate on.")] = EXAMPLE
    / "calibration.txt",
    text: Annotated[Path, typer.Option(help="Text to measure on.")] = EXAMPLE / "evaluation.txt",
    targets: Annotated[str, typer.Option(help="Speed-ups, separated by commas.")] = "1.2,1.4,1.6",
    batch: Annotated[int, typer.Option(help="Sequences.")] = 2,
    length: Annotated[int, typer.Option(help="Tokens in each; 0 to decode.")] = 256,
    num_samples: Annotated[int, typer.Option(help="Calibration windows.")] = 32,
    refinements: Annotated[int, typer.Option(help="Of each planned model.")] = 1,
    rounds: Annotated[int, typer.Option(help="Timed turns of each model built.")] = 15,
    final_rounds: Annotated[int, typer.Option(help="Timed turns of all models.")] = 41,
    threads: Annotated[int, typer.Option(help="To time with; losses take all there are.")] = 1,
    dtype: Annotated[str, typer.Option(help="To compute in.")] = "float32",
    device: Annotated[str | None, typer.Option(help="Default: the CPU.")] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="The machine has other work: say so in the record.")
    ] = False,
) -> None:
    started = perf_counter()
    silence_transformers()
    loaded = load_with_tokenizer(model, None, dtype, False, device)
    tokens = load_calibration(
        calibration, loaded.tokenizer, num_samples=num_samples, max_seq_length=LENGTH, seed=0
    )
    token_ids = encode_text(loaded.tokenizer, text.read_text(encoding="utf-8"))
    options = PlanOptions(rounds=rounds, refinements=refinements)
    workload = Workload(batch, length or None, threads=threads)
    bench = Bench(loaded.model, tokens, workload, rounds, options.damping, token_ids, LENGTH)
    facts = {
        "model": Path(model).name,
        "calibration": calibration.name,
        "num_samples": num_samples,
        "text": f"{text.parent.name}/{text.name}",
        "max_seq_length": LENGTH,
        "num_tokens": len(token_ids) // LENGTH * (LENGTH - 1),
        "dtype": dtype,
        "workload": workload.name,
        "refinements": refinements,
        "rounds": final_rounds,
        "threads": threads,
        "machine_shared": shared,
    }
    speedups = [float(target) for target in targets.split(",")]
    with evaluating(loaded.model):
        measured = measure_table(loaded.model, tokens, workload, options, SilentProgress())
        _say(started, "measured all choices")
        points = planned_points(measured, bench, speedups, refinements, started)
        points |= unplanned_points(bench, started)
        found = measure_turns(bench, points, final_rounds)
    values = {
        "kind": "frontier",
        "dense": to_plain(found["dense"]),
        "points": {name: points[name].facts | result_of(found[name]) for name in points},
        "chosen": handed_over(measured, points, found, speedups),
    }
    for name, point in values["points"].items():
        typer.echo(f"{name:26} {point['speedup']:.3f}  perplexity {point['perplexity']:.2f}")
    seconds = {"seconds": round(perf_counter() - started)}
    append_record("planner", values | {"time_scale": measured.time_scale} | facts | seconds)


def planned_points(
    measured: Measured, bench: Bench, speedups: list[float], refinements: int, started: float
) -> dict[str, Point]:
    """By name such as `plan 1.4`; a target that a method cannot reach has no point."""
    points: dict[str, Point] = {}
    for method in PLANNED:
        table = measured.table if method == "plan" else restricted(measured.table, method)
        for speedup in speedups:
            limit = Limit(milliseconds=table.dense_milliseconds / speedup)
            name = f"{method} {speedup:g}"
            if method == "low-rank" and (same := _without_removals(points, speedup)):
                points[name] = Point(same.model, same.facts | {"method": method})
                _say(started, f"{name}: the plan itself")
                continue
            try:
                best = best_within(bench, measured, table, limit, refinements, SilentProgress())
            except SecateurError as error:
                _say(started, f"{name}: {error}")
                continue
            selection = best.built.selection
            loss, losses = held_out_losses(bench, best.built.model)
            facts = {
                "method": method,
                "target_speedup": speedup,
                "predicted_speedup": table.dense_milliseconds / selection.milliseconds,
                "predicted_loss": measured.dense_loss + selection.loss,
                "losses_built": list(best.losses),
                "loss_built": loss,
                "losses_by_sample": losses,
                "removed": [removal.name for removal in selection.removals],
                "forms": {unit: choice.form for unit, choice in selection.forms.items()},
            }
            points[name] = Point(on_all_samples(bench, best.built), facts)
            _say(started, f"{name}: losses {', '.join(f'{x:.4f}' for x in best.losses)}")
    return points


def on_all_samples(bench: Bench, built: Built) -> nn.Module:
    """The planned model, fitted to the samples that losses were measured on, too."""
    if built.recipe is None:
        return built.model
    network = _compressed(bench, built.recipe)
    if any(choice.form == SPARSE24 for choice in built.selection.forms.values()):
        pack_model(network)
    return network


def _compressed(bench: Bench, recipe: RecipeLike) -> nn.Module:
    network, _ = compress_with_report(
        copy.deepcopy(bench.model), recipe, calibration=bench.tokens, progress=SilentProgress()
    )
    return network.eval()


def _without_removals(points: dict[str, Point], speedup: float) -> Point | None:
    """The plan, where it is one of low rank alone: chosen among all that low rank offers."""
    plan = points.get(f"plan {speedup:g}")
    return None if plan is None or plan.facts["removed"] else plan


def unplanned_points(bench: Bench, started: float) -> dict[str, Point]:
    """Single methods with all calibration samples, as `secateur compress` runs them."""
    points = {}
    for asked, (words, stages) in UNPLANNED.items():
        for stage in stages:
            name = words.format(stage[asked])
            network = _compressed(bench, {"stages": [stage]})
            points[name] = Point(network, {"method": name.split(" ")[0].lstrip("-")})
            _say(started, name)
    return points


def measure_turns(bench: Bench, points: dict[str, Point], rounds: int) -> dict[str, Measurement]:
    """All models and the dense one in the same turns."""
    models = {name: point.model for name, point in points.items()}
    return measure_built(replace(bench, rounds=rounds), models)


def result_of(found: Measurement) -> dict[str, Any]:
    return {"speedup": found.speedup, **to_plain(found)}


def handed_over(
    measured: Measured,
    points: dict[str, Point],
    found: dict[str, Measurement],
    speedups: list[float],
) -> dict[str, str]:
    """By target that a plan reaches: which of the models for it `secateur plan` hands over.

    It goes by the loss on samples that none of them was fitted to.
    """
    reached = [speedup for speedup in speedups if f"plan {speedup:g}" in points]
    return {f"{speedup:g}": _chosen(measured, points, found, speedup) for speedup in reached}


def _chosen(
    measured: Measured, points: dict[str, Point], found: dict[str, Measurement], speedup: float
) -> str:
    dense = measured.table.dense_milliseconds
    own = {name: f"{name} {speedup:g}" for name in PLANNED}
    offered = {
        name: replace(found[key], loss=facts["loss_built"], losses=facts["losses_by_sample"])
        for name, key in own.items()
        if key in points and (facts := points[key].facts)
    }
    return own[best_measured(offered, Limit(milliseconds=dense / speedup), dense)]


def _say(started: float, words: str) -> None:
    typer.echo(f"{perf_counter() - started:5.0f} s  {words}")


if __name__ == "__main__":
    typer.run(planner)
