"""A LASER search on BLiMP and on LAMBADA, chosen on one half of the items, reported on the other.

    python -m bench.laser --blimp FOLDER --lambada FILE [--filter 16] [--output FOLDER]

One record a task: scores of the dense model, the best single cut and the composition, with their
standard errors and the paired test against dense. BLiMP takes the first items of every paradigm.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.records import append_record
from secateur.checkpoint.load import LanguageModel, load_with_tokenizer, silence_transformers
from secateur.evaluate.items import Item, read_items
from secateur.plain import to_plain
from secateur.progress import default_progress
from secateur.report.search_page import render_search
from secateur.report.search_record import SearchRecord
from secateur.report.search_words import verdict
from secateur.search import ItemTask, Metric, SearchOptions, questions_of_items, search_laser


def blimp(folder: Path, per_paradigm: int) -> list[Item]:
    """The first items of every paradigm, by name."""
    return [
        item for path in sorted(folder.glob("*.jsonl")) for item in read_items(path, per_paradigm)
    ]


def values_of(record: SearchRecord) -> dict[str, Any]:
    """What goes into the results; every trial is in the search's own record."""
    return {
        "task": to_plain(record.task),
        "model": record.model.source,
        "dtype": record.model.dtype,
        "filter": record.options["filter"],
        "compose": record.options["compose"],
        "num_trials": len(record.trials),
        "num_composition_trials": record.num_composition_trials,
        "verdict": verdict(record),
        "states": to_plain(record.states),
        "seconds": record.seconds,
    }


def search(
    loaded: LanguageModel, task: ItemTask, options: SearchOptions, source: str, output: Path | None
) -> None:
    folder = None if output is None else output / task.name
    progress = default_progress()
    try:
        record = search_laser(
            loaded.model,
            loaded.tokenizer,
            task,
            options,
            source=source,
            folder=folder,
            resume=True,
            progress=progress,
        )
    finally:
        progress.close()
    if folder is not None:
        (folder / "search.json").write_text(record.to_json(), encoding="utf-8")
        (folder / "search.html").write_text(render_search(record), encoding="utf-8")
    append_record("laser", values_of(record))
    for state in record.states:
        typer.echo(
            f"{task.name:8} {state.name:9} {state.validation.value:.4f} {state.test.value:.4f}"
        )


def main(
    model: Annotated[str, typer.Option(help="Model folder.")] = "examples/books-8m",
    blimp_folder: Annotated[
        Path | None, typer.Option("--blimp", help="Folder with BLiMP's files.")
    ] = None,
    lambada: Annotated[Path | None, typer.Option(help="LAMBADA as JSON lines.")] = None,
    per_paradigm: Annotated[int, typer.Option(help="Items of each BLiMP paradigm.")] = 12,
    lambada_items: Annotated[int, typer.Option(help="Items of LAMBADA.")] = 200,
    lambada_metric: Annotated[str, typer.Option(help="accuracy or loss.")] = "loss",
    keep_best: Annotated[int, typer.Option("--filter", help="Matrices to search.")] = 16,
    dtype: Annotated[str, typer.Option(help="To compute in.")] = "float32",
    output: Annotated[Path | None, typer.Option(help="Folder for records and pages.")] = None,
) -> None:
    silence_transformers()
    loaded = load_with_tokenizer(model, dtype=dtype)
    metric: Metric = "accuracy" if lambada_metric == "accuracy" else "loss"
    options = SearchOptions(
        filter=keep_best, prompts=("The king called for his horse, and",), max_new_tokens=12
    )
    tasks = []
    if blimp_folder is not None:
        questions = questions_of_items(blimp(blimp_folder, per_paradigm))
        tasks.append(ItemTask("blimp", questions, "accuracy"))
    if lambada is not None:
        questions = questions_of_items(read_items(lambada, lambada_items))
        tasks.append(ItemTask("lambada", questions, metric))
    for task in tasks:
        search(loaded, task, options, Path(model).name, output)


if __name__ == "__main__":
    typer.run(main)
