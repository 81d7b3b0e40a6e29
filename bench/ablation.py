"""What each part of the regional method is worth at 2:4: one model, one run, one record a line.

    python -m bench.texts --text FILE --output FOLDER
    python -m bench.ablation --model FOLDER --calibration FILE --texts FOLDER

Plain Wanda and dense are measured first; figures are shares of the gap in log-perplexity between
them that is closed. Nothing is timed, so the machine may have other work.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer

from bench.records import RESULTS, append_record
from bench.teacher_inputs import TeacherInputs, prune_with_teacher
from bench.trials import Bench
from secateur.calibration.tokens import tokens_from_tensor
from secateur.models.inventory import take_inventory
from secateur.reconstruct import ReconstructionSettings
from secateur.report.record import Report
from secateur_kernels.precision import dtype_name


@dataclass(frozen=True)
class Trial:
    """One row: a prune stage, and what is asked with it."""

    question: str
    answer: str
    stage: dict[str, Any]
    num_samples: int | None = None
    dtype: torch.dtype | None = None
    """Of the model; None for its own."""
    teacher: TeacherInputs | None = None
    """Not a stage of the library's, but the experiment of `bench.teacher_inputs`."""


def _tuned(question: str, answer: str, method: str, **tuning: Any) -> Trial:
    return Trial(question, answer, {"method": method, "reconstruct": tuning})


def _rms(rate: float) -> dict[str, Any]:
    """The published setting at another rate; masks held, which it does not do."""
    return {"preset": "published", "rate": rate, "frozen_mask": True}


def trials() -> Iterator[Trial]:
    """All rows, those that answer one question together.

    `RGS + RO` is Adam at 0.5 rms / sqrt(K), cosine, whole blocks: not repeated under each question.
    """
    yield Trial("parts", "RGS alone", {"method": "rgs"})
    yield _tuned("parts", "RO alone, on Wanda's mask", "wanda", preset="wanda++")
    yield _tuned("parts", "RGS + RO", "wanda++")
    yield _tuned("parts", "RGS + RO as published", "wanda++", preset="published")
    yield Trial("parts", "ADMM alone", {"method": "admm"})
    yield _tuned("parts", "ADMM + RO", "best-2:4", preset="wanda++")
    for alpha in (1.0, 10.0, 1000.0):
        yield Trial("alpha, RGS alone", f"{alpha:g}", {"method": "rgs", "alpha": alpha})
    for dtype in (torch.float32, torch.bfloat16):
        stage = {"method": "wanda++", "reconstruct": {"preset": "published"}}
        name = dtype_name(dtype)
        yield Trial("published setting, by the model's dtype", name, stage, dtype=dtype)
    for sees in ("pruned", "dense"):
        yield Trial("inputs of the teacher", sees, {}, teacher=sees)
    for rate in (3e-6, 3e-5, 3e-4, 1e-3):
        yield _tuned("optimizer and rate", f"RMSprop, constant {rate:g}", "wanda++", **_rms(rate))
    for rate in (3e-4, 1e-3):
        values = {"optimizer": "adam", "scale": "absolute", "rate": rate}
        yield _tuned("optimizer and rate", f"Adam, cosine {rate:g}", "wanda++", **values)
    for rate in (0.1, 0.25, 1.0):
        answer = f"Adam, cosine {rate:g} rms / sqrt(K)"
        yield _tuned("optimizer and rate", answer, "wanda++", rate=rate)
    values = {"optimizer": "rmsprop", "rate": 0.25}
    yield _tuned("optimizer and rate", "RMSprop, cosine 0.25 rms / sqrt(K)", "wanda++", **values)
    yield _tuned("granularity", "halves", "wanda++", granularity="halves")
    for rounds in (1, 2, 5):
        values = {"rounds": rounds, "held_out": 0.25}
        yield _tuned("rounds, a quarter held out", f"{rounds}", "best-2:4", **values)
    for count in (16, 32, 64, 128):
        yield Trial("calibration windows", f"{count}", {"method": "best-2:4"}, num_samples=count)


def run(bench: Bench, trial: Trial) -> dict[str, Any]:
    """Do one row; what to record."""
    tokens = bench.tokens(trial.num_samples)
    saved = bench.dense
    if trial.dtype is not None:
        bench.dense = deepcopy(saved).to(trial.dtype)
    try:
        found = _pruned(bench, trial, tokens)
    finally:
        bench.dense = saved
    quality = bench.quality(found.pop("model"))
    return {
        **bench.facts,
        "num_samples": len(tokens),
        "question": trial.question,
        "answer": trial.answer,
        "perplexity": vars(quality),
        "gap_closed": bench.gap_closed(quality),
        **found,
    }


def _pruned(bench: Bench, trial: Trial, tokens: torch.Tensor) -> dict[str, Any]:
    if trial.teacher is not None:
        settings = ReconstructionSettings(rounds=2)
        samples = tokens_from_tensor(tokens)
        return {"model": prune_with_teacher(bench.dense, samples, trial.teacher, settings)}
    model, report, _ = bench.prune(trial.stage, tokens)
    return {"model": model, "moved": moved(bench.dense, model), **errors(report)}


def moved(dense: Any, pruned: Any) -> float:
    """Of the kept weights, the share that is not what it was, bit for bit."""
    changed = kept = 0
    sites = zip(take_inventory(dense).all_sites, take_inventory(pruned).all_sites, strict=True)
    for old, new in sites:
        is_kept = new.weight != 0
        kept += int(is_kept.sum())
        changed += int((is_kept & (new.weight != old.weight)).sum())
    return changed / max(1, kept)


def errors(report: Report) -> dict[str, float]:
    """Relative errors of blocks, averaged: before tuning, after it, and by kind of sample."""
    blocks = report.stages[0].blocks
    lists = {
        "error_before": [b.error_before_tuning for b in blocks],
        "error_after": [b.output_error for b in blocks],
        "error_trained_on": [b.rounds[-1].train_error for b in blocks if b.rounds],
        "error_held_out": [b.rounds[-1].held_out_error for b in blocks if b.rounds],
    }
    return {
        name: fmean(known)
        for name, values in lists.items()
        if (known := [value for value in values if value is not None])
    }


def recorded(facts: dict[str, Any], folder: Path = RESULTS) -> set[tuple[str, str]]:
    """(question, answer) of the rows that have a record for the model and texts of `facts`."""
    path = folder / "ablation.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    same = [name for name in facts if name != "num_samples"]
    return {
        (record["question"], record["answer"])
        for record in map(json.loads, lines)
        if all(record[name] == facts[name] for name in same)
    }


def main(
    texts: Annotated[Path, typer.Option(help="Made by bench.texts.")],
    model: Annotated[str, typer.Option(help="Model folder.")] = "examples/books-8m",
    calibration: Annotated[Path, typer.Option(help="Text to calibrate on.")] = Path(
        "examples/books-8m/calibration.txt"
    ),
    num_samples: Annotated[int, typer.Option(help="Calibration windows of 256 tokens.")] = 64,
    windows: Annotated[int, typer.Option(help="Windows of 256 tokens of each text.")] = 64,
    questions: Annotated[
        str | None, typer.Option(help="Only these, between semicolons.", show_default=False)
    ] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only what has no record.")] = False,
) -> None:
    bench = Bench(model, calibration, texts, num_samples, windows)
    wanted = [name.strip() for name in questions.split(";")] if questions else None
    done = recorded(bench.facts) if missing else set()
    for trial in trials():
        asked = wanted is None or trial.question in wanted
        if asked and (trial.question, trial.answer) not in done:
            record = run(bench, trial)
            append_record("ablation", record)
            closed = record["gap_closed"]
            typer.echo(
                f"{trial.question:28} {trial.answer:36} choose {closed['choose']:6.1%}  "
                f"report {closed['report']:6.1%}  moved {record.get('moved', 1):.2%}"
            )


if __name__ == "__main__":
    typer.run(main)
