"""One model, its three texts, and what pruning it some way costs and keeps, beside plain Wanda."""

from copy import deepcopy
from dataclasses import dataclass
from math import log
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

from bench.published import wanda_model
from secateur.calibration.data import load_calibration
from secateur.checkpoint.load import load_with_tokenizer, silence_transformers
from secateur.compress import compress_with_report
from secateur.evaluate.perplexity import encode_text, perplexity
from secateur.progress import SilentProgress
from secateur.report.record import Report

LENGTH = 256


@dataclass(frozen=True)
class Quality:
    """Perplexity on the text to choose on and on the one to report on."""

    choose: float
    report: float


class Bench:
    """A dense model in memory; every trial prunes a copy of it."""

    def __init__(
        self, model: str, calibration: Path, texts: Path, num_samples: int, windows: int
    ) -> None:
        """`texts` holds `choose.txt` and `report.txt`; `windows` windows of each, evenly spread."""
        silence_transformers()
        loaded = load_with_tokenizer(model)
        self.dense, self.tokenizer = loaded.model, loaded.tokenizer
        self.calibration, self.num_samples, self.windows = calibration, num_samples, windows
        self._texts = {
            name: spread_windows(
                encode_text(self.tokenizer, (texts / f"{name}.txt").read_text(encoding="utf-8")),
                windows,
            )
            for name in ("choose", "report")
        }
        self.facts = {
            "model": Path(model).name,
            "calibration": calibration.name,
            "num_samples": num_samples,
            "length": LENGTH,
            "windows": windows,
        }
        reference = deepcopy(self.dense)
        wanda_model(reference, self.tokens())
        self.dense_quality = self.quality(self.dense)
        self.wanda_quality = self.quality(reference)

    def tokens(self, num_samples: int | None = None) -> Tensor:
        """int64 [samples, length], the same at every call."""
        drawn = load_calibration(
            self.calibration,
            self.tokenizer,
            num_samples=num_samples or self.num_samples,
            max_seq_length=LENGTH,
        )
        return torch.stack(list(drawn.samples))

    def quality(self, model: Any) -> Quality:
        """On both texts."""
        found = {
            name: perplexity(model, token_ids, LENGTH).perplexity
            for name, token_ids in self._texts.items()
        }
        return Quality(**found)

    def gap_closed(self, quality: Quality) -> dict[str, float]:
        """By text: how far on the way from plain Wanda to dense, in log-perplexity."""
        return {name: self._closed(name, value) for name, value in vars(quality).items()}

    def _closed(self, name: str, value: float) -> float:
        wanda, dense = getattr(self.wanda_quality, name), getattr(self.dense_quality, name)
        return log(wanda / value) / log(wanda / dense)

    def reference_seconds(self, tokens: Tensor) -> float:
        """CPU seconds of the plain reference, on a copy that is not counted."""
        model = deepcopy(self.dense)
        started = process_time()
        wanda_model(model, tokens)
        return process_time() - started

    def prune(self, stage: dict[str, Any], tokens: Tensor) -> tuple[Any, Report, float]:
        """(model, report, CPU seconds) of one prune stage at 2:4, by the library, in memory."""
        model = deepcopy(self.dense)
        recipe = {"stages": [{"stage": "prune", "pattern": "2:4", **stage}]}
        started = process_time()
        pruned, report = compress_with_report(
            model, recipe, calibration=tokens, progress=SilentProgress()
        )
        return pruned, report, process_time() - started


def spread_windows(token_ids: Tensor, windows: int) -> Tensor:
    """`windows` windows of LENGTH tokens, evenly spread over the text, one after another."""
    whole = len(token_ids) // LENGTH
    count = min(windows, whole)
    places = [number * whole // count for number in range(count)]
    return torch.cat([token_ids[at * LENGTH : (at + 1) * LENGTH] for at in places])
