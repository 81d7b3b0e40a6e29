"""What dispatch answers."""

from dataclasses import dataclass
from typing import Any, Literal

Policy = Literal["memory", "strict"]
"""`memory`: one packed copy. `strict`: a dense copy is kept beside it where dense wins."""


@dataclass(frozen=True)
class Choice:
    """A backend with its config, and why."""

    backend: str
    config: Any = None
    """The backend's frozen config dataclass; None where it has none."""
    reason: str = ""

    def __str__(self) -> str:
        config = f" with {self.config}" if self.config is not None else ""
        return f"{self.backend}{config}: {self.reason}"
