"""What records of kernel benchmarks say: the latest of each case, ratios, means, shares."""

import argparse
import math
from collections.abc import Iterable, Mapping
from typing import Any

from bench.shapes import SEVEN, TOKENS

Record = Mapping[str, Any]
Size = tuple[int, int]
ByTokens = dict[int, float]
DEVICE = "NVIDIA H200"
"""The GPU for which goals were set and predictions made, and of which published tables are."""
_CASE = ("op", "mode", "shape", "tokens", "dtype", "seed", "work")


def latest(records: Iterable[Record], device: str = DEVICE) -> list[Record]:
    """Of a device and the versions of its last record, the last one for every case.

    Times of two machines, or of two versions, must not meet in one table.
    """
    everything = [record for record in records if _device(record) == device]
    kept: dict[tuple[str, ...], Record] = {}
    for record in everything:
        if _versions(record) == _versions(everything[-1]):
            kept[tuple(str(record.get(name)) for name in _CASE)] = record
    return list(kept.values())


def _device(record: Record) -> str:
    return str(record["machine"]["device"])


def _versions(record: Record) -> tuple[Any, ...]:
    return tuple(record["versions"].get(name) for name in ("secateur", "torch", "triton"))


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """`--device`: whose records are shown."""
    parser.add_argument("--device", default=DEVICE, help=f"as CUDA names it; default: {DEVICE}")


def whose(records: Iterable[Record], device: str) -> str:
    """A line on top: the device that was asked for, and others where it has no records."""
    there = {_device(record) for record in records}
    if device in there or not there:
        return device
    return f"no records of {device}, but of {', '.join(sorted(there))}: say which by --device"


def of_models(records: Iterable[Record], op: str, mode: str) -> list[Record]:
    """Those of an op and a mode, without shapes that were drawn."""
    wanted = (op, mode, None)
    return [r for r in records if (r.get("op"), r.get("mode"), r.get("seed")) == wanted]


def ratio(record: Record, kind: str = "ours auto") -> float | None:
    """Fastest dense median over the time of the fastest candidate whose name begins with `kind`."""
    times = [us for name, us in record["microseconds"].items() if name.startswith(kind)]
    return record["baseline"]["microseconds"] / min(times) if times else None


def speed_ups(
    records: Iterable[Record], op: str, mode: str, kind: str = "ours auto"
) -> dict[Size, ByTokens]:
    """Shape -> tokens -> `ratio`."""
    found: dict[Size, ByTokens] = {}
    for record in of_models(records, op, mode):
        value = ratio(record, kind)
        if value is not None:
            n, k = record["shape"]
            found.setdefault((n, k), {})[record["tokens"]] = value
    return found


def geometric_means(by_shape: Mapping[Size, ByTokens]) -> ByTokens:
    """Tokens -> mean over the seven shapes, where all seven were measured."""
    means = {}
    for m in TOKENS:
        values = [by_shape[size][m] for size in SEVEN if m in by_shape.get(size, {})]
        if len(values) == len(SEVEN):
            means[m] = math.exp(sum(map(math.log, values)) / len(values))
    return means


def shares_of_ceiling(records: Iterable[Record], op: str, mode: str) -> dict[Size, ByTokens]:
    """Shape -> tokens -> the weight's bytes over our time, as a share of the measured read rate."""
    found: dict[Size, ByTokens] = {}
    for record in of_models(records, op, mode):
        if "ours auto" in record["microseconds"]:
            rate = record["weight_bytes"] / record["microseconds"]["ours auto"] * 1e6
            n, k = record["shape"]
            found.setdefault((n, k), {})[record["tokens"]] = rate / record["read_ceiling"]
    return found


def error_ratios(records: Iterable[Record]) -> list[tuple[float, Record]]:
    """Our error over that of torch's own products, both against float64; the largest first."""
    found = []
    for record in records:
        errors = record.get("errors", {})
        theirs = [e for name, e in errors.items() if name.startswith(("dense", "two products"))]
        if theirs and "ours auto" in errors and max(theirs) > 0:
            found.append((errors["ours auto"] / max(theirs), record))
    return sorted(found, key=lambda pair: -pair[0])
