"""The table that `secateur evaluate` prints."""

import math

from rich.table import Table
from rich.text import Text

from secateur.evaluate.compare import Drop
from secateur.evaluate.result import Estimate
from secateur.evaluate.suite import Evaluation
from secateur.report.numbers import printable


def evaluation_table(result: Evaluation, reference: Evaluation | None, drops: list[Drop]) -> Table:
    """One row a metric; with a reference, both values and how much worse the model is."""
    table = Table()
    table.add_column("metric")
    if reference is not None:
        table.add_column("baseline", justify="right")
    table.add_column("model", justify="right")
    if reference is not None:
        table.add_column("worse by", justify="right")
    by_metric = {drop.metric: drop for drop in drops}
    before = reference.estimates() if reference is not None else {}
    for metric, estimate in result.estimates().items():
        cells = [_value(before[metric])] if metric in before else []
        cells.append(_value(estimate))
        if reference is not None:
            cells.append(_change(by_metric.get(metric)))
        # With a task file's name before it, which may hold brackets.
        table.add_row(Text(printable(metric)), *cells)
    return table


def _value(estimate: Estimate) -> str:
    if math.isnan(estimate.standard_error):  # of one window or item there is none
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} ± {estimate.standard_error:.2g}"


def _change(drop: Drop | None) -> str:
    if drop is None:
        return ""
    unit = "%" if drop.is_relative else " points"
    if math.isnan(drop.standard_error):
        return f"{100 * drop.drop:+.2f}{unit}"
    return f"{100 * drop.drop:+.2f} ± {100 * drop.standard_error:.2f}{unit}"
