"""Write a checkpoint aside, prove that it reloads as the same model, then rename it into place."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from secateur.checkpoint.card import model_card
from secateur.checkpoint.manifest import write_manifest
from secateur.checkpoint.verify import require_same_model
from secateur.errors import OutOfSpaceError, SecateurError
from secateur.recipe import Recipe
from secateur.report.record import REPORT_FILE, Report

RECIPE_FILE = "secateur_recipe.yaml"

# Tokenizer, configuration, report and the file system's own needs.
_SPACE_MARGIN_BYTES = 32 << 20


def check_output(output: Path, overwrite: bool) -> None:
    """Accept a place to write to.

    Raises:
        SecateurError: it is a file, or a folder that is not empty and must not be replaced.
    """
    if output.exists() and not output.is_dir():
        raise SecateurError(f"expected an output folder, but {output} is a file")
    if not overwrite and output.is_dir() and any(output.iterdir()):
        raise SecateurError(
            f"output folder {output} is not empty; choose another, or pass overwrite "
            "(--overwrite) to replace it once the new model is complete"
        )


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
    max_shard_size: str = "5GB",
    trust_remote_code: bool = False,
) -> Report:
    """Write a Hugging Face folder: weights, tokenizer, recipe, report, card, manifest.

    Everything is written to `<output>.partial` and renamed at the end; whatever goes wrong, the
    old output stays as it was.

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
    check_output(output, overwrite)
    partial = output.with_name(output.name + ".partial")
    with _temporary_folder(partial):
        with _space_errors(output):
            model.save_pretrained(partial, max_shard_size=max_shard_size)
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
            report = make_report()
            (partial / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
            (partial / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
            (partial / "README.md").write_text(model_card(recipe, report), encoding="utf-8")
            write_manifest(partial)
            _make_readable(partial)
        require_same_model(model, partial, trust_remote_code)
        _put_in_place(partial, output)
    return report


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _space_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports the system's error as text only.
        full = getattr(error, "errno", None) in _FULL or any(
            f"os error {code}" in str(error) for code in _FULL
        )
        if full:
            raise OutOfSpaceError(f"no space left to write {output}: {error}") from error
        raise SecateurError(f"{output} cannot be written: {error}") from error


def _make_readable(folder: Path) -> None:
    """Give weight files the mode of every other file; safetensors makes them for the owner only."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | (folder.stat().st_mode & 0o444))


def _put_in_place(partial: Path, output: Path) -> None:
    old = output.with_name(output.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    try:
        partial.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
