"""`secateur plan`: which layers to compress how, under a limit measured on this machine."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from secateur.cli.loading import Loading, source_name
from secateur.cli.option_groups import with_option_groups
from secateur.cli.options import JsonOutput, ModelArgument, names
from secateur.cli.plan_table import plan_table
from secateur.cli.waiting import shown_progress
from secateur.cli.written import say_wrote, write_whole
from secateur.errors import SecateurError
from secateur.plan.make import DEFAULT_SAMPLES, Target, make_plan
from secateur.plan.options import METHODS, PlanOptions
from secateur.plan.result import Plan
from secateur.plan.workload import DEFAULT_CONTEXT, Workload
from secateur.recipe import recipe_from_dict

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@with_option_groups
def plan_command(
    model: ModelArgument,
    *,
    calibration: Annotated[
        str, typer.Option(help="Text to fit factors to and to measure losses on.")
    ],
    target_speedup: Annotated[
        float | None,
        typer.Option(help="How many times as fast as dense, such as 1.5.", show_default=False),
    ] = None,
    latency: Annotated[
        float | None, typer.Option(help="Longest time in milliseconds.", show_default=False)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Most bytes of weights, such as 10GB.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 1,
    prefill_length: Annotated[
        int | None,
        typer.Option(
            help="Time a prefill of this many tokens per sequence. Default: one step of decoding.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        int, typer.Option(help="For decoding: tokens in the key-value cache.")
    ] = DEFAULT_CONTEXT,
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Some of {', '.join(METHODS)}, separated by commas. Default: all; 2:4 on a GPU "
            "only.",
            show_default=False,
        ),
    ] = None,
    evaluation_text: Annotated[
        Path | None,
        typer.Option(help="With --build: text file to measure perplexity on.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Recipe file to write, YAML: new, or one to replace with --overwrite.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
    build: Annotated[
        bool,
        typer.Option("--build/--no-build", help="Build the plan and measure it, or only predict."),
    ] = True,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare/--no-compare", help="Also build the best plan of each single method."
        ),
    ] = True,
    num_samples: Annotated[
        int, typer.Option(help="Calibration windows; losses are measured on half of them.")
    ] = DEFAULT_SAMPLES,
    max_seq_length: Annotated[
        int | None,
        typer.Option(help="Tokens in a window. Default: 2048, or the model's context."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timed turns.")] = 15,
    trials: Annotated[
        int,
        typer.Option(help="With --build: models to build in search of a better one, at most."),
    ] = PlanOptions.trials,
    seed: Annotated[int, typer.Option(help="Seed of the calibration draw.")] = 0,
    loading: Loading,
    as_json: JsonOutput = False,
) -> None:
    """Measure every layer in every form, choose the best forms for a limit, and check them."""
    target = Target(target_speedup, latency, None if memory is None else parse_bytes(memory))
    workload = Workload(batch, prefill_length, context)
    options = PlanOptions(
        methods=None if methods is None else names(methods), rounds=rounds, trials=trials
    )
    _check_output(output, overwrite)
    loaded = loading.load(model)
    with shown_progress() as progress:
        plan = make_plan(
            loaded.model,
            calibration,
            target,
            workload=workload,
            options=options,
            tokenizer=loaded.tokenizer,
            num_calibration_samples=num_samples,
            max_seq_length=max_seq_length,
            seed=seed,
            evaluation_text=evaluation_text,
            build=build,
            compare=compare,
            source=source_name(model),
            progress=progress,
        )
    written = _write(plan, output)
    if as_json:
        typer.echo(plan.to_json(), nl=False)
        return
    console = Console(emoji=False)
    console.print(plan_table(plan))
    if written is not None:
        say_wrote(console, written)
    elif output is not None:
        console.print("The dense model keeps to the limit: there is no recipe to write.")


def parse_bytes(text: str) -> int:
    """Such as `10GB`, `640 MB` or `5000000`, in powers of ten.

    Raises:
        SecateurError: it is no such text.
    """
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    with suppress(ValueError):
        if match is not None and unit is not None:
            return int(float(match[1]) * unit)
    raise SecateurError(f"expected --memory such as 10GB or 640MB, got {text!r}")


def _check_output(output: Path | None, overwrite: bool) -> None:
    """Refuse an output before anything is measured."""
    if output is None:
        return
    if output.is_dir():
        raise SecateurError(f"expected a file for --output, but {output} is a folder")
    if output.exists() and not overwrite:
        raise SecateurError(f"{output} is there already: --overwrite replaces it")


def _write(plan: Plan, output: Path | None) -> Path | None:
    """The recipe, with what was predicted and measured in comments before it.

    An older one goes where nothing is to be done: it would be taken for that of this plan.
    """
    if output is None:
        return None
    if plan.recipe is None:
        with suppress(FileNotFoundError):
            output.unlink()
        return None
    comments = "".join(f"# {line}\n" for line in recipe_words(plan))
    write_whole(output, comments + recipe_from_dict(plan.recipe).to_yaml())
    return output


def recipe_words(plan: Plan) -> list[str]:
    """What the head of the recipe says."""
    predicted = plan.chosen.predicted
    dense = plan.rows[0].predicted
    assert predicted is not None
    assert dense is not None
    lines = [
        f"secateur plan of {plan.model}: {plan.limit}, {plan.workload}, on {plan.device}",
        f"predicted: {predicted.milliseconds:.4g} ms (dense {dense.milliseconds:.4g}), "
        f"{predicted.num_bytes:,} bytes, loss {predicted.loss:.4f} (dense {dense.loss:.4f})",
    ]
    found = plan.chosen.measured
    if found is not None:
        lines.append(
            f"measured: {found.milliseconds:.4g} ms (dense {found.dense_milliseconds:.4g}), "
            f"{found.num_bytes:,} bytes, loss {found.loss:.4f}"
        )
    return lines
