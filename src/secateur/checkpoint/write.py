"""Write a checkpoint aside, prove that it reloads as the same model, then rename it into place."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from secateur.checkpoint.card import model_card
from secateur.checkpoint.compact import needs_own_format
from secateur.checkpoint.manifest import MANIFEST_FILE, added_files, write_manifest
from secateur.checkpoint.verify import require_same_model
from secateur.errors import OutOfSpaceError, SecateurError
from secateur.new_folder import new_folder_beside
from secateur.recipe import Recipe
from secateur.report.record import REPORT_FILE, Report

RECIPE_FILE = "secateur_recipe.yaml"

# Tokenizer, configuration, report and the file system's own needs.
_SPACE_MARGIN_BYTES = 32 << 20


def check_output(output: Path, overwrite: bool, source: Path | None = None) -> Path:
    """Accept a place to write to.

    Args:
        output: the folder to make; links are followed.
        overwrite: replace a folder that is not empty, if Secateur wrote it.
        source: the folder of the model that is read, if there is one.

    Returns:
        The place as an absolute path without links.

    Raises:
        SecateurError: it cannot be made or must not be replaced.
    """
    place = Path(os.path.realpath(output))
    try:
        str(place).encode()
    except UnicodeEncodeError:
        # Found here, and not when hours of work are to be saved.
        raise SecateurError(
            "expected an output folder whose path is UTF-8, as safetensors needs it, got "
            f"{str(place)!a}"
        ) from None
    ancestor = place if place.exists() else _nearest_folder(place)
    if not ancestor.is_dir():
        raise SecateurError(f"expected an output folder, but {ancestor} is a file")
    if not os.access(ancestor if ancestor != place else place.parent, os.W_OK | os.X_OK):
        raise SecateurError(f"{output} cannot be written: no permission in {ancestor}")
    if os.path.ismount(place):
        raise SecateurError(f"{output} is a mount point; name a folder in it")
    if source is not None:
        read_from = Path(os.path.realpath(source))
        if place == read_from or place in read_from.parents:
            raise SecateurError(
                f"output {output} is, or holds, the model that is read; choose another folder"
            )
    if place.is_dir() and any(place.iterdir()):
        _check_replaceable(place, overwrite)
    return place


def _nearest_folder(place: Path) -> Path:
    return next(parent for parent in place.parents if parent.exists())


def _check_replaceable(place: Path, overwrite: bool) -> None:
    if not overwrite:
        raise SecateurError(
            f"output folder {place} is not empty; choose another, or pass overwrite "
            "(--overwrite) to replace it once the new model is complete"
        )
    if not (place / MANIFEST_FILE).is_file():
        raise SecateurError(
            f"{place} was not written by Secateur (it has no {MANIFEST_FILE}) and is not "
            "overwritten; delete it yourself if it may go"
        )


def check_saving(model: Any, max_shard_size: str | int) -> None:
    """Find before the work what would stop the saving after it.

    Raises:
        SecateurError: the model cannot be saved, or the shard size cannot be read.
    """
    if not hasattr(model, "save_pretrained"):
        raise SecateurError(
            f"expected a transformers model to write, but {type(model).__name__} has no "
            "save_pretrained"
        )
    is_number = type(max_shard_size) is int and max_shard_size > 0
    if not is_number and not re.fullmatch(r"[1-9][0-9]*(KB|MB|GB|TB)", str(max_shard_size)):
        raise SecateurError(
            f"expected max_shard_size such as 500MB or 5GB, or in bytes, got {max_shard_size!r}"
        )
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                generation.save_pretrained(scratch)
        except ValueError as error:
            raise SecateurError(f"the model's generation_config is not valid: {error}") from None


def check_space(output: Path, num_bytes: int) -> None:
    """Raise OutOfSpaceError if a model of `num_bytes` will not fit beside what is there."""
    place = output.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < num_bytes + _SPACE_MARGIN_BYTES:
        raise OutOfSpaceError(
            f"expected {(num_bytes + _SPACE_MARGIN_BYTES) / 2**20:.0f} MiB of free space for "
            f"{output}, but {place} has {free / 2**20:.0f} MiB"
        )


def write_checkpoint(
    model: Any,
    tokenizer: Any | None,
    recipe: Recipe,
    make_report: Callable[[], Report],
    output: Path,
    *,
    overwrite: bool = False,
    max_shard_size: str | int = "5GB",
    trust_remote_code: bool = False,
) -> Report:
    """Write a Hugging Face folder: weights, tokenizer, recipe, report, card, manifest.

    Everything is written to a folder of its own beside the output, and renamed at the end. The
    old output is moved aside only then; whatever goes wrong before, it stays as it was.

    Args:
        model: a transformers model (an `nn.Module` with save_pretrained).
        tokenizer: saved beside it; None to leave it out.
        recipe: that made it.
        make_report: called once the weights are written, so that it can say how long that took.
        output: the folder to make.
        overwrite: replace a folder that is not empty.
        max_shard_size: of the weight files, as transformers reads it.
        trust_remote_code: needed to reload a model that brings its own code.

    Returns:
        The report as written.

    Raises:
        OutOfSpaceError: the disk is full.
        VerificationError: what was written does not load as the model that was to be written.
    """
    output = check_output(output, overwrite)
    with space_errors(output), _temporary_folder(output) as partial:
        with space_errors(output):
            model.save_pretrained(partial, max_shard_size=max_shard_size)
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
            report = make_report()
            (partial / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
            (partial / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
            write_card(partial, model_card(recipe, report, needs_own_format(model)))
            write_manifest(partial)
            make_readable(partial)
            flush_folder(partial)
        require_same_model(model, partial, report.verification, trust_remote_code)
        put_in_place(partial, output)
    return report


def write_card(folder: Path, card: str) -> None:
    """Write the model card; what is no UTF-8 in names of files that it tells of is escaped."""
    (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")


@contextmanager
def _temporary_folder(output: Path) -> Iterator[Path]:
    made = [parent for parent in output.parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = new_folder_beside(output, f".{output.name}.", ".partial")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not output.exists():
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()


def flush_folder(folder: Path) -> None:
    """Have everything on the disk before names change."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def space_errors(output: Path) -> Iterator[None]:
    """Raise a full disk as OutOfSpaceError, and other faults of writing as SecateurError."""
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        if isinstance(error, SecateurError):
            raise
        # safetensors reports the system's error as text only.
        full = getattr(error, "errno", None) in _FULL or any(
            f"os error {code}" in str(error) for code in _FULL
        )
        if full:
            raise OutOfSpaceError(f"no space left to write {output}: {error}") from error
        raise SecateurError(f"{output} cannot be written: {error}") from error


def make_readable(folder: Path) -> None:
    """Give weight files the mode of every other file; safetensors makes them for the owner only."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | (folder.stat().st_mode & 0o444))


def put_in_place(partial: Path, output: Path) -> None:
    """Rename a complete folder to what it is to be called; an old one there goes afterwards.

    What others have put into the old one moves to the new one; under another name where the new
    one has a file of that name itself.
    """
    old = partial.with_suffix(".old")
    if output.exists():
        output.rename(old)
    try:
        partial.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise
    remove_old(partial, output)


def remove_old(partial: Path, output: Path) -> None:
    """The end of `put_in_place`, and that of one that was killed on the way to it."""
    old = partial.with_suffix(".old")
    if old.exists():
        _carry_over(old, output)
        shutil.rmtree(old, ignore_errors=True)


def _carry_over(old: Path, new: Path) -> None:
    for path in added_files(old):
        target = new / path.relative_to(old)
        while os.path.lexists(target):
            target = target.with_name(f"{target.name}.old")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
