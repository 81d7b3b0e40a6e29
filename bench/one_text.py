"""A model compressed in many ways on the same calibration tokens, each measured on one text."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.checkpoint.load import LoadedModel, load_with_tokenizer, silence_transformers
from secateur.compress import compress_with_report
from secateur.evaluate.perplexity import encode_text, perplexity
from secateur.progress import SilentProgress
from secateur.report.record import Report


@dataclass(frozen=True)
class OneText:
    """What is compressed and measured, on what."""

    model: str
    """Folder."""
    calibration: str
    text: Path
    num_samples: int
    """Calibration windows."""
    length: int
    """Tokens in a window, of both texts."""
    windows: int | None
    """Only the first ones of the text; None: all."""

    @cached_property
    def dense(self) -> nn.Module:
        """The model as it is."""
        return self._loaded.model

    def compress(self, stage: dict[str, Any]) -> tuple[nn.Module, Report]:
        """The model after a recipe of one stage."""
        return compress_with_report(
            self.model,
            {"stages": [stage]},
            calibration=self.calibration,
            num_calibration_samples=self.num_samples,
            max_seq_length=self.length,
            progress=SilentProgress(),
        )

    def measure(self, network: nn.Module) -> dict[str, Any]:
        """Values of a record: what was asked, perplexity and its standard error."""
        result = perplexity(network, self._token_ids, self.length)
        return {
            "model": Path(self.model).name,
            "calibration": Path(self.calibration).name,
            "num_samples": self.num_samples,
            "text": f"{self.text.parent.name}/{self.text.name}",
            "max_seq_length": self.length,
            "num_tokens": result.num_tokens,
            "perplexity": result.perplexity,
            "standard_error": result.standard_error,
        }

    @cached_property
    def _loaded(self) -> LoadedModel:
        silence_transformers()
        return load_with_tokenizer(self.model)

    @cached_property
    def _token_ids(self) -> Tensor:
        token_ids = encode_text(self._loaded.tokenizer, self.text.read_text(encoding="utf-8"))
        return token_ids[: self.windows * self.length] if self.windows else token_ids
