"""What `secateur --help` says, and the options of `secateur` itself."""

import importlib.metadata
from typing import Annotated

import typer

from secateur_command.flags import Command, Group

SUMMARIES = {
    "inspect": "Show a model's blocks, its weight matrices, and what is not touched.",
    "compress": "Compress MODEL and write a Hugging Face folder with a report.",
    "recover": "Train part of MODEL on text and write the result; zeros and factors stay such.",
    "inherit": "Build a smaller model from MODEL's first blocks, train it, and grow it until it "
    "is as good.",
    "evaluate": "Measure how good MODEL is, with standard errors.",
    "generate": "Print the prompt with its continuation.",
    "report": "Show what a compression did; with --html, write the self-contained page.",
    "verify": "Check files, strict reload, zero pattern and logits of a compressed model.",
    "convert": "Turn 2:4 checkpoints of other formats into compact ones, or these into dense ones.",
    "search": "Find matrices of MODEL that are better cut to a low rank (LASER).",
    "plan": "Measure every layer in every form, choose the best forms for a limit, and check them.",
    "attention": "Find the blocks of MODEL whose attention is lazy: near rank 1 in every head "
    "(Inheritune).",
    "tune": "Time every backend and config of given shapes in turns, and keep the table.",
    "bench": "Measure how fast models read prompts and generate, several side by side in turns.",
    "serve": "Serve MODEL under /v1/completions and /v1/chat/completions, after verifying it.",
    "doctor": "Say what this machine has and what is missing.",
    "demo": "Compress the bundled model in every way and compare: quality, size, speed, text.",
}
"""Of every command, as its help page begins."""

_EXIT_CODES = (
    "Exit codes: 0 done; 1 unexpected error; 2 bad input or usage, nothing was written; 3 quality "
    "dropped by more than --fail-if-drop allows; 4 verification failed; 5 no space left, the old "
    "output is intact; 130 interrupted."
)


def empty_app() -> typer.Typer:
    """The program without its commands."""
    app = typer.Typer(
        name="secateur",
        cls=Group,
        help="Prune transformer language models block by block, and see what it cost and bought.",
        epilog=_EXIT_CODES,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(_options)
    return app


def app_of_names() -> typer.Typer:
    """The program with the names of its commands, that can be shown but not run."""
    app = empty_app()
    for name, summary in SUMMARIES.items():
        app.command(name=name, cls=Command, help=summary)(_nothing)
    return app


def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(importlib.metadata.version("secateur"))
        raise typer.Exit


def _nothing() -> None:
    raise AssertionError("expected to be asked what commands there are, got a command to run")
