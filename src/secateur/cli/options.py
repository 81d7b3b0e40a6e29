"""Options that several commands share, worded once."""

from pathlib import Path
from typing import Annotated

import typer

from secateur.errors import SecateurError

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, or a Hub id such as owner/name.")
]
OUTPUT_HELP = "Folder to write: new or empty, or one to replace with --overwrite."
Output = Annotated[Path, typer.Option(help=OUTPUT_HELP)]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what Secateur wrote there before, once the new one is complete.",
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a Hub id.", show_default=False)
]
Dtype = Annotated[
    str, typer.Option(help="auto (the checkpoint's own), bfloat16, float16 or float32.")
]
Device = Annotated[
    str | None,
    typer.Option(help="Where to compute, such as cuda or cuda:1. Default: the CPU."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run Python code that comes with the model. Read it first."
    ),
]
JsonOutput = Annotated[
    bool, typer.Option("--json", help="Print only JSON on standard output, for programs.")
]


def names(text: str) -> tuple[str, ...]:
    """What stands between the commas of an option that takes several."""
    return tuple(part.strip() for part in text.split(","))


def counts(option: str, text: str) -> list[int]:
    """Positive whole numbers out of an option that takes several, each once, in their order.

    Raises:
        SecateurError: something else stands between the commas.
    """
    parts = names(text)
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise SecateurError(f"expected {option} as numbers such as 1,16, got {text!r}")
    return list(dict.fromkeys(map(int, parts)))
