"""Plans beside single methods at the same measured speed, from `bench/results/planner.jsonl`."""

from collections.abc import Mapping
from itertools import pairwise
from math import exp, log
from typing import Any

from bench.training_tables import NOT_MEASURED, read, table

_METHODS = {
    "low-rank": "low rank alone, planned",
    "drop": "dropping alone, planned",
    "svd-whitened": "`svd-whitened --importance loss`",
    "svd-whitened, directions": "the same by directions",
    "drop-blocks": "`--drop-blocks`",
}
_PLANNED = ("plan", "low-rank", "drop")
Curve = list[tuple[float, float]]


def planner_table() -> str:
    """The last record: perplexities at the plans' speeds, then what was predicted of each."""
    records = [r for r in read("planner") if r["kind"] == "frontier" and "chosen" in r]
    if not records:
        return NOT_MEASURED
    record = records[-1]
    return "\n\n".join([equal_speed(record), predictions(record), conditions(record)])


def equal_speed(record: Mapping[str, Any]) -> str:
    """A row a target: the plan handed over, and each single method at that plan's speed."""
    there = {point["method"] for point in record["points"].values()}
    methods = {method: head for method, head in _METHODS.items() if method in there}
    rows = []
    for target, name in record["chosen"].items():
        plan = record["points"][name]
        cells = [_at(curve(record, method), plan["speedup"]) for method in methods]
        shown = f"{plan['perplexity']:.2f}"
        rows.append([target, f"{plan['speedup']:.2f}", shown, *cells])
    return table(["asked for", "measured", "plan", *methods.values()], rows)


def curve(record: Mapping[str, Any], method: str) -> Curve:
    """Speed-up and perplexity of a method's models, from dense on, by speed."""
    points = [p for p in record["points"].values() if p["method"] == method]
    found = [(point["speedup"], point["perplexity"]) for point in points]
    return [(1.0, record["dense"]["perplexity"]), *sorted(found)]


def _at(points: Curve, speedup: float) -> str:
    value = interpolated(points, speedup)
    return "not reached" if value is None else f"{value:.2f}"


def interpolated(points: Curve, speedup: float) -> float | None:
    """Perplexity between two models, its logarithm on a line; None beyond the fastest one."""
    for (slow, first), (fast, second) in pairwise(points):
        if slow <= speedup <= fast:
            part = (speedup - slow) / (fast - slow) if fast > slow else 0.0
            return exp((1 - part) * log(first) + part * log(second))
    return None


def predictions(record: Mapping[str, Any]) -> str:
    """Every model that was measured; losses are on samples that planned ones were not fitted to."""
    rows = []
    for name, point in record["points"].items():
        planned = point["method"] in _PLANNED
        rows.append(
            [
                name if planned else f"`{name}`",
                f"{point['speedup']:.2f}",
                f"{point['predicted_speedup']:.2f}" if planned else "",
                f"{point['loss_built']:.3f}" if planned else "",
                f"{point['predicted_loss']:.3f}" if planned else "",
                f"{point['perplexity']:.2f}",
                ", ".join(point.get("removed", ())),
            ]
        )
    heads = ["model", "speed", "predicted", "loss", "predicted", "perplexity", "without"]
    return table(heads, rows)


def conditions(record: Mapping[str, Any]) -> str:
    """What it was measured on, and how far predictions were off."""
    planned = [p for p in record["points"].values() if p["method"] in _PLANNED]
    speed = max(abs(p["predicted_speedup"] / p["speedup"] - 1) for p in planned)
    loss = max(abs(p["predicted_loss"] - p["loss_built"]) for p in planned)
    shared = " The machine had other work." if record["machine_shared"] else ""
    return (
        f"{record['model']}, {record['dtype']}, {record['workload']}, "
        f"threads: {record['threads']}, {record['machine']['processor']}, "
        f"{record['rounds']} turns; "
        f"perplexity of {record['text']} (dense {record['dense']['perplexity']:.2f}). Predicted "
        f"speeds are off by at most {speed:.1%}, predicted losses by at most {loss:.3f} nats."
        f"{shared}"
    )
