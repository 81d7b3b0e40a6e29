"""Tables of whole models, from records that are made up."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench import throughput_table
from bench.kernel_summary import DEVICE
from bench.kernel_tables import NOT_MEASURED


def line(device: str, created: str, name: str, milliseconds: float, batch: int = 1) -> str:
    model: dict[str, Any] = {"name": name, "source": f"llama-3-8b, {name}", "form": name}
    return json.dumps(
        {
            "created": created,
            "machine": {"device": device},
            "baseline": "dense",
            "notes": [f"on {device}"],
            "model": model | {"weight_bytes": 100 if name == "dense" else 60},
            "measurement": {
                "runner": "engine",
                "batch_size": batch,
                "prompt_length": 128,
                "prefill_tokens_per_second": 1000.0,
                "time_per_output_token": {"p50": milliseconds * 1e-3, "p99": 1.0},
            },
        }
    )


def test_a_table_is_of_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_table, "RESULTS", tmp_path)
    assert throughput_table.throughput_table() == throughput_table.times_table() == NOT_MEASURED
    lines = [line("cpu", "1", "dense", 20), line("cpu", "1", "low-rank", 10)]
    lines += [line(DEVICE, "2", "dense", 4.5), line(DEVICE, "2", "2:4", 2.7)]
    lines += [line(DEVICE, "3", "dense", 5.0, 16), line(DEVICE, "3", "2:4", 4.0, 16)]
    lines += [line("NVIDIA H100 80GB HBM3", "4", "dense", 7)]
    lines += [line(DEVICE, "5", "dense", 4.4), line(DEVICE, "5", "2:4", 2.2)]
    (tmp_path / "throughput.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shown = throughput_table.throughput_table()
    assert "| low-rank | low-rank | engine | 1 | 128 | 1.00 | 2.00 | 60% |" in shown
    assert shown.endswith("on cpu")
    assert throughput_table.times_table().splitlines()[2:] == [
        "| llama-3-8b, dense | engine | 1 | 128 | 4.40 | 1.00 | 1.00 | 100% |",
        "| llama-3-8b, 2:4 | engine | 1 | 128 | 2.20 | 2.00 | 1.00 | 60% |",
        "| llama-3-8b, dense | engine | 16 | 128 | 5.00 | 1.00 | 1.00 | 100% |",
        "| llama-3-8b, 2:4 | engine | 16 | 128 | 4.00 | 1.25 | 1.00 | 60% |",
    ]
