"""The program `secateur`: a package of its own, for to import `secateur` takes seconds.

Nobody who asks for the version, or for what there is, should wait for that.
"""

import sys
from importlib import import_module
from types import ModuleType

_ASKED_OF_NO_COMMAND: tuple[list[str], ...] = ([], ["--help"], ["--version"])


def main() -> None:
    """Run the command line; always ends in SystemExit."""
    if sys.argv[1:] in _ASKED_OF_NO_COMMAND:
        _imported("secateur_command.front_page").app_of_names()()
    else:
        # Known at once, not behind all that commands import.
        _imported("typer")
        _imported("rich")
        _imported("secateur.cli").main()


def _imported(name: str) -> ModuleType:
    """A module, or the end where a package is missing that the kernels alone do without."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("secateur"):
            raise
        print(
            f"error: the program needs {error.name}, which is not installed: "
            "pip install 'secateur[compress]'",
            file=sys.stderr,
        )
        sys.exit(1)
