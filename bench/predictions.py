"""What the kernels' design predicts for 2:4 linears on an H200, and what was measured.

    python -m bench.predictions

The bound is the least time that memory, the L2 cache or the tensor cores allow, by the figures of
`bench.microbench_predictions`; the expected speed-ups over cuBLAS count what a launch costs. All of
this was written down before any of these kernels had run.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.kernel_records import RESULTS, read_records
from bench.kernel_summary import (
    Record,
    Size,
    add_device_option,
    latest,
    of_models,
    ratio,
    whose,
)
from bench.kernel_tables import markdown
from bench.linear_operands import SPARSE
from bench.linear_timing import MODES

Limit = Literal["memory", "L2", "tensor cores"]
_LIMITS: Mapping[str, Limit] = {"h": "memory", "l": "L2", "t": "tensor cores"}


@dataclass(frozen=True)
class Prediction:
    """For one shape and number of tokens."""

    bound: float
    """Microseconds."""
    limit: Limit
    isolated: float
    """Speed-up over cuBLAS."""
    chain: float
    """With programmatic dependent launch; from 256 tokens on as isolated."""


PREDICTED_TOKENS = (1, 8, 16, 32, 64, 128, 256, 1024, 4096)
# Bound in us, limit, speed-up isolated/chain.
_TABLE: Mapping[Size, str] = {
    (6144, 4096): "6.7h 1.59/1.95|6.7h 1.57/1.90|6.8h 1.51/1.84|6.8h 1.46/1.76|8.9l 1.16/1.33|"
    "10.8l 1.03/1.15|13.4l 1.2|44.8t 1.42|179t 1.48",
    (4096, 4096): "4.5h 1.59/2.09|4.5h 1.60/2.06|4.5h 1.54/1.99|4.7l 1.46/1.84|6.6l 1.04/1.24|"
    "8.1l 1.01/1.15|10.2l 1.2|29.9t 1.41|120t 1.48",
    (28672, 4096): "31.2h 1.66/1.75|31.3h 1.69/1.78|31.4h 1.64/1.73|31.7h 1.72/1.81|"
    "32.1h 1.67/1.75|33.1h 1.69/1.76|52.3t 1.65|209t 1.48|837t 1.49",
    (4096, 14336): "15.6h 1.74/1.92|15.6h 1.68/1.85|15.7h 1.67/1.84|15.9h 1.64/1.80|"
    "17.3l 1.60/1.75|19.8l 1.40/1.50|26.1t 1.55|105t 1.41|418t 1.47",
    (8192, 8192): "17.8h 1.67/1.83|17.9h 1.66/1.81|17.9h 1.60/1.75|18.1h 1.60/1.74|"
    "19.4l 1.51/1.63|21.9l 1.30/1.39|29.9t 1.4|120t 1.43|478t 1.49",
    (57344, 8192): "125h 1.78/1.80|125h 1.77/1.80|125h 1.70/1.73|126h 1.77/1.80|127h 1.66/1.68|"
    "129h 1.75/1.77|209t 1.45|837t 1.49|3346t 1.67",
    (8192, 28672): "62.3h 1.72/1.77|62.5h 1.76/1.81|62.6h 1.72/1.77|62.9h 1.75/1.79|"
    "63.4h 1.77/1.81|64.5h 1.65/1.69|105t 1.5|418t 1.42|1673t 1.66",
}


def predictions() -> dict[tuple[Size, int], Prediction]:
    """(shape, tokens) -> what is predicted."""
    return {
        (size, m): _parsed(cell)
        for size, row in _TABLE.items()
        for m, cell in zip(PREDICTED_TOKENS, row.split("|"), strict=True)
    }


def _parsed(cell: str) -> Prediction:
    bound, speed_ups = cell.split()
    isolated, _, chain = speed_ups.partition("/")
    return Prediction(
        float(bound[:-1]), _LIMITS[bound[-1]], float(isolated), float(chain or isolated)
    )


def comparison(records: Sequence[Record], kind: str = "ours auto") -> str:
    """Predicted and measured side by side, as Markdown; what was not measured stays empty."""
    measured = {
        (mode, tuple(record["shape"]), record["tokens"]): record
        for mode in MODES
        for record in of_models(records, SPARSE, mode)
    }
    rows = []
    for (size, m), expected in predictions().items():
        cells = [f"{size[0]} x {size[1]}, M = {m}", f"{expected.bound:g}, {expected.limit}"]
        for mode in MODES:
            predicted = expected.isolated if mode == "isolated" else expected.chain
            record = measured.get((mode, size, m))
            value = None if record is None else ratio(record, kind)
            cells += [f"{predicted:.2f}", "" if value is None else f"{value:.2f}"]
            if record is None or value is None:
                cells.append("")
            else:
                ours = record["baseline"]["microseconds"] / value
                cells.append(f"{ours:.1f} us, {expected.bound / ours:.0%}")
        rows.append(cells)
    heads = ["N x K", "bound, us"]
    for mode in MODES:
        heads += [f"{mode}, predicted", "measured", "time, share of bound"]
    return markdown(heads, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.predictions")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--kind", default="ours auto", help="how the names of candidates begin")
    add_device_option(parser)
    options = parser.parse_args(arguments)
    records = read_records("linears", options.results)
    print(whose(records, options.device))
    print(comparison(latest(records, options.device), options.kind))


if __name__ == "__main__":
    main()
