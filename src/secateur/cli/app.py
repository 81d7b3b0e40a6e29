"""Puts the commands together, and turns errors into messages and exit codes."""

import sys

import torch
from rich.console import Console
from rich.markup import escape

from secateur.checkpoint.load import silence_transformers
from secateur.cli.attention import attention_command
from secateur.cli.bench import bench_command
from secateur.cli.compress import compress_command
from secateur.cli.convert import convert_command
from secateur.cli.demo import demo_command
from secateur.cli.doctor import doctor_command
from secateur.cli.evaluate import evaluate_command
from secateur.cli.generate import generate_command
from secateur.cli.inherit import inherit_command
from secateur.cli.inspect import inspect_command
from secateur.cli.plan import plan_command
from secateur.cli.recover import recover_command
from secateur.cli.report import report_command
from secateur.cli.search import search_command
from secateur.cli.serve import serve_command
from secateur.cli.tune import tune_command
from secateur.cli.verify import verify_command
from secateur.errors import SecateurError
from secateur_command.flags import Command
from secateur_command.front_page import empty_app

app = empty_app()
for _command in (
    inspect_command,
    compress_command,
    recover_command,
    inherit_command,
    evaluate_command,
    generate_command,
    report_command,
    verify_command,
    convert_command,
    search_command,
    plan_command,
    attention_command,
    tune_command,
    bench_command,
    serve_command,
    doctor_command,
    demo_command,
):
    app.command(name=_command.__name__.removesuffix("_command"), cls=Command)(_command)


def main() -> None:
    """Run the command line; always ends in SystemExit."""
    silence_transformers()
    try:
        app()
    except SecateurError as error:
        _tell(str(error))
        sys.exit(error.exit_code)
    except torch.OutOfMemoryError as error:
        # Work on batches begins anew on smaller ones; what comes here has none to make smaller.
        _tell(f"out of memory: {str(error).splitlines()[0]}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _tell(error: str) -> None:
    console = Console(stderr=True, emoji=False)
    message = f"[bold red]error:[/] {escape(error)}"
    console.print(message, highlight=False, soft_wrap=not console.is_terminal)
