"""Tables and pictures of trainings, from records made by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench import training_tables


def recovery(method: str, after: float, purpose: str = "methods", **more: Any) -> dict[str, Any]:
    points = [
        {"num_tokens": tokens, "held_out_loss": loss}
        for tokens, loss in ((0, 4.5), (500_000, (4.5 + after) / 2), (1_000_000, after))
    ]
    return {
        "purpose": purpose,
        "model": "toy",
        "dropped_blocks": 2,
        "method": method,
        "loss": "distillation",
        "num_trained_parameters": 3_500_000,
        "num_tokens": 1_000_000,
        "seconds_of_steps": 90.0,
        "dense_loss": 4.0,
        "loss_before": 4.5,
        "loss_after": after,
        "recovered": (4.5 - after) / 0.5,
        "data": "train.txt",
        "evaluation": "valid.txt",
        "num_held_out_windows": 128,
        "max_seq_length": 256,
        "points": points,
        **more,
    }


def inheritance(start: str, blocks: list[int], loss: float) -> dict[str, Any]:
    return {
        "model": "toy",
        "start": start,
        "learning_rate": 0.001,
        "parent_blocks": 8,
        "parent_loss": 4.0,
        "blocks": blocks,
        "num_tokens": 800_000,
        "loss": loss,
        "evaluation": "valid.txt",
        "num_held_out_windows": 128,
        "max_seq_length": 256,
    }


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(training_tables, "RESULTS", tmp_path)
    return tmp_path


def write(file: Path, *records: dict[str, Any]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_without_records_nothing_is_claimed(results: Path) -> None:
    assert training_tables.recovery_table() == training_tables.NOT_MEASURED
    assert training_tables.inheritance_table() == training_tables.NOT_MEASURED
    assert training_tables.long_run_sentence() == training_tables.NOT_MEASURED
    assert training_tables.pictures() == {}


def test_the_latest_record_of_each_method_counts_and_the_best_stands_first(results: Path) -> None:
    write(
        results / "recovery.jsonl",
        recovery("gates", 4.4),
        recovery("lora", 4.1),
        recovery("gates", 4.2),
        recovery("all", 4.0, purpose="rate-trial"),
    )
    lines = training_tables.recovery_table().splitlines()
    assert "loss 4.5000, dense 4.0000 nats a token on 128 windows of 256" in lines[0]
    assert lines[4] == ("| LoRA, rank 8 | distillation | 3.50M | 1.00M | 1.5 min | 4.1000 | 80% |")
    assert lines[5].startswith("| gates (MLP matrices) |")
    assert lines[5].endswith("| 4.2000 | 60% |")
    assert len(lines) == 6


def test_the_long_run_says_whether_dense_was_reached(results: Path) -> None:
    write(results / "recovery.jsonl", recovery("gates", 4.1, "long run"))
    sentence = training_tables.long_run_sentence()
    assert "did not reach the dense model: 4.1000 against 4.0000, 80% of the loss" in sentence
    assert "The second half of the tokens brought 0.2000 of the 0.4000 gained" in sentence
    write(results / "recovery.jsonl", recovery("gates", 3.9, "long run"))
    assert " reached the dense model: 3.9000" in training_tables.long_run_sentence()


def test_inheritance_is_compared_with_random_weights(results: Path) -> None:
    write(
        results / "inheritance.jsonl",
        inheritance("inherited", [4, 6], 4.5),
        inheritance("random", [6], 6.0),
    )
    lines = training_tables.inheritance_table().splitlines()
    assert lines[4].startswith("| inherited, grown once | 4 → 6 | 0.80M | 0.001 | 4.5000 | 75% |")
    assert lines[5].endswith("| 6.0000 | 0% |")


def test_pictures_show_every_method_and_the_dense_line(results: Path) -> None:
    write(
        results / "recovery.jsonl",
        recovery("gates", 4.2),
        recovery("lora", 4.1),
        recovery("gates", 4.1, "long run"),
    )
    drawn = training_tables.pictures()
    assert set(drawn) == {"recovery-methods.svg", "recovery-long.svg"}
    for words in ("gates (MLP matrices), distillation", "LoRA, rank 8", "dense 4.000"):
        assert words in drawn["recovery-methods.svg"]
    assert "LoRA" not in drawn["recovery-long.svg"]
    assert drawn == training_tables.pictures()
