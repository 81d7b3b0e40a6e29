"""Perplexity of every method on one model and text, all from the same calibration tokens.

    python -m bench.quality --model FOLDER --calibration FILE --text FILE

Each method's own defaults; nothing is tuned to this model. One record a method.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from bench.one_text import OneText
from bench.records import append_record
from secateur.errors import SecateurError

PATTERNS: tuple[dict[str, Any], ...] = (
    {"pattern": "2:4"},
    {"pattern": "4:8"},
    {"pattern": "unstructured", "sparsity": 0.5},
)
METHODS: dict[str, dict[str, Any]] = {name: {} for name in ("magnitude", "wanda", "sparsegpt")}
# At 2:4 only.
TUNED: dict[str, dict[str, Any]] = {
    "ria": {},
    "rgs": {},
    "wanda++ published": {"method": "wanda++", "reconstruct": {"preset": "published"}},
    "wanda++": {},
    "admm": {},
    "best-2:4, 1 round": {"method": "best-2:4", "reconstruct": {"rounds": 1}},
    "best-2:4": {},
}


def main(
    model: Annotated[str, typer.Option(help="Model folder.")] = "examples/books-8m",
    calibration: Annotated[
        str, typer.Option(help="Text to calibrate on.")
    ] = "examples/books-8m/calibration.txt",
    text: Annotated[Path, typer.Option(help="Text to measure on.")] = Path(
        "examples/books-8m/evaluation.txt"
    ),
    num_samples: Annotated[int, typer.Option(help="Calibration windows.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens in a window, of both texts.")] = 256,
    windows: Annotated[int | None, typer.Option(help="Only the first windows of the text.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Only these, between semicolons, at 2:4.", show_default=False)
    ] = None,
    untimed: Annotated[
        bool, typer.Option("--untimed", help="Record no seconds: the machine has other work.")
    ] = False,
) -> None:
    one = OneText(model, calibration, text, num_samples, length, windows)

    def measure(name: str, network: nn.Module, values: dict[str, Any]) -> None:
        record = {**one.measure(network), "method": name, "pattern": "dense"} | values
        append_record("quality", record)
        typer.echo(
            f"{name:17} {record['pattern']:13} {record['perplexity']:8.2f} "
            f"± {record['standard_error']:.2f}"
        )

    measure("dense", one.dense, {})
    for name, pattern, more in _runs(methods):
        try:
            network, report = one.compress({"stage": "prune", "method": name, **pattern, **more})
        except SecateurError as error:
            typer.echo(f"{name:17} {pattern['pattern']:13} skipped: {error}")
            continue
        seconds = {} if untimed else {"seconds": sum(report.seconds.values())}
        measure(name, network, {**seconds, **pattern})


def _runs(methods: str | None) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, pattern, and the fields of the stage beside them."""
    if methods is not None:
        named = METHODS | TUNED
        chosen = [name.strip() for name in methods.split(";")]
        return [(name, PATTERNS[0], named[name]) for name in chosen]
    plain = [(name, pattern, more) for pattern in PATTERNS for name, more in METHODS.items()]
    return plain + [(name, PATTERNS[0], more) for name, more in TUNED.items()]


if __name__ == "__main__":
    typer.run(main)
