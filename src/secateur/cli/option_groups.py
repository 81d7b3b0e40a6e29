"""Options that belong together as one dataclass: declared once, and one value to a command."""

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, signature
from typing import Any, get_type_hints

Command = Callable[..., None]


def with_option_groups(command: Command) -> Command:
    """A command as Typer takes it: an option for each field of a parameter that is a dataclass.

    Typer knows parameters of functions only. Names, types and defaults of options are those of the
    fields, and they stand where the parameter stood.
    """
    declared = signature(command, eval_str=True)
    groups: dict[str, Any] = {}
    options: list[Parameter] = []
    for name, parameter in declared.parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            options += _options(parameter.annotation)
        else:
            options.append(parameter)

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {option.name: option.annotation for option in options}
    run.__signature__ = declared.replace(parameters=options)  # type: ignore[attr-defined]
    return run


def _options(group: Any) -> Iterator[Parameter]:
    types = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = Parameter.empty if field.default is MISSING else field.default
        kind = Parameter.KEYWORD_ONLY
        yield Parameter(field.name, kind, default=default, annotation=types[field.name])
