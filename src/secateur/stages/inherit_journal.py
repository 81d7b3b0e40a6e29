"""A finished round of the inherit stage on disk, so that an interrupted stage goes on after it."""

import json
import os
from pathlib import Path

import torch
from torch import nn

from secateur.plain import from_plain, to_plain
from secateur.report.training_record import InheritRound
from secateur.settings import read_settings
from secateur.training.trainer import OptimizerState

_RECORD = "round.json"
_STATE = "round.pt"


class RoundJournal:
    """Reads and writes what came of one round."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        """`folder` is the round's own; `model` has the round's blocks."""
        self._folder = folder
        self._model = model

    def save(self, finished: InheritRound, moments: OptimizerState, with_moments: bool) -> None:
        """Write weights, and the record last: with it the round counts as finished.

        Only the first of several processes writes.
        """
        if read_settings().rank != 0:
            return
        names = {id(item): name for name, item in self._model.named_parameters()}
        held = {names[id(item)]: state for item, state in moments.items()} if with_moments else {}
        state = {"weights": self._model.state_dict(), "moments": held}
        aside = self._folder / f"{_STATE}.partial"
        torch.save(state, aside)
        os.replace(aside, self._folder / _STATE)
        aside = self._folder / f"{_RECORD}.partial"
        aside.write_text(json.dumps(to_plain(finished)), encoding="utf-8")
        os.replace(aside, self._folder / _RECORD)

    def load(self, with_moments: bool) -> tuple[InheritRound, OptimizerState] | None:
        """Put a finished round's weights into the model; None if the round is not finished."""
        record = self._folder / _RECORD
        if not record.is_file():
            return None
        finished = from_plain(InheritRound, json.loads(record.read_text(encoding="utf-8")))
        state = torch.load(self._folder / _STATE, map_location="cpu", weights_only=True)
        self._model.load_state_dict(state["weights"])
        parameters = dict(self._model.named_parameters())
        moments = {parameters[name]: value for name, value in state["moments"].items()}
        return finished, moments if with_moments else {}
