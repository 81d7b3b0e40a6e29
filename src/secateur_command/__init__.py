"""The program `secateur`: a package of its own, for to import `secateur` takes seconds.

Nobody who asks for the version, or for what there is, should wait for that.
"""

import sys
from importlib import import_module

from secateur_command.front_page import app_of_names

_ASKED_OF_NO_COMMAND: tuple[list[str], ...] = ([], ["--help"], ["--version"])


def main() -> None:
    """Run the command line; always ends in SystemExit."""
    if sys.argv[1:] in _ASKED_OF_NO_COMMAND:
        app_of_names()()
    else:
        import_module("secateur.cli").main()
