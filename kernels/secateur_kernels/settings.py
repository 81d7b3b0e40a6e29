"""Every environment variable that the kernel package reads."""

import os
from pathlib import Path

from secateur_kernels.errors import SecateurError


def cache_folder() -> Path:
    """Where what can be made anew is kept, such as measured times: SECATEUR_CACHE, else the user's
    cache, that is `secateur` in XDG_CACHE_HOME or `~/.cache`. It need not exist.

    Raises:
        SecateurError: there is no home to keep it in, or a file is in its place.
    """
    chosen = os.environ.get("SECATEUR_CACHE", "").strip()
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    path = Path(chosen) if chosen else Path(base) / "secateur"
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise SecateurError(
            f"SECATEUR_CACHE must be set, for {path} cannot be found: {error}"
        ) from None
    # Unlike Path.is_file this is no error where the folder above may not be read.
    if os.path.isfile(path):
        raise SecateurError(f"SECATEUR_CACHE must be a folder, but {path} is a file")
    return path
