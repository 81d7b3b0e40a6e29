"""A folder that is filled beside its final place."""

import os
import tempfile
from pathlib import Path


def new_folder_beside(place: Path, prefix: str, suffix: str = "") -> Path:
    """An empty folder of a name of its own in the folder of `place`, which must exist.

    It may be read by whom the process lets read any new folder: `tempfile.mkdtemp` alone would
    let nobody else in, also after it was renamed.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=place.parent))
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    return folder
