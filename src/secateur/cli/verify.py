"""`secateur verify`: is a checkpoint what it claims to be?"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from secateur.checkpoint.verify import verify_checkpoint
from secateur.cli.options import TrustRemoteCode
from secateur.cli.waiting import waiting_for
from secateur.errors import VerificationError


def verify_command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder that `secateur compress` wrote.")
    ],
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Check files, strict reload, zero pattern and logits of a compressed model."""
    with waiting_for(f"verify {folder}"):
        checks = verify_checkpoint(folder, trust_remote_code)
    console = Console(emoji=False)
    for check in checks:
        mark = "[green]ok[/]    " if check.passed else "[bold red]FAILED[/]"
        console.print(f"{mark} {check.name}: {escape(check.detail)}", highlight=False)
    failed = [check.name for check in checks if not check.passed]
    if failed:
        raise VerificationError(f"{folder} is not what was written: {', '.join(failed)}")
