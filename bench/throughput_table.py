"""Whole models against their dense one, from `bench/results/throughput.jsonl`, for the guides."""

import json
from typing import Any

from bench.records import RESULTS

_DEFAULT = "engine"
_REFERENCE = "2:4"


def throughput_table() -> str:
    """Speed relative to the dense model, in the last run."""
    path = RESULTS / "throughput.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = [json.loads(line) for line in lines]
    run = [record for record in records if record["created"] == records[-1]["created"]]
    dense = {_shape(r): r for r in run if r["model"]["name"] == r["baseline"] and _is_ours(r)}
    rows = [_row(r, dense[_shape(r)]) for r in run if r is not dense[_shape(r)]]
    heads = ["model", "form", "run by", "batch", "prompt", "prefill", "decode", "weights"]
    table = ["| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * 8, *rows]]
    return "\n".join([*table, "", *(run[0]["notes"] if run else [])])


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
