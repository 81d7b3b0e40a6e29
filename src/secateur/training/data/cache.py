"""A folder of stored windows: what it is named by, and how it comes into being whole or not."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from secateur.errors import OutOfSpaceError, SecateurError
from secateur.new_folder import new_folder_beside
from secateur.texts.dataset_rows import dataset_identity
from secateur.texts.sources import source_files
from secateur.training.data.stored import FORMAT_VERSION, read_stored
from secateur.training.data.text import TrainingText
from secateur.training.data.tokenizer import Tokenizer, tokenizer_identity

# Smaller files are known by their content, larger ones by size, time and both ends.
_LARGE_BYTES = 1 << 28
_END_BYTES = 1 << 20
_ABANDONED_SECONDS = 24 * 3600
_ATTEMPTS = 5


def cache_key(text: TrainingText, tokenizer: Tokenizer) -> str:
    """Hex digest of everything that decides what is stored; nothing is tokenised for it.

    Raises:
        SecateurError: a source is not there or cannot be read.
    """
    facts = {
        "format_version": FORMAT_VERSION,
        "sources": [_source_identity(source) for source in text.each_source],
        "tokenizer": tokenizer_identity(tokenizer),
        "max_seq_length": text.max_seq_length,
        "max_tokens": text.max_tokens,
        "format": text.format,
        "document_separator": text.document_separator,
        "pack": text.pack,
    }
    return _sha256(json.dumps(facts, sort_keys=True).encode())


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target` at the end, unless there was an error.

    Where another process made a whole `target` meanwhile, that one stays.

    Raises:
        SecateurError: the folder cannot be written (`OutOfSpaceError`: the disk is full).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        aside = new_folder_beside(target, ".aside-")
    except OSError as error:
        raise SecateurError(
            f"the cache {target.parent} cannot be written: {error}; set SECATEUR_CACHE to "
            "another folder"
        ) from None
    try:
        yield aside
        _rename(aside, target)
    except OSError as error:
        kind = OutOfSpaceError if error.errno == errno.ENOSPC else SecateurError
        raise kind(f"the cache {target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _rename(aside: Path, target: Path) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            os.rename(aside, target)
            return
        except OSError:
            if read_stored(target) is not None:
                return
            if not target.exists() or attempt == _ATTEMPTS - 1:
                raise
        _remove(target)


def _remove(folder: Path) -> None:
    """Away at once, so that nobody sees it half removed."""
    trash = new_folder_beside(folder, ".aside-")
    with suppress(OSError):  # another process may have been first
        os.rename(folder, trash / "removed")
    shutil.rmtree(trash, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """What a killed process left behind."""
    for folder in parent.glob(".aside-*"):
        with suppress(OSError):
            times = [path.stat().st_mtime for path in (folder, *folder.rglob("*"))]
            if max(times) < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _source_identity(source: str | Path | tuple[str | Mapping[str, Any], ...]) -> Any:
    if not isinstance(source, str | Path):
        digest = hashlib.sha256()
        for row in source:
            content = json.dumps(row, default=dict).encode()
            digest.update(len(content).to_bytes(8, "little") + content)
        return ["inline", digest.hexdigest()]
    files = source_files(source, "training")
    if files is None:
        return ["dataset", dataset_identity(str(source))]
    root = Path(source)
    # A name decides how a file is read and, within a folder, in which order.
    names = [path.relative_to(root).as_posix() if path != root else path.suffixes for path in files]
    return [[name, _file_identity(path)] for name, path in zip(names, files, strict=True)]


def _file_identity(path: Path) -> list[Any]:
    try:
        return _content_or_ends(path)
    except OSError as error:
        raise SecateurError(f"training source {path} cannot be read: {error}") from error


def _content_or_ends(path: Path) -> list[Any]:
    facts = path.stat()
    with path.open("rb") as file:
        if facts.st_size <= _LARGE_BYTES:
            digest = hashlib.sha256()
            while piece := file.read(_END_BYTES):
                digest.update(piece)
            return ["content", digest.hexdigest()]
        first = file.read(_END_BYTES)
        file.seek(-_END_BYTES, os.SEEK_END)
        return ["ends", facts.st_size, facts.st_mtime_ns, _sha256(first + file.read(_END_BYTES))]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
