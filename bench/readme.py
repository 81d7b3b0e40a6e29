"""Put the figures of bench/results into the README, between its markers.

python -m bench.readme           rewrite README.md
python -m bench.readme --check   exit with 1 if it is out of date
"""

import json
from functools import partial
from math import log
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.goals import goals_table
from bench.kernel_tables import tables
from bench.planner_table import planner_table
from bench.records import RESULTS
from bench.regional_tables import ablation_table, curve_table
from bench.throughput_table import throughput_table
from bench.training_tables import inheritance_table, long_run_sentence, recovery_table

README = Path(__file__).parents[1] / "README.md"


def latest(name: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The last record for every combination of `keys`, in the order of first appearance."""
    records: dict[str, dict[str, Any]] = {}
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        record = json.loads(line)
        records[json.dumps([record.get(key) for key in keys])] = record
    return list(records.values())


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows]]
    return "\n".join(lines)


def quality_table() -> str:
    records = latest("quality", ("model", "text", "calibration", "method", "pattern"))
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in records:
        key = (record["model"], record["text"], record["calibration"])
        groups.setdefault(key, []).append(record)
    patterns = ("2:4", "4:8", "unstructured")
    rows = []
    for (model, text, calibration), group in groups.items():
        found = {(r["method"], r["pattern"]): r["perplexity"] for r in group}
        dense = found["dense", "dense"]
        for method in dict.fromkeys(r["method"] for r in group if r["method"] != "dense"):
            values = [
                f"{found[key]:.2f}" if (key := (method, p)) in found else "" for p in patterns
            ]
            closed = gap_closed(found.get((method, "2:4")), found.get(("wanda", "2:4")), dense)
            rows.append([model, text, calibration, f"{dense:.2f}", method, *values, closed])
    heads = ["model", "text", "calibrated on", "dense", "method", "2:4", "4:8", "50%"]
    return table([*heads, "2:4, of the gap Wanda to dense"], rows)


def gap_closed(value: float | None, wanda: float | None, dense: float) -> str:
    """How far a perplexity is on the way from Wanda's to dense, in its logarithm."""
    if value is None or wanda is None:
        return ""
    return f"{log(wanda / value) / log(wanda / dense):.0%}"


def cost_table() -> str:
    rows = []
    for record in latest("compression", ("model", "shape")):
        time, memory = record["time"], record["memory"]
        samples, length = record["shape"]
        what = f"Wanda 2:4 of {record['model']}, {samples} x {length} tokens"
        rows.append(
            [
                f"{what}: time against two bare passes of every block",
                f"{time['ratio']:.2f} ({time['ratio_min']:.2f} to {time['ratio_max']:.2f})",
                f"{time['goal']}",
            ]
        )
        growth, allowed = memory["growth_bytes"] / 1e6, memory["allowed_bytes"] / 1e6
        rows.append([f"{what}: growth of resident size", f"{growth:.0f} MB", f"{allowed:.0f} MB"])
    for record in latest("masks", ("shape",)):
        shape = f"{record['shape'][0]} x {record['shape'][1]}"
        rows.append(
            [
                f"2:4 mask of {shape} against the published loop",
                f"{record['ratio']:.1f} times as fast",
                f"{record['goal']}",
            ]
        )
    return table(["what", "measured", "goal"], rows)


def low_rank_table() -> str:
    keys = ("model", "text", "calibration", "method", "budget")
    groups: dict[tuple[str, str], dict[tuple[str, float], float]] = {}
    for record in latest("low_rank_quality", keys):
        found = groups.setdefault((record["model"], record["text"]), {})
        found[record["method"], record["budget"]] = record["perplexity"]
    budgets = sorted({budget for found in groups.values() for _, budget in found if budget})
    rows = []
    for (model, text), found in groups.items():
        dense = f"{found['dense', 0.0]:.2f}"
        for method in dict.fromkeys(name for name, _ in found if name != "dense"):
            values = [found.get((method, budget)) for budget in budgets]
            cells = ["" if value is None else f"{value:.2f}" for value in values]
            shown = method.replace("sparse-plus-low-rank", "2:4 plus low rank")
            rows.append([model, text, dense, shown, *cells])
    heads = [f"{budget:.0%} removed" for budget in budgets]
    return table(["model", "text", "dense", "method", *heads], rows)


def laser_table() -> str:
    rows = []
    for record in latest("laser", ("model", "task")):
        task = record["task"]
        rows += [_laser_row(f"{task['name']}, {task['metric']}", s) for s in record["states"]]
    heads = ["task", "model", "matrices cut", "validation", "test", "better than dense on test by"]
    return table(heads, rows)


def _laser_row(task: str, state: dict[str, Any]) -> list[str]:
    def shown(found: dict[str, float]) -> str:
        return f"{found['value']:.3f} ± {found['standard_error']:.3f}"

    change = state["change"]
    gain = ""
    if change is not None:
        gain = f"{change['improvement']:.3f} ± {change['standard_error']:.3f}"
    cuts = str(len(state["cuts"]))
    return [task, state["name"], cuts, shown(state["validation"]), shown(state["test"]), gain]


def low_rank_speed_table() -> str:
    rows = [
        [
            record["model"],
            record["dtype"],
            record["variant"],
            f"{record['tokens_per_second']:,.0f}",
            f"{record['ratio']:.2f}",
        ]
        for record in latest("low_rank_speed", ("model", "shape", "dtype", "variant"))
    ]
    return table(["model", "dtype", "matrices", "tokens a second", "of dense"], rows)


def depth_table() -> str:
    records = latest("depth", ("kind", "model", "text", "criterion", "removed", "variant", "dtype"))
    found = {(r["criterion"], r["removed"]): r for r in records if r["kind"] == "quality"}
    counts = sorted({removed for _, removed in found if removed})
    rows = []
    for name in dict.fromkeys(name for name, removed in found if removed):
        values = [found.get((name, count)) for count in counts]
        cells = ["" if value is None else f"{value['perplexity']:.2f}" for value in values]
        rows.append([name, *cells])
    dense = found.get(("dense", 0))
    heads = [f"{count} removed" for count in counts]
    shown = "" if dense is None else f"criterion (dense: {dense['perplexity']:.2f})"
    return table([shown, *heads], rows)


def depth_speed_table() -> str:
    keys = ("kind", "model", "shape", "dtype", "variant")
    records = [r for r in latest("depth", keys) if r["kind"] == "speed"]
    rows = [
        [
            record["variant"],
            f"{record['block_parameters_kept']:.1%}",
            f"{record['prefill_ratio']:.2f}",
            f"{record['decode_ratio']:.2f}",
            f"{record['proportional_ratio']:.2f}",
        ]
        for record in records
    ]
    shared = any(record["machine_shared"] for record in records)
    heads = ["removed", "block parameters left", "prefill", "decode", "in proportion"]
    note = "\n\nThe machine had other work; models were timed in turns." if shared else ""
    return table(heads, rows) + note


SECTIONS = {
    "quality": quality_table,
    "low-rank": low_rank_table,
    "low-rank-speed": low_rank_speed_table,
    "laser": laser_table,
    "depth": depth_table,
    "depth-speed": depth_speed_table,
    "recovery": recovery_table,
    "recovery-long": long_run_sentence,
    "inheritance": inheritance_table,
    "gap-against-time": curve_table,
    "ablation": ablation_table,
    "throughput": throughput_table,
    "planner": planner_table,
    "cost": cost_table,
    "kernel-goals": goals_table,
    # What kernels do on a GPU, as recorded by `make bench-gpu`.
    **{name: partial(str, text) for name, text in tables().items()},
}


def filled(text: str) -> str:
    for name, make in SECTIONS.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if begin not in text:
            continue
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing.")] = False,
) -> None:
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if check:
        raise typer.Exit(int(old != new))
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
