"""Where the checkpoints of a training lie, and whose they are."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from secateur.errors import SecateurError
from secateur.settings import read_settings

_OWNER_FILE = "training.json"
_CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of checkpoints of exactly one training."""

    path: Path
    resume: bool = False
    """Go on from the last checkpoint, if there is one."""

    def claim(self, identity: Mapping[str, str]) -> None:
        """Make the folder this training's own.

        Args:
            identity: what has to be the same for a training to go on: model, data, options ...

        Raises:
            SecateurError: it holds another training; nothing is deleted then.
        """
        if read_settings().rank != 0:
            return  # of several processes the first one claims
        owner = self.path / _OWNER_FILE
        if self.path.exists() and any(self.path.iterdir()):
            self._check_owner(owner, identity)
            if not self.resume:
                shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        owner.write_text(json.dumps(dict(identity), indent=2) + "\n", encoding="utf-8")

    def _check_owner(self, owner: Path, identity: Mapping[str, str]) -> None:
        if not owner.is_file():
            raise SecateurError(f"expected checkpoints of a training in {self.path}, found others")
        present = _read_object(owner)
        changed = [name for name, value in identity.items() if present.get(name) != value]
        if changed and self.resume:
            raise SecateurError(
                f"{self.path} holds checkpoints of another training: {', '.join(changed)} "
                f"{'has' if len(changed) == 1 else 'have'} changed since. Start anew without resume"
            )

    def last_checkpoint(self) -> str | None:
        """The latest checkpoint that was written to its end; None if there is none."""
        steps = {
            int(entry.name.removeprefix(_CHECKPOINT)): entry
            for entry in self.path.glob(f"{_CHECKPOINT}*")
            if entry.name.removeprefix(_CHECKPOINT).isdecimal()
            # What the Trainer writes last.
            and _read_object(entry / TRAINER_STATE_NAME)
        }
        return str(steps[max(steps)]) if steps else None

    def remove(self) -> None:
        """Delete the checkpoints: the result is safe elsewhere."""
        shutil.rmtree(self.path, ignore_errors=True)


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object, empty if the file is missing, cut short or holds something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def digest(*parts: str) -> str:
    """SHA-256 of texts in their order."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
