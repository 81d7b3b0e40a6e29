"""Options by which a model is loaded, and loading it."""

from dataclasses import dataclass
from pathlib import Path

from secateur.checkpoint.load import LanguageModel, load_with_tokenizer
from secateur.cli.options import Device, Dtype, Revision, TrustRemoteCode
from secateur.cli.waiting import waiting_for


@dataclass(frozen=True, kw_only=True)
class Loading:
    """The options that all commands share which compute with a model."""

    device: Device = None
    dtype: Dtype = "auto"
    revision: Revision = None
    trust_remote_code: TrustRemoteCode = False

    def load(self, model: str) -> LanguageModel:
        """The model with its tokenizer, on its device.

        Raises:
            SecateurError: as `load_with_tokenizer`.
        """
        with waiting_for(f"load {model}"):
            return load_with_tokenizer(
                model, self.revision, self.dtype, self.trust_remote_code, self.device
            )


def source_name(model: str) -> str:
    """A folder by its own name, so that a record does not depend on where it lay."""
    folder = Path(model)
    return folder.resolve().name if folder.is_dir() else model
