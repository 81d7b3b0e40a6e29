"""Records of throughput as the tests need them."""

from typing import Any

from secateur.report.throughput_record import (
    RunnerName,
    Spread,
    ThroughputMeasurement,
    ThroughputModel,
    ThroughputRecord,
)


def model(name: str, form: str = "dense", **more: Any) -> ThroughputModel:
    values: dict[str, Any] = {
        "name": name,
        "source": name,
        "form": form,
        "num_blocks": 8,
        "num_parameters": 1000,
        "weight_bytes": 2_000_000,
        "streamed_bytes": 1_000_000,
        "is_reference": False,
    }
    return ThroughputModel(**{**values, **more})


def measurement(
    name: str, token: float | None = 0.01, prefill: float = 500.0, **more: Any
) -> ThroughputMeasurement:
    runner: RunnerName = "engine"
    values: dict[str, Any] = {
        "model": name,
        "runner": runner,
        "batch_size": 1,
        "prompt_length": 16,
        "new_tokens": 8,
        "rounds": 3,
        "time_to_first_token": Spread(p50=0.02, p99=0.03),
        "time_per_output_token": None if token is None else Spread(p50=token, p99=2 * token),
        "prefill_tokens_per_second": prefill,
        "decode_tokens_per_second": None if token is None else 1 / token,
        "tokens_per_second": 50.0,
        "peak_memory_bytes": None,
    }
    return ThroughputMeasurement(**{**values, **more})


def record(**more: Any) -> ThroughputRecord:
    """Dense, a low-rank model that is faster, and 2:4 as reference, under two workloads."""
    names = {"books": 0.010, "thin": 0.004, "sparse": 0.050}
    values: dict[str, Any] = {
        "created": "2026-01-01T00:00:00.000001+00:00",
        "machine": {"processor": "P", "threads": "2", "device": "cpu"},
        "versions": {"torch": "2"},
        "dtype": "float32",
        "copy_bandwidth": 1e9,
        "baseline": "books",
        "models": (
            model("books"),
            model("thin", "low-rank", weight_bytes=1_000_000, streamed_bytes=500_000),
            model("sparse", "2:4", is_reference=True),
        ),
        "measurements": tuple(
            measurement(name, rows * token, 1 / token, batch_size=rows)
            for rows in (1, 4)
            for name, token in names.items()
        ),
        "notes": ("Other work ran beside it.",),
    }
    return ThroughputRecord(**{**values, **more})
