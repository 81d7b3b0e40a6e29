"""Help pages on which only options that take a value name the type of one."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


def _without_types_of_flags(parameters: list[Any]) -> list[Any]:
    """Typer would write `<bool>` beside `--overwrite`, as if `--overwrite true` were meant."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


class Command(TyperCommand):
    """A command whose flags stand without a type on its help page."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, --help included."""
        return _without_types_of_flags(super().get_params(ctx))


class Group(TyperGroup):
    """The same for the page of all commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, --help included."""
        return _without_types_of_flags(super().get_params(ctx))
