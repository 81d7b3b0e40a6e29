"""Every environment variable that the kernel package reads."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where `secateur tune` keeps what it measured: SECATEUR_CACHE, else the user's cache."""
    chosen = os.environ.get("SECATEUR_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "secateur"
