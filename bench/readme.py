"""Put the figures of bench/results into README.md and the guides of docs/, between markers.

python -m bench.readme           rewrite the pages that are out of date
python -m bench.readme --check   name them and exit with 1
"""

import json
import re
from collections.abc import Callable, Mapping
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
from bench.throughput_table import throughput_table, times_table
from bench.training_tables import inheritance_table, long_run_sentence, recovery_table

ROOT = Path(__file__).parents[1]

Figures = Mapping[str, Callable[[], str]]


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


def perplexities() -> dict[tuple[str, str, str], dict[tuple[str, str], float]]:
    """(model, text, calibration) -> (method, pattern) -> perplexity."""
    found: dict[tuple[str, str, str], dict[tuple[str, str], float]] = {}
    for record in latest("quality", ("model", "text", "calibration", "method", "pattern")):
        key = (record["model"], record["text"], record["calibration"])
        found.setdefault(key, {})[record["method"], record["pattern"]] = record["perplexity"]
    return found


def quality_table() -> str:
    patterns = ("2:4", "4:8", "unstructured")
    rows = []
    for (model, text, calibration), found in perplexities().items():
        dense = found["dense", "dense"]
        for method in dict.fromkeys(method for method, _ in found if method != "dense"):
            values = [
                f"{found[key]:.2f}" if (key := (method, p)) in found else "" for p in patterns
            ]
            closed = gap_closed(found.get((method, "2:4")), found.get(("wanda", "2:4")), dense)
            rows.append([model, text, calibration, f"{dense:.2f}", method, *values, closed])
    heads = ["model", "text", "calibrated on", "dense", "method", "2:4", "4:8", "50%"]
    return table([*heads, "2:4, of the gap Wanda to dense"], rows)


def quality_2of4_table() -> str:
    """The methods that people compare, at 2:4, on the first text of every model."""
    models: dict[str, dict[tuple[str, str], float]] = {}
    for (model, _, _), found in perplexities().items():
        models.setdefault(model, found)
    rows = [["dense", *(f"{found['dense', 'dense']:.2f}" for found in models.values())]]
    for method in ("magnitude", "wanda", "sparsegpt", "wanda++", "best-2:4"):
        values = [found.get((method, "2:4")) for found in models.values()]
        rows.append([method, *("" if value is None else f"{value:.2f}" for value in values)])
    return table(["perplexity", *models], rows)


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


def device_memory_table() -> str:
    rows = []
    for record in latest("device_memory", ("shape", "method")):
        goal = record["goal_bytes"]
        rows.append(
            [
                record["shape"],
                record["method"],
                f"{record['peak_bytes'] / 1e9:.1f}",
                f"{record['estimated_bytes'] / 1e9:.1f}",
                f"{goal / 1e9:.0f}" if goal else "",
            ]
        )
    return table(["shape", "method", "GB counted", "`--dry-run` says", "goal"], rows)


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


SECTIONS: Figures = {
    "quality": quality_table,
    "quality-2of4": quality_2of4_table,
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
    "throughput-gpu": times_table,
    "planner": planner_table,
    "cost": cost_table,
    "device-memory": device_memory_table,
    "kernel-goals": goals_table,
    # What kernels do on a GPU, as recorded by `make bench-gpu`.
    **{name: partial(str, text) for name, text in tables().items()},
}


_MARKED = re.compile(r"<!-- (begin|end) (\S+) -->")


def pages(root: Path = ROOT) -> list[Path]:
    """Every page that may show figures: the README and the guides."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def filled(text: str, figures: Figures = SECTIONS) -> str:
    """`text` with what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` made anew.

    Raises:
        ValueError: a name without figures, or a marker without its partner.
    """
    done, at = "", 0
    marks = list(_MARKED.finditer(text))
    for begin, end in zip(marks[::2], marks[1::2], strict=False):
        if (begin[1], end[1], end[2]) != ("begin", "end", begin[2]):
            raise ValueError(f"expected `{begin[0]}` and its end, got `{begin[0]}`, `{end[0]}`")
        if begin[2] not in figures:
            raise ValueError(f"expected a name of bench.readme.SECTIONS, got `{begin[0]}`")
        done += f"{text[at : begin.end()]}\n{figures[begin[2]]()}\n"
        at = end.start()
    if len(marks) % 2:
        raise ValueError(f"expected a partner of `{marks[-1][0]}`, got none")
    return done + text[at:]


def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing.")] = False,
) -> None:
    new = {page: filled(page.read_text(encoding="utf-8")) for page in pages()}
    stale = [page for page, text in new.items() if page.read_text(encoding="utf-8") != text]
    for page in stale:
        typer.echo(f"{page.relative_to(ROOT)} {'is out of date' if check else 'rewritten'}")
        if not check:
            page.write_text(new[page], encoding="utf-8")
    raise typer.Exit(int(check and bool(stale)))


if __name__ == "__main__":
    typer.run(main)
