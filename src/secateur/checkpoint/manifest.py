"""The manifest: SHA-256 and size of every file of a checkpoint."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from secateur.checkpoint.files import read_json
from secateur.errors import SecateurError

MANIFEST_FILE = "secateur_manifest.json"
_READ_AT_ONCE = 8


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Hex SHA-256 of each file; several are read at once."""
    wanted = list(paths)
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return dict(zip(wanted, pool.map(file_sha256, wanted), strict=True))


def write_manifest(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """List every file below `folder`, itself excepted.

    `known`: digests by name of files that were read since they were written.
    """
    known = known or {}
    listed = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST_FILE
    ]
    names = {path: path.relative_to(folder).as_posix() for path in listed}
    found = file_digests(path for path, name in names.items() if name not in known)
    files = {
        name: {"sha256": known.get(name) or found[path], "bytes": path.stat().st_size}
        for path, name in names.items()
    }
    text = json.dumps({"format_version": 1, "files": files}, indent=2) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def added_files(folder: Path) -> list[Path]:
    """Files below a folder that its manifest does not list: somebody else put them there.

    Empty where there is no manifest that can be read: nothing tells then whose they are.
    """
    try:
        names = read_json(folder / MANIFEST_FILE).get("files")
    except SecateurError:
        return []
    if not isinstance(names, dict):
        return []
    known = {*names, MANIFEST_FILE}
    return [
        path
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or not path.is_dir())
        and path.relative_to(folder).as_posix() not in known
    ]


def manifest_faults(folder: Path) -> list[str]:
    """What differs from the manifest, one sentence a file; empty when all is as written.

    Files that were added later are no fault, unless they are weights or code.

    Raises:
        SecateurError: there is no readable manifest.
    """
    files = read_json(folder / MANIFEST_FILE).get("files")
    if not isinstance(files, dict):
        raise SecateurError(f"{folder / MANIFEST_FILE} has no list of files")
    added = [f"{name} was added" for name in _added_weights(folder, set(files))]
    faults = {name: _fault_of_form(folder, name, entry) for name, entry in files.items()}
    whole = {folder / name: name for name, fault in faults.items() if not fault}
    for path, digest in file_digests(whole).items():
        name = whole[path]
        if digest != files[name]["sha256"]:
            faults[name] = f"{name} has other content than when it was written"
    return added + [fault for fault in faults.values() if fault]


def _fault_of_form(folder: Path, name: str, entry: Any) -> str:
    """What is wrong with a file beside its content, or nothing."""
    path = folder / name
    if not _is_sound(name, entry):
        return f"the manifest's entry for {name!r} is not one that Secateur writes"
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{name} has {path.stat().st_size} bytes, expected {entry['bytes']}"
    return ""


def _is_sound(name: str, entry: object) -> bool:
    path = PurePosixPath(name)
    return (
        not path.is_absolute()
        and ".." not in path.parts
        and isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("bytes"), int)
    )


_LOADABLE = (".safetensors", ".bin", ".pt", ".py", ".index.json")


def _added_weights(folder: Path, listed: set[str]) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")))
    return [name for name in names if name.endswith(_LOADABLE) and name not in listed]
