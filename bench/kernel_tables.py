"""Tables of the kernel benchmarks, as Markdown; `not measured yet` without records."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.kernel_records import RESULTS, read_records
from bench.kernel_summary import (
    DEVICE,
    Record,
    error_ratios,
    geometric_means,
    latest,
    ratio,
    shares_of_ceiling,
    speed_ups,
)
from bench.linear_operands import LOW_RANK, SPARSE
from bench.linear_timing import MODES
from bench.shapes import LARGEST_FOUR, SEVEN, TOKENS

NOT_MEASURED = "not measured yet"
# Of the share of dense speed that policy `memory` must not fall below.
FLOOR = 0.98


OTHERS = {"cusparselt": "cuSPARSELt, searched", "two products": "two cuBLAS calls"}


def tables(folder: Path = RESULTS, device: str = DEVICE) -> dict[str, str]:
    """Name of a marker -> its Markdown, of one device."""
    linears = latest(read_records("linears", folder), device)
    packing = latest(read_records("packing", folder), device)
    named = {"kernels-machine": where_measured(linears or packing)}
    for op, short in ((SPARSE, "sparse24"), (LOW_RANK, "low-rank")):
        for mode in MODES:
            named[f"{short}-{mode}"] = speed_up_table(linears, op, mode)
    named["bandwidth"] = bandwidth_table(linears)
    named["drawn-shapes"] = drawn_table(linears)
    named["kernel-errors"] = error_line(linears)
    named["packing"] = packing_table(packing)
    return named


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def where_measured(records: Sequence[Record]) -> str:
    """One line: device, driver, versions, and of how many builds of the library the records are."""
    if not records:
        return NOT_MEASURED
    machine, versions = records[-1]["machine"], records[-1]["versions"]
    builds = {str(record["machine"].get("library_fingerprint")) for record in records}
    driver = f", driver {machine['driver_version']}" if "driver_version" in machine else ""
    packages = [f"{name} {versions[name]}" for name in ("torch", "triton") if name in versions]
    line = f"{machine['device']}{driver}; secateur {versions['secateur']}, {', '.join(packages)}"
    return line if len(builds) == 1 else f"{line}; {len(builds)} builds of the compiled library"


def speed_up_table(records: Sequence[Record], op: str, mode: str) -> str:
    """Fastest dense median over our time, by shape and tokens; below, means of ours and others'."""
    ours = speed_ups(records, op, mode)
    if not ours:
        return NOT_MEASURED
    tokens = [m for m in TOKENS if any(m in values for values in ours.values())]
    order = [size for size in SEVEN if size in ours]
    order += sorted(size for size in ours if size not in SEVEN)
    rows = [[f"{n} x {k}", *_cells(ours[n, k], tokens)] for n, k in order]
    means = _cells(geometric_means(ours), tokens)
    rows.append(["**geometric mean of the seven**", *(f"**{c}**" if c else "" for c in means)])
    for kind, label in OTHERS.items():
        others = geometric_means(speed_ups(records, op, mode, kind))
        if others:
            rows.append([f"{label}, mean", *_cells(others, tokens)])
    return markdown(["N x K", *(f"M = {m}" for m in tokens)], rows)


def _cells(values: Mapping[int, float], tokens: Sequence[int]) -> list[str]:
    return [f"{values[m]:.2f}" if m in values else "" for m in tokens]


def bandwidth_table(records: Sequence[Record]) -> str:
    """Share of the read ceiling of the 2:4 linear at one token, the four largest shapes."""
    rows = []
    for mode in MODES:
        shares = shares_of_ceiling(records, SPARSE, mode)
        values = [shares.get(size, {}).get(1) for size in LARGEST_FOUR]
        if any(value is not None for value in values):
            rows.append([mode, *("" if v is None else f"{v:.0%}" for v in values)])
    heads = ["M = 1", *(f"{n} x {k}" for n, k in LARGEST_FOUR)]
    return markdown(heads, rows) if rows else NOT_MEASURED


def drawn_table(records: Iterable[Record]) -> str:
    """Shapes that nobody chose, the slowest against dense first, and what dispatch chose."""
    found = []
    for record in records:
        value = ratio(record) if record.get("seed") is not None else None
        if value is not None:
            choice = str(record["notes"].get("ours auto", "")).split(":")[0]
            n, k = record["shape"]
            case = f"{n} x {k}, M = {record['tokens']}, seed {record['seed']}"
            found.append((value, [case, f"{value:.2f}", choice]))
    if not found:
        return NOT_MEASURED
    found.sort(key=lambda pair: pair[0])
    below = sum(value < FLOOR for value, _ in found)
    heads = [f"{below} of {len(found)} below {FLOOR}", "dense / ours", "chosen"]
    return markdown(heads, [row for _, row in found])


def error_line(records: Iterable[Record]) -> str:
    """The largest ratio of our error to that of torch's products, and where."""
    found = error_ratios(records)
    if not found:
        return NOT_MEASURED
    value, record = found[0]
    n, k = record["shape"]
    return (
        f"Error against float64, relative to cuBLAS's own: at most {value:.3f} over {len(found)} "
        f"cases ({record['op']}, {n} x {k}, M = {record['tokens']})."
    )


def packing_table(records: Iterable[Record]) -> str:
    """Time, share of the copy ceiling, and how many times as fast as the published code."""
    rows = []
    for record in records:
        n, k = record["shape"]
        us = record["microseconds"]
        share = record["bytes"] / us * 1e6 / record["copy_ceiling"]
        published = record.get("published_ms")
        times = "" if published is None else f"{1e3 * published / us:.0f}"
        rows.append([f"{record['work']}, {n} x {k}", f"{us:.1f}", f"{share:.0%}", times])
    heads = ["what", "us", "of the copy ceiling", "times as fast as published"]
    return markdown(heads, rows) if rows else NOT_MEASURED
