"""Every environment variable that Secateur reads. No other module looks at the environment, but for
the kernel package, which knows where caches are."""

import os
from dataclasses import dataclass

from secateur.errors import SecateurError

_FALSE = {"", "0", "false", "no", "off"}
_TRUE = {"1", "true", "yes", "on"}


@dataclass(frozen=True)
class Settings:
    """Typed values of the environment at the time of `read_settings`."""

    offline: bool
    """HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE: never reach for the network."""
    no_progress: bool
    """SECATEUR_NO_PROGRESS: no progress bars even on a terminal."""
    rank: int
    """RANK, which torchrun and accelerate set: this process among all; 0 writes."""
    local_rank: int = 0
    """LOCAL_RANK: the same among the processes of this machine, and the number of its GPU."""
    world_size: int = 1
    """WORLD_SIZE: how many processes work together."""
    api_key: str | None = None
    """SECATEUR_API_KEY: what requests to the server must show; None where it is not set."""


def _flag(name: str) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise SecateurError(f"{name} must be one of {sorted(_TRUE | _FALSE)}, but is {value!r}")


def _whole_number(name: str) -> int:
    value = os.environ.get(name, "").strip() or "0"
    if not value.isdecimal():
        raise SecateurError(f"{name} must be a whole number, but is {value!r}")
    return int(value)


def read_settings() -> Settings:
    """Read the environment; a value that cannot be understood is an error."""
    offline = [_flag("HF_HUB_OFFLINE"), _flag("TRANSFORMERS_OFFLINE")]
    return Settings(
        offline=any(offline),
        no_progress=_flag("SECATEUR_NO_PROGRESS"),
        rank=_whole_number("RANK"),
        local_rank=_whole_number("LOCAL_RANK"),
        world_size=_whole_number("WORLD_SIZE") or 1,
        api_key=os.environ.get("SECATEUR_API_KEY") or None,
    )


def this_environment(**more: str) -> dict[str, str]:
    """This process's environment and `more`, for one that takes its place."""
    return {**os.environ, **more}
