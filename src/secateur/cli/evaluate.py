"""`secateur evaluate`: perplexity and tasks, of one model or of two side by side."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from secateur.checkpoint.load import resolve_folder
from secateur.cli.evaluate_table import evaluation_table
from secateur.cli.loading import Loading
from secateur.cli.option_groups import with_option_groups
from secateur.cli.options import JsonOutput, ModelArgument
from secateur.cli.waiting import shown_progress
from secateur.errors import SecateurError
from secateur.evaluate.compare import check_drop, check_max_drop
from secateur.evaluate.suite import (
    Evaluation,
    EvaluationChoice,
    check_choice,
    compare,
    finite,
    run_evaluation,
)

PROTOCOL = (
    "Perplexity: non-overlapping windows of --max-seq-length tokens, the remainder dropped, "
    "each predicting all its tokens but the first; fp32 log-probabilities. "
    "Figures at other window lengths or of other tokenizers cannot be compared."
)


@with_option_groups
def evaluate_command(
    model: ModelArgument,
    *,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text to measure perplexity on.", show_default=False)
    ] = None,
    max_seq_length: Annotated[
        int | None,
        typer.Option(help="Tokens in a window. Default: 2048, or the model's context."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="JSON-lines file (multiple choice, minimal pairs, cloze), or the name of an "
            "lm-eval task. Repeatable."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="A second model, measured beside it in the same way."),
    ] = None,
    fail_if_drop: Annotated[
        float | None,
        typer.Option(
            help="Exit with 3 if MODEL is worse than --baseline by more than this: relative for "
            "perplexity, absolute for accuracy."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows or items per batch.")] = 8,
    limit: Annotated[
        int | None, typer.Option(help="Use only this many items of each task, from the first.")
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            help="Examples before each item of an lm-eval task. Default: as each task says."
        ),
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            help="Folder with further tasks in lm-eval's YAML, for --tasks to name.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random in a task.")] = 0,
    loading: Loading,
    as_json: JsonOutput = False,
) -> None:
    """Measure how good MODEL is, with standard errors."""
    if text is None and not tasks:
        raise SecateurError("say what to measure: --text FILE or --tasks FILE (or both)")
    if fail_if_drop is not None and baseline is None:
        raise SecateurError("--fail-if-drop compares with --baseline MODEL, which is missing")
    if fail_if_drop is not None:
        check_max_drop(fail_if_drop)
    choice = EvaluationChoice(
        text,
        max_seq_length,
        tuple(tasks or ()),
        batch_size,
        limit,
        seed,
        num_fewshot,
        include_path,
    )
    _check_heeded(choice)
    _check_lm_eval_options(choice)
    check_choice(choice)
    if baseline is not None:
        resolve_folder(baseline, None, loading.trust_remote_code)

    def measure(source: str, options: Loading) -> Evaluation:
        loaded = options.load(source)
        with shown_progress() as progress:
            return run_evaluation(loaded.model, loaded.tokenizer, choice, progress)

    result = measure(model, loading)
    # A revision is one of MODEL's repository.
    no_revision = replace(loading, revision=None)
    reference = measure(baseline, no_revision) if baseline is not None else None
    drops = compare(reference, result) if reference is not None else []
    if as_json:
        typer.echo(json.dumps(_as_json(result, reference, drops), indent=2))
    else:
        console = Console(emoji=False)
        console.print(evaluation_table(result, reference, drops))
        if text is not None:
            console.print(PROTOCOL, style="dim")
    if fail_if_drop is not None:
        check_drop(drops, fail_if_drop)


def _check_heeded(choice: EvaluationChoice) -> None:
    """Find out before a model is loaded that nothing that is measured would heed an option."""
    if choice.limit is not None and not choice.tasks:
        raise SecateurError("--limit: expected --tasks, whose items it limits, got no tasks")
    if choice.max_seq_length is not None and choice.text is None:
        raise SecateurError("--max-seq-length: expected --text, whose windows it cuts, got none")


def _check_lm_eval_options(choice: EvaluationChoice) -> None:
    """Find out before a model is loaded that they are wrong, or that no task would heed them."""
    asked = {"--num-fewshot": choice.num_fewshot, "--include-path": choice.include_path}
    given = [option for option, value in asked.items() if value is not None]
    if given and not choice.lm_eval_tasks:
        raise SecateurError(
            f"{', '.join(given)}: expected --tasks with the name of an lm-eval task, got "
            f"{', '.join(choice.tasks) or 'no tasks'}"
        )
    if choice.num_fewshot is not None and choice.num_fewshot < 0:
        raise SecateurError(f"expected --num-fewshot of 0 or more, got {choice.num_fewshot}")
    if choice.include_path is not None and not choice.include_path.is_dir():
        raise SecateurError(f"expected --include-path of a folder, got {choice.include_path}")


def _as_json(result: Evaluation, reference: Evaluation | None, drops: list[Any]) -> dict[str, Any]:
    if reference is None:
        return result.to_dict()
    return {
        "model": result.to_dict(),
        "baseline": reference.to_dict(),
        "drops": [
            {
                "metric": drop.metric,
                "drop": finite(drop.drop),
                "standard_error": finite(drop.standard_error),
                "relative": drop.is_relative,
            }
            for drop in drops
        ],
    }
