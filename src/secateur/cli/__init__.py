"""The command line: `secateur COMMAND`. Each command is a file of its own name here."""

from secateur.cli.app import main

__all__ = ["main"]
