"""`secateur search`: which cuts in rank make a model better at a task."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from secateur.cli.loading import Loading, source_name
from secateur.cli.option_groups import with_option_groups
from secateur.cli.options import JsonOutput, ModelArgument, names
from secateur.cli.search_table import search_table
from secateur.cli.waiting import shown_progress
from secateur.cli.written import say_wrote, write_whole
from secateur.errors import SecateurError
from secateur.report.search_page import render_search
from secateur.report.search_record import SEARCH_FILE, SearchRecord
from secateur.search import SearchOptions, load_task, search_laser, search_recipe
from secateur.search.journal import JOURNAL_FILE

RECIPE_FILE = "recipe.yaml"
PAGE_FILE = "search.html"
_PUBLISHED = ",".join(map("{:g}".format, SearchOptions().fractions))
_OWN_FILES = (JOURNAL_FILE, SEARCH_FILE, RECIPE_FILE, PAGE_FILE)


@with_option_groups
def search_command(
    model: ModelArgument,
    *,
    task: Annotated[
        str,
        typer.Option(
            help="JSON lines of multiple choice, minimal pairs, cloze or facts (CounterFact), or "
            "the name of an lm-eval task."
        ),
    ],
    metric: Annotated[
        str,
        typer.Option(
            help="accuracy (likeliest candidate, or exact greedy answer), generation (greedy "
            "continuation contains the answer), or loss."
        ),
    ] = "accuracy",
    types: Annotated[
        str | None,
        typer.Option(
            help="Matrix types, such as q,v,mlp_in. Default: all that the model has of q, k, v, "
            "qkv, o, mlp_in, mlp_up, mlp_out."
        ),
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks from 0, such as 0,5-7. Default: all.")
    ] = None,
    fractions: Annotated[
        str,
        typer.Option(help="Fractions of the full rank to keep; the default is the published grid."),
    ] = _PUBLISHED,
    keep_best: Annotated[
        int | None,
        typer.Option(
            "--filter",
            help="Search only this many matrices: the best by the gradient of the validation loss.",
            show_default=False,
        ),
    ] = None,
    compose: Annotated[
        str,
        typer.Option(
            help="Which cuts to try together: improving (those that alone beat dense), all (as "
            "published), none."
        ),
    ] = "improving",
    validation_fraction: Annotated[
        float,
        typer.Option(help="Fraction of the items to choose by; results are reported on the rest."),
    ] = 0.5,
    limit: Annotated[
        int | None, typer.Option(help="Use only this many items of the task, from the first.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    analyse: Annotated[
        int,
        typer.Option(help="Answer this many test items with the discarded components."),
    ] = 0,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Continue this with the discarded components. Repeatable."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Sequences at once.")] = 16,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for search.json, recipe.yaml, search.html and the journal. If it holds a "
            "search, --resume or --overwrite is needed.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the search in the output folder.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the search in the output folder.")
    ] = False,
    loading: Loading,
    as_json: JsonOutput = False,
) -> None:
    """Find matrices of MODEL that are better cut to a low rank (LASER).

    Cuts are chosen on one part of the task's items and reported on the other.
    """
    values: dict[str, Any] = {"metric": metric, "limit": limit, "max_new_tokens": max_new_tokens}
    asked = load_task(task, **values, seed=seed)
    options = _options(
        types=None if types is None else names(types),
        blocks=_block_numbers(blocks),
        fractions=_fractions(fractions),
        filter=keep_best,
        compose=compose,
        validation_fraction=validation_fraction,
        seed=seed,
        analyse_items=analyse,
        prompts=tuple(prompt or ()),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    _check_output(output, resume, overwrite)
    loaded = loading.load(model)
    with shown_progress() as progress:
        record = search_laser(
            loaded.model,
            loaded.tokenizer,
            asked,
            options,
            source=source_name(model),
            folder=output,
            resume=resume,
            progress=progress,
        )
    written = _write(record, output) if output is not None else []
    if as_json:
        typer.echo(record.to_json(), nl=False)
        return
    console = Console(emoji=False)
    console.print(search_table(record))
    for path in written:
        say_wrote(console, path)


def _options(**values: Any) -> SearchOptions:
    return SearchOptions(**values)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SecateurError(
            f"expected --fractions such as 0.9,0.1,0.01, but got {text!r}"
        ) from None


def _block_numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        ends = (first, last if dash else first)
        if not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
            raise SecateurError(f"expected --blocks such as 0,5-7, but got {text!r}")
        numbers += range(int(ends[0]), int(ends[1]) + 1)
    return tuple(numbers)


def _check_output(output: Path | None, resume: bool, overwrite: bool) -> None:
    """Refuse an output before the model is loaded."""
    if resume and overwrite:
        raise SecateurError("give either --resume or --overwrite, not both")
    if output is None:
        if resume or overwrite:
            raise SecateurError("--resume and --overwrite need --output DIR")
        return
    if output.exists() and not output.is_dir():
        raise SecateurError(f"expected a folder to write to, but {output} is a file")
    has_search = any((output / name).exists() for name in _OWN_FILES)
    if has_search and not resume and not overwrite:
        raise SecateurError(
            f"{output} holds a search: --resume goes on with it, --overwrite begins again"
        )
    if resume and has_search and not (output / JOURNAL_FILE).is_file():
        raise SecateurError(f"{output} has no {JOURNAL_FILE} to go on with; use --overwrite")


def _write(record: SearchRecord, output: Path) -> list[Path]:
    """Write the results; an older recipe goes where nothing was found."""
    recipe = search_recipe(record)
    write_whole(output / SEARCH_FILE, record.to_json())
    write_whole(output / PAGE_FILE, render_search(record))
    written = [output / SEARCH_FILE, output / PAGE_FILE]
    if recipe is None:
        with suppress(FileNotFoundError):
            (output / RECIPE_FILE).unlink()
        return written
    write_whole(output / RECIPE_FILE, recipe.to_yaml())
    return [*written, output / RECIPE_FILE]
