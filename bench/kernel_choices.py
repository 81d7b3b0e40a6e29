"""Which of our candidates is the fastest for each case, and what dispatch loses by its choice.

    python -m bench.kernel_choices

For rules of thumb: where one kernel hands over to the next.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.kernel_records import RESULTS, read_records
from bench.kernel_summary import Record, add_device_option, latest, whose
from bench.kernel_tables import NOT_MEASURED, markdown

CHOSEN = "ours auto"


@dataclass(frozen=True)
class Case:
    """What one record says of our candidates."""

    name: str
    fastest: str
    speed_up: float
    """Fastest dense median over the fastest of ours."""
    loss: float
    """Time of what dispatch chose over that of the fastest; 1 where it chose it."""
    others: str
    """Speed-ups of all of ours, the fastest first."""


def cases(records: Sequence[Record]) -> Iterator[Case]:
    """In the order of op, mode, shape and tokens."""

    def order(record: Record) -> tuple[str, str, int, int, int]:
        n, k = record["shape"]
        return record["op"], record["mode"], n * k, n, record["tokens"]

    for record in sorted(records, key=order):
        times = {name: us for name, us in record["microseconds"].items() if name.startswith("ours")}
        if CHOSEN not in times:
            continue
        # Dispatch's own call is none of the kernels, unless there is no other.
        named = {name: us for name, us in times.items() if name != CHOSEN} or times
        fastest = min(named, key=lambda name: named[name])
        dense = record["baseline"]["microseconds"]
        ranked = sorted(named, key=lambda name: named[name])
        n, k = record["shape"]
        yield Case(
            f"{record['op']}, {record['mode']}, {n} x {k}, M = {record['tokens']}",
            fastest.removeprefix("ours "),
            dense / named[fastest],
            times[CHOSEN] / named[fastest],
            ", ".join(f"{name.removeprefix('ours ')} {dense / named[name]:.2f}" for name in ranked),
        )


def table(records: Sequence[Record]) -> str:
    """Markdown, with the mean loss below."""
    found = list(cases(records))
    if not found:
        return NOT_MEASURED
    rows = [[c.name, c.fastest, f"{c.speed_up:.2f}", f"{c.loss:.2f}", c.others] for c in found]
    mean = math.exp(sum(math.log(case.loss) for case in found) / len(found))
    text = markdown(["case", "fastest", "dense / it", "chosen / it", "all of ours"], rows)
    return f"{text}\nWhat dispatch chose took {mean:.3f} times as long in the geometric mean."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernel_choices")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    add_device_option(parser)
    options = parser.parse_args(arguments)
    records = read_records("linears", options.results)
    print(whose(records, options.device))
    print(table(latest(records, options.device)))


if __name__ == "__main__":
    main()
