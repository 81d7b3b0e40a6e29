"""Tables and pictures of the kernel benchmarks, from bench/results; nothing is typed by hand.

    python -m bench.kernel_plots           write the pictures to bench/plots
    python -m bench.kernel_plots --print   print the tables

Where nothing was measured, tables say so and no picture is drawn.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.kernel_pictures import Line, lines_svg
from bench.kernel_records import RESULTS, read_records
from bench.kernel_summary import (
    DEVICE,
    ByTokens,
    Record,
    Size,
    add_device_option,
    geometric_means,
    latest,
    shares_of_ceiling,
    speed_ups,
)
from bench.kernel_tables import NOT_MEASURED, OTHERS, tables
from bench.linear_operands import LOW_RANK, SPARSE
from bench.linear_timing import MODES
from bench.shapes import SEVEN

PLOTS = Path(__file__).parent / "plots"
_LABELS = {SPARSE: "2:4 linear", LOW_RANK: "low-rank linear, rank a quarter of the smaller side"}
# Above this, time goes into arithmetic and not into reading the weight.
_MOST_TOKENS_FOR_BANDWIDTH = 64


def pictures(records: Iterable[Record]) -> dict[str, str]:
    """File name -> SVG, of what was measured."""
    chosen = list(records)
    drawn: dict[str, str] = {}
    for op, label in _LABELS.items():
        for mode in MODES:
            lines = speed_up_lines(chosen, op, mode)
            if lines:
                title = f"Speed-up over cuBLAS, {label}, {mode}"
                level = (1.0, "as fast as cuBLAS")
                name = f"speed-up-{op.replace('_', '-')}-{mode}.svg"
                drawn[name] = lines_svg(lines, title, "cuBLAS's time / our time", level)
    for mode in MODES:
        lines = bandwidth_lines(chosen, mode)
        if lines:
            title = f"How fast weights are read, 2:4 linear, {mode}"
            level = (100.0, "a plain sum over 4 GB, in the same run")
            drawn[f"bandwidth-{mode}.svg"] = lines_svg(lines, title, "% of the ceiling", level)
    return drawn


def speed_up_lines(records: Sequence[Record], op: str, mode: str) -> list[Line]:
    """A curve a shape, their mean, and the means of others."""
    ours = speed_ups(records, op, mode)
    lines = _shape_lines(ours)
    means = geometric_means(ours)
    if means:
        lines.append(Line("geometric mean", means, "mean"))
    for kind, label in OTHERS.items():
        other = geometric_means(speed_ups(records, op, mode, kind))
        if other:
            lines.append(Line(f"{label}, mean", other, "other"))
    return lines


def bandwidth_lines(records: Sequence[Record], mode: str) -> list[Line]:
    """Per cent of the read ceiling, a curve a shape, while tokens are few."""
    shares = shares_of_ceiling(records, SPARSE, mode)
    few = {
        size: {m: 100 * v for m, v in values.items() if m <= _MOST_TOKENS_FOR_BANDWIDTH}
        for size, values in shares.items()
    }
    return _shape_lines(few)


def _shape_lines(by_shape: Mapping[Size, ByTokens]) -> list[Line]:
    found = {size: by_shape[size] for size in SEVEN if by_shape.get(size)}
    return [Line(f"{n} x {k}", values) for (n, k), values in found.items()]


def write_pictures(
    folder: Path = RESULTS, output: Path = PLOTS, device: str = DEVICE
) -> list[Path]:
    """Draw what was measured on a device; returns the files."""
    paths = []
    for name, svg in pictures(latest(read_records("linears", folder), device)).items():
        output.mkdir(parents=True, exist_ok=True)
        paths.append(output / name)
        paths[-1].write_text(svg, encoding="utf-8")
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernel_plots")
    parser.add_argument("--print", action="store_true", help="print the tables")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--output", type=Path, default=PLOTS, help="folder for the pictures")
    add_device_option(parser)
    options = parser.parse_args(arguments)
    if (
        options.device != DEVICE
        and not options.print
        and options.output.resolve() == PLOTS.resolve()
    ):
        parser.error(f"expected another --output: the pictures in {PLOTS} are an {DEVICE}'s")
    if options.print:
        for name, text in tables(options.results, options.device).items():
            print(f"{name}\n{text}\n")
        return
    paths = write_pictures(options.results, options.output, options.device)
    print("\n".join(map(str, paths)) or NOT_MEASURED)


if __name__ == "__main__":
    main()
