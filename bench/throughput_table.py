"""Whole models against their dense one, from `bench/results/throughput.jsonl`, for the guides.

A table is of one device: what a GPU's runs say does not push a CPU's aside.
"""

import json
from typing import Any

from bench.kernel_summary import DEVICE
from bench.kernel_tables import NOT_MEASURED
from bench.records import RESULTS

_DEFAULT = "engine"
_REFERENCE = "2:4"


def throughput_table(device: str = "cpu") -> str:
    """Speed relative to the dense model, in the last run on a device."""
    run = _last_run(device)
    if not run:
        return NOT_MEASURED
    dense = _dense(run)
    rows = [_row(r, dense[_shape(r)]) for r in run if r is not dense[_shape(r)]]
    heads = ["model", "form", "run by", "batch", "prompt", "prefill", "decode", "weights"]
    return "\n".join([*_markdown(heads, rows), "", *run[0]["notes"]])


def times_table(device: str = DEVICE) -> str:
    """What a token takes on a device, in the last run of each case, beside dense in that run."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for run in _runs(device):
        dense = _dense(run)
        for record in run:
            row = _times_row(record, dense[_shape(record)])
            rows[tuple(row[:4])] = row
    heads = ["model", "run by", "batch", "prompt", "ms a token", "decode", "prefill", "weights"]
    return "\n".join(_markdown(heads, list(rows.values()))) if rows else NOT_MEASURED


def _runs(device: str) -> list[list[dict[str, Any]]]:
    path = RESULTS / "throughput.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    runs: dict[str, list[dict[str, Any]]] = {}
    for record in map(json.loads, lines):
        if record["machine"]["device"] == device:
            runs.setdefault(record["created"], []).append(record)
    return list(runs.values())


def _last_run(device: str) -> list[dict[str, Any]]:
    runs = _runs(device)
    return runs[-1] if runs else []


def _dense(run: list[dict[str, Any]]) -> dict[tuple[int, int], dict[str, Any]]:
    """Batch and prompt -> the dense model in our engine."""
    return {_shape(r): r for r in run if r["model"]["name"] == r["baseline"] and _is_ours(r)}


def _markdown(heads: list[str], rows: list[list[str]]) -> list[str]:
    cells = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def _times_row(record: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    _, _, runner, batch, prompt, prefill, decode, weights = _row(record, dense)
    token = 1e3 * record["measurement"]["time_per_output_token"]["p50"]
    source = record["model"]["source"]
    return [source, runner, batch, prompt, f"{token:.2f}", decode, prefill, weights]


def _is_ours(record: dict[str, Any]) -> bool:
    return bool(record["measurement"]["runner"] == _DEFAULT)


def _shape(record: dict[str, Any]) -> tuple[int, int]:
    measured = record["measurement"]
    return measured["batch_size"], measured["prompt_length"]


def _row(record: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    model, measured = record["model"], record["measurement"]
    before = dense["measurement"]
    prefill = measured["prefill_tokens_per_second"] / before["prefill_tokens_per_second"]
    decode = before["time_per_output_token"]["p50"] / measured["time_per_output_token"]["p50"]
    ratios = [f"{prefill:.2f}", f"{decode:.2f}"]
    if model["form"] == _REFERENCE and record["machine"]["device"] == "cpu":
        # No kernel runs there: what is timed is the reference.
        ratios = ["reference", "reference"]
    weights = f"{model['weight_bytes'] / dense['model']['weight_bytes']:.0%}"
    batch, prompt = (str(size) for size in _shape(record))
    return [model["name"], model["form"], measured["runner"], batch, prompt, *ratios, weights]
