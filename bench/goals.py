"""The goals of the kernels as data, and what the records say of each.

    python -m bench.goals
    python -m bench.goals --kind ours        the fastest of our kernels, whatever dispatch chose

Speed-ups are the fastest dense cuBLAS median of the run over our time; means are geometric over the
seven shapes of `bench.shapes`. They are an H200's: figures of another GPU (`--device`) get no
verdict. In a chain the layers follow each other in a CUDA graph with cold
weights; isolated ones have nothing to do with each other.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from bench.goal_measures import (
    Found,
    Records,
    ceiling_shares,
    ceiling_shares_mean,
    decode_against_two_products,
    errors,
    floor_of_dense,
    low_rank_floor,
    mean_speed_up,
    packing_share,
    packing_times_published,
    prefill_against_two_products,
    read_all,
    speed_up_of_each,
    time_of_eight_tokens,
    versus_cusparselt,
)
from bench.kernel_records import RESULTS, read_records
from bench.kernel_summary import DEVICE, add_device_option, whose
from bench.kernel_tables import NOT_MEASURED, markdown

_HEADS = ("goal", "bound", "measured", "verdict", "decided by")
Verdict = Literal["reached", "missed", "so far", "not measured", "another GPU"]
Measure = Callable[[Records], Found | None]


@dataclass(frozen=True)
class Goal:
    """One row: what is measured, and the bound that it has to keep."""

    name: str
    bound: float
    measure: Measure
    at_most: bool = False
    stretch: bool = False
    """More than was asked for: nothing is missed without it."""
    percent: bool = False

    def verdict(self, found: Found | None) -> Verdict:
        """What the records say.

        A bound on each of many cases is missed as soon as one breaks it, and reached only when all
        were measured.
        """
        if found is None:
            return "not measured"
        kept = found.value <= self.bound if self.at_most else found.value >= self.bound
        if not kept:
            return "missed"
        return "reached" if found.cases == found.of else "so far"


def _means(mode: str, bounds: dict[int, float], stretch: bool = False) -> Iterable[Goal]:
    for m, bound in bounds.items():
        name = f"2:4 {mode}, M = {m}, mean" + (", stretch" if stretch else "")
        yield Goal(name, bound, mean_speed_up(mode, m), stretch=stretch)


def _each(mode: str, bounds: dict[int, float]) -> Iterable[Goal]:
    for m, bound in bounds.items():
        yield Goal(f"2:4 {mode}, M = {m}, slowest shape", bound, speed_up_of_each(mode, m))


GOALS: tuple[Goal, ...] = (
    *_means("chain", {1: 1.85, 8: 1.80}),
    Goal("2:4 chain, time at M = 8 over M = 1", 1.05, time_of_eight_tokens("chain"), at_most=True),
    *_means("isolated", {1: 1.65, 8: 1.62}),
    Goal("read ceiling, chain, least of four", 0.88, ceiling_shares("chain"), percent=True),
    Goal("read ceiling, chain, mean of four", 0.92, ceiling_shares_mean("chain"), percent=True),
    Goal("read ceiling, isolated, least of four", 0.80, ceiling_shares("isolated"), percent=True),
    *_means("chain", {16: 1.75, 32: 1.70, 64: 1.55}),
    *_each("chain", {16: 1.15, 32: 1.15, 64: 1.15}),
    *_means("isolated", {128: 1.40, 256: 1.40}),
    *_each("isolated", {128: 1.05, 256: 1.10}),
    *_means("isolated", {512: 1.35, 1024: 1.45, 2048: 1.50, 4096: 1.55, 8192: 1.55}),
    *_means("isolated", {2048: 1.60, 4096: 1.60, 8192: 1.60}, stretch=True),
    *(
        Goal(f"against the best of cuSPARSELt, M = {m}, slowest", 0.98, versus_cusparselt(m))
        for m in (512, 1024, 2048, 4096, 8192)
    ),
    Goal("never below 0.98 of dense, seven shapes and 1024 x 4096", 0.98, floor_of_dense(False)),
    Goal("never below 0.98 of dense, drawn shapes", 0.98, floor_of_dense(True)),
    Goal("score, select, pack, share of copy ceiling", 0.75, packing_share, percent=True),
    Goal("score, select, pack, times as fast as published", 840, packing_times_published),
    *(
        Goal(f"low rank chain, M = {m}, against two products", 1.25, decode_against_two_products(m))
        for m in (1, 2, 4, 8, 16)
    ),
    Goal("low rank, never slower than two products", 1.0, low_rank_floor),
    Goal("low rank, prefill against two products, mean", 1.0, prefill_against_two_products),
    Goal("error over that of cuBLAS, largest", 1.05, errors, at_most=True),
)


def rows(records: Records, goals: Sequence[Goal] = GOALS) -> list[list[str]]:
    """Goal, bound, measured, verdict, and the case that decided."""
    table = []
    for goal in goals:
        found = goal.measure(records)
        sign = "<=" if goal.at_most else ">="
        cells = [goal.name, f"{sign} {_figure(goal.bound, goal)}"]
        is_judged = found is None or records.device == DEVICE
        verdict = goal.verdict(found) if is_judged else "another GPU"
        cells += ["" if found is None else _figure(found.value, goal), verdict]
        table.append([*cells, "" if found is None else _where(found)])
    return table


def _figure(value: float, goal: Goal) -> str:
    if goal.percent:
        return f"{value:.0%}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _where(found: Found) -> str:
    count = "" if found.cases == found.of else f"{found.cases} of {found.of} measured"
    return "; ".join(part for part in (found.where, count) if part)


def goals_table(folder: Path = RESULTS) -> str:
    """What was measured of the goals, as Markdown with a summary below."""
    table = rows(read_all(folder))
    measured = [row for row in table if row[3] != "not measured"]
    if not measured:
        return NOT_MEASURED
    return f"{markdown(_HEADS, measured)}\n\n{summary(table)}."


def summary(table: Sequence[Sequence[str]]) -> str:
    """How many rows have each verdict."""
    names = get_args(Verdict)
    counts = {name: sum(row[3] == name for row in table) for name in names}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.goals")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--kind", default="ours auto", help="how the names of candidates begin")
    add_device_option(parser)
    options = parser.parse_args(arguments)
    print(whose(read_records("linears", options.results), options.device))
    table = rows(read_all(options.results, options.kind, options.device))
    print(markdown(_HEADS, table))
    print(summary(table))


if __name__ == "__main__":
    main()
