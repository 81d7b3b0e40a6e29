"""Make the table of times that ships with the package from what was tuned on a GPU.

    python -m bench.ship_times runs/gpu/cache/times-nvidia-h200.json

Of each problem the fastest candidate of each backend is kept, as dispatch asks for no other. What
ships already for other problems of that GPU stays; each kind of GPU has a file of its own.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.gpu_steps import TABLES
from bench.shapes import SHAPES_BY_NAME
from bench.tune import OPS, missing, shapes_to_tune
from secateur_kernels.dispatch.problem import DeviceFacts
from secateur_kernels.dispatch.table import Entry, Measurement, Table, load_table, table_path
from secateur_kernels.errors import SecateurError
from secateur_kernels.tune import DEFAULT_TOKENS

# Without Triton's candidates, which are tuned where there is more time.
_BACKENDS = ("cuda", "two_gemms", "unpack", "dense")


def shortened(entry: Entry) -> Entry:
    """The fastest candidate of each backend."""
    best: dict[str, Measurement] = {}
    for measurement in sorted(entry.measurements, key=lambda m: m.microseconds):
        best.setdefault(measurement.backend, measurement)
    return replace(entry, measurements=tuple(best.values()))


def ship(measured: Path, folder: Path = TABLES) -> Path:
    """Write or extend the table of a GPU; returns the file.

    Args:
        measured: a table as tuning keeps it.
        folder: of the tables that ship.

    Raises:
        SecateurError: it is no table of a GPU, or of other sources than these.
    """
    table = load_table(measured)
    facts = DeviceFacts(table.device, table.capability)
    if not facts.is_gpu:
        raise SecateurError(f"expected times of a GPU, got a table of {table.device}")
    table = table.with_entries(shortened(entry) for entry in table.entries)
    path = table_path(folder, facts)
    if path.is_file():
        table = load_table(path).merged(table)
    table.save(path)
    return path


def left(table: Table) -> list[str]:
    """What the goals' shapes lack, a line for each op and weight."""
    lines = []
    for shape in shapes_to_tune(OPS, SHAPES_BY_NAME["goals"]):
        tokens = missing(table, shape, DEFAULT_TOKENS, _BACKENDS)
        if tokens:
            lines.append(f"{shape}: M = {', '.join(map(str, tokens))}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ship_times")
    parser.add_argument("measured", type=Path, help="a table as tuning keeps it")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of those that ship")
    options = parser.parse_args(arguments)
    path = ship(options.measured, options.tables)
    table = load_table(path)
    print(f"{len(table.entries)} problems of {table.device} in {path}")
    for line in left(table):
        print(f"not measured: {line}")


if __name__ == "__main__":
    main()
