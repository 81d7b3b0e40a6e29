"""Windows on disk: token ids as uint16 or uint32, masks as bits, and a page that describes them."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from secateur.errors import SecateurError
from secateur.plain import from_plain, to_plain
from secateur.training.data.blocks import Tally, WindowBlock

FORMAT_VERSION = 1
"""Changed whenever the same text would be stored otherwise than before."""

TOKENS_FILE = "tokens.bin"
LOSS_FILE = "loss.bin"
STARTS_FILE = "starts.bin"
DESCRIPTION_FILE = "windows.json"

_BYTES_AT_ONCE = 1 << 22


@dataclass(frozen=True, kw_only=True)
class StoredWindows:
    """What lies in a folder of windows."""

    format_version: int
    token_type: Literal["uint16", "uint32"]
    max_seq_length: int
    num_windows: int
    has_examples: bool
    """Whether there are masks: where loss is taken, where examples begin."""
    is_packed: bool
    """Whether a window may hold several examples."""
    num_documents: int
    num_tokens: int
    num_loss_tokens: int
    num_cut: int
    num_dropped: int
    largest_token: int
    sha256: str
    """Of the files one after another."""

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, int]]]:
        """Type and shape of each file, little endian, row after row."""
        tokens = (
            "<u2" if self.token_type == "uint16" else "<u4",
            (self.num_windows, self.max_seq_length),
        )
        bits = ("|u1", (self.num_windows, -(-self.max_seq_length // 8)))
        masks = {LOSS_FILE: bits, STARTS_FILE: bits}
        return {TOKENS_FILE: tokens, **(masks if self.has_examples else {})}


def write_windows(
    folder: Path,
    blocks: Iterable[WindowBlock],
    tally: Tally,
    max_seq_length: int,
    token_type: type[np.unsignedinteger[Any]],
    has_examples: bool,
    is_packed: bool,
) -> StoredWindows:
    """Write windows as they come.

    Args:
        folder: an empty one.
        blocks: windows of `max_seq_length` tokens, with masks if `has_examples`.
        tally: what is counted while `blocks` are made.
        max_seq_length: tokens in a window.
        token_type: np.uint16 or np.uint32.
        has_examples: whether masks are kept.
        is_packed: whether a window may hold several examples.

    Raises:
        SecateurError: a token id does not fit into `token_type`.
    """
    names = [TOKENS_FILE, *([LOSS_FILE, STARTS_FILE] if has_examples else [])]
    num_windows = num_loss_tokens = largest = 0
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in names]
        for block in blocks:
            num_windows += len(block.tokens)
            num_loss_tokens += int(block.tokens.size if block.loss is None else block.loss.sum())
            largest = max(largest, int(block.tokens.max(initial=0)))
            if largest > np.iinfo(token_type).max:
                raise SecateurError(
                    f"the tokenizer gives the token id {largest}, but its vocabulary ends below it"
                )
            for file, array in zip(files, _stored_arrays(block, token_type), strict=False):
                file.write(array.tobytes())
        for file in files:
            # On disk before it is described: a machine that loses power then leaves no description.
            file.flush()
            os.fsync(file.fileno())
    stored = StoredWindows(
        format_version=FORMAT_VERSION,
        token_type="uint16" if token_type is np.uint16 else "uint32",
        max_seq_length=max_seq_length,
        num_windows=num_windows,
        has_examples=has_examples,
        is_packed=is_packed,
        num_documents=tally.num_documents,
        num_tokens=tally.num_tokens,
        num_loss_tokens=num_loss_tokens,
        num_cut=tally.num_cut,
        num_dropped=tally.num_dropped,
        largest_token=largest,
        sha256=_digest(folder, names),
    )
    page = json.dumps(to_plain(stored), indent=2) + "\n"
    (folder / DESCRIPTION_FILE).write_text(page, encoding="utf-8")
    return stored


def read_stored(folder: Path) -> StoredWindows | None:
    """The description of a folder, or None where it is not whole: missing, cut off, or altered.

    Files that were last written before their description are not read again: a corpus of many GB
    would take as many seconds at every start.
    """
    try:
        page = (folder / DESCRIPTION_FILE).read_text(encoding="utf-8")
        stored = from_plain(StoredWindows, json.loads(page))
        if stored.format_version != FORMAT_VERSION or not _has_sizes(folder, stored):
            return None
        is_whole = _is_untouched(folder, stored) or _digest(folder, stored.arrays) == stored.sha256
        return stored if is_whole else None
    except (OSError, ValueError, SecateurError):
        return None


def _stored_arrays(
    block: WindowBlock, token_type: type[np.unsignedinteger[Any]]
) -> list[np.ndarray[Any, Any]]:
    little = np.dtype(token_type).newbyteorder("<")
    masks = [np.packbits(mask, axis=1) for mask in (block.loss, block.starts) if mask is not None]
    return [block.tokens.astype(little), *masks]


def _has_sizes(folder: Path, stored: StoredWindows) -> bool:
    return all(
        (folder / name).stat().st_size == np.dtype(kind).itemsize * shape[0] * shape[1]
        for name, (kind, shape) in stored.arrays.items()
    )


def _is_untouched(folder: Path, stored: StoredWindows) -> bool:
    """Whether nobody wrote to the files after they were described, going by their times."""
    described = (folder / DESCRIPTION_FILE).stat().st_mtime_ns
    return all((folder / name).stat().st_mtime_ns < described for name in stored.arrays)


def _digest(folder: Path, names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            while piece := file.read(_BYTES_AT_ONCE):
                digest.update(piece)
    return digest.hexdigest()
