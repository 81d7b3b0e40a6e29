"""What plans cost and buy beside single methods at the same speed, on this machine.

    python -m bench.planner

Times and losses of all choices are measured once. For each target the best models of low rank
alone, of dropping alone and of all methods are searched for, and made anew on all calibration
samples, as `secateur compress` makes them of the recipe. Beside them are the single methods as
they are run without a planner: `svd-whitened` with a budget, by whole outputs and by directions,
and blocks dropped by Block Influence. All are then timed in turns with the dense model; one record.
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
from secateur.compress import compress_with_report
from secateur.errors import SecateurError
from secateur.evaluate.forward import evaluating
from secateur.evaluate.perplexity import encode_text
from secateur.models.swap import pack_model
from secateur.plain import to_plain
from secateur.plan.build import Bench, Trial, measure_built
from secateur.plan.make import DEFAULT_SAMPLES, seek
from secateur.plan.measure import Measured, measure_table
from secateur.plan.options import PlanOptions
from secateur.plan.result import Measurement
from secateur.plan.table import SPARSE24, Limit
from secateur.plan.workload import Workload
from secateur.progress import SilentProgress
from secateur.recipe import RecipeLike

EXAMPLE = Path("examples/books-8m")
LENGTH = 256
SINGLE = ("low-rank", "drop")
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7)
# As a user asks for them, without a planner: by method, how each is called and what it does.
UNPLANNED: dict[str, dict[str, dict[str, Any]]] = {
    "svd-whitened": {
        f"svd-whitened --budget {budget} --importance loss": {
            "stage": "factor",
            "budget": budget,
            "importance": "loss",
        }
        for budget in BUDGETS
    },
    "svd-whitened, directions": {
        f"svd-whitened --budget {budget} --importance directions": {
            "stage": "factor",
            "budget": budget,
            "importance": "directions",
        }
        for budget in BUDGETS
    },
    "drop-blocks": {
        f"--drop-blocks {count}": {"stage": "drop_blocks", "count": count} for count in (1, 2, 3)
    },
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
    num_samples: Annotated[int, typer.Option(help="Calibration windows.")] = DEFAULT_SAMPLES,
    trials: Annotated[int, typer.Option(help="In search of each model.")] = PlanOptions.trials,
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
    options = PlanOptions(rounds=rounds, trials=trials)
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
        "trials": trials,
        "rounds": final_rounds,
        "threads": threads,
        "machine_shared": shared,
    }
    speedups = [float(target) for target in targets.split(",")]
    with evaluating(loaded.model):
        measured = measure_table(loaded.model, tokens, workload, options, SilentProgress())
        bench = replace(bench, importance=measured.importance)
        _say(started, "measured all choices")
        points = planned_points(measured, bench, speedups, trials, started)
        points |= unplanned_points(bench, started)
        found = measure_turns(bench, points, final_rounds)
    values = {
        "kind": "frontier",
        "dense": to_plain(found["dense"]),
        "points": {name: points[name].facts | result_of(found[name]) for name in points},
        "importance": measured.importance,
        "chosen": {f"{s:g}": f"plan {s:g}" for s in speedups if f"plan {s:g}" in points},
    }
    for name, point in values["points"].items():
        typer.echo(f"{name:26} {point['speedup']:.3f}  perplexity {point['perplexity']:.2f}")
    seconds = {"seconds": round(perf_counter() - started)}
    append_record("planner", values | {"time_scale": measured.time_scale} | facts | seconds)


def planned_points(
    measured: Measured, bench: Bench, speedups: list[float], trials: int, started: float
) -> dict[str, Point]:
    """By name such as `plan 1.4`; a target that a method cannot reach has no point."""
    points: dict[str, Point] = {}
    table = measured.table
    for speedup in speedups:
        limit = Limit(milliseconds=table.dense_milliseconds / speedup)
        try:
            sought = seek(measured, bench, limit, SINGLE, trials, SilentProgress())
        except SecateurError as error:
            _say(started, f"plan {speedup:g}: {error}")
            continue
        models: dict[int, nn.Module] = {}
        for way, built in sought.built.items():
            method = way.removesuffix(" only")
            trial = built.trial
            # The plan may be that of a single method: then it is made and timed once.
            model = models.setdefault(id(trial), on_all_samples(bench, trial))
            facts = {"method": method, "target_speedup": speedup, **_facts(measured, trial)}
            points[f"{method} {speedup:g}"] = Point(model, facts)
            removed = ", ".join(facts["removed"])
            _say(started, f"{method} {speedup:g}: loss {trial.loss:.4f}, without {removed or '-'}")
    return points


def _facts(measured: Measured, trial: Trial) -> dict[str, Any]:
    selection = trial.selection
    return {
        "predicted_speedup": measured.table.dense_milliseconds / selection.milliseconds,
        "predicted_loss": measured.dense_loss + selection.loss,
        "loss_built": trial.loss,
        "losses_by_sample": trial.losses,
        "removed": [removal.name for removal in selection.removals],
        "forms": {unit: choice.form for unit, choice in selection.forms.items()},
    }


def on_all_samples(bench: Bench, trial: Trial) -> nn.Module:
    """The planned model, fitted to the samples that losses were measured on, too."""
    if trial.recipe is None:
        return trial.model
    network = _compressed(bench, trial.recipe)
    if any(choice.form == SPARSE24 for choice in trial.selection.forms.values()):
        pack_model(network)
    return network


def _compressed(bench: Bench, recipe: RecipeLike) -> nn.Module:
    network, _ = compress_with_report(
        copy.deepcopy(bench.model), recipe, calibration=bench.tokens, progress=SilentProgress()
    )
    return network.eval()


def unplanned_points(bench: Bench, started: float) -> dict[str, Point]:
    """Single methods with all calibration samples, as `secateur compress` runs them."""
    points = {}
    for method, stages in UNPLANNED.items():
        for name, stage in stages.items():
            network = _compressed(bench, {"stages": [stage]})
            points[name] = Point(network, {"method": method})
            _say(started, name)
    return points


def measure_turns(bench: Bench, points: dict[str, Point], rounds: int) -> dict[str, Measurement]:
    """All models and the dense one in the same turns."""
    models = {name: point.model for name, point in points.items()}
    return measure_built(replace(bench, rounds=rounds), models)


def result_of(found: Measurement) -> dict[str, Any]:
    return {"speedup": found.speedup, **to_plain(found)}


def _say(started: float, words: str) -> None:
    typer.echo(f"{perf_counter() - started:5.0f} s  {words}")


if __name__ == "__main__":
    typer.run(planner)
