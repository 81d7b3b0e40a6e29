"""What a search has measured so far, on disk: a killed search goes on where it was.

JSON lines: a header with the fingerprint, then one line a measurement, each written and flushed
whole. A line that a crash cut short is dropped. Numbers are written with all their digits, so that
what is read back is what was measured, to the bit.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.evaluate.tasks import item_requests
from secateur.evaluate.tokenizer import Tokenizer
from secateur.plain import to_plain
from secateur.search.options import SearchOptions
from secateur.search.task import ItemTask, SearchTask
from secateur_kernels.version import __version__

JOURNAL_FILE = "search.journal.jsonl"
_FORMAT = "secateur-search-journal-1"


@dataclass(frozen=True)
class Fingerprint:
    """What a measurement depends on."""

    model: str
    """SHA-256 of names, dtypes, shapes and bytes of all parameters."""
    task: str
    options: dict[str, Any]
    versions: dict[str, str]
    tokens: str = ""
    """SHA-256 of the items as the tokenizer encodes them; blank where a task has its own."""


def fingerprint_of(
    model: nn.Module, tokenizer: Tokenizer, task: SearchTask, options: SearchOptions
) -> Fingerprint:
    """The fingerprint of a search; reads every weight once."""
    return Fingerprint(
        model=_model_digest(model),
        task=f"{task.name}: {task.digest}",
        options=json.loads(json.dumps(to_plain(options))),
        versions={"secateur": __version__, "torch": torch.__version__},
        tokens=_tokens_digest(tokenizer, task) if isinstance(task, ItemTask) else "",
    )


class Journal:
    """Entries by key; in memory alone where it has no file."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._entries: dict[str, Any] = {}

    @classmethod
    def start(cls, path: Path, fingerprint: Fingerprint) -> "Journal":
        """A new file, in the place of an old one.

        Raises:
            SecateurError: the place cannot be written to.
        """
        partial = path.with_name(path.name + ".partial")
        header = {"format": _FORMAT, "fingerprint": to_plain(fingerprint)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(header) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise SecateurError(f"{path} cannot be written: {error}") from error
        return cls(path)

    @classmethod
    def resume(cls, path: Path, fingerprint: Fingerprint) -> "Journal":
        """Go on with a file.

        Raises:
            SecateurError: it is no journal, or that of another model, task or options; says which.
        """
        lines = _whole_lines(path)
        header = _header(lines[0] if lines else b"", path)
        _check_same(header, fingerprint, path)
        journal = cls(path)
        for number, line in enumerate(lines[1:], start=2):
            try:
                entry = json.loads(line)
                journal._entries[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                raise SecateurError(
                    f"{path}, line {number}: expected a measurement, got {line[:80]!r}; start "
                    "again in another folder or with --overwrite"
                ) from None
        return journal

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Any | None:
        """What was noted under a key, as JSON holds it; None if nothing was."""
        return self._entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Note a value that JSON can hold; on disk when this returns.

        Raises:
            SecateurError: it cannot be written.
        """
        self._entries[key] = value
        if self._path is None:
            return
        line = json.dumps({"key": key, "value": value}) + "\n"
        try:
            with self._path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SecateurError(f"{self._path} cannot be written: {error}") from error


def _model_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    # With the buffers, and 2:4 weights in canonical form, whatever order they are packed in.
    for name, parameter in model.state_dict().items():
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}\n".encode())
        flat = parameter.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokens_digest(tokenizer: Tokenizer, task: ItemTask) -> str:
    requests = [item_requests(tokenizer, question.item, None) for question in task.questions]
    return hashlib.sha256(json.dumps(to_plain(requests)).encode()).hexdigest()


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file; what follows the last line feed is cut off, on disk too."""
    try:
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            os.truncate(path, len(whole))
    except OSError as error:
        raise SecateurError(f"{path} cannot be read: {error}") from error
    return whole.splitlines()


def _header(line: bytes, path: Path) -> Mapping[str, Any]:
    try:
        header = json.loads(line)
        if header["format"] == _FORMAT:
            fingerprint: Mapping[str, Any] = header["fingerprint"]
            return fingerprint
    except (ValueError, KeyError, TypeError):
        pass
    raise SecateurError(
        f"expected the journal of a search, but {path} is something else; search in another folder"
    )


def _check_same(old: Mapping[str, Any], new: Fingerprint, path: Path) -> None:
    reasons = []
    if old.get("model") != new.model:
        reasons.append("the model's weights are others")
    if old.get("task") != new.task:
        reasons.append("the task is another")
    elif old.get("tokens") != new.tokens:
        reasons.append("the tokenizer encodes the task otherwise")
    for part in ("options", "versions"):
        before, now = old.get(part) or {}, getattr(new, part)
        reasons += [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
    if reasons:
        raise SecateurError(
            f"expected to go on with the search in {path.parent}, but {'; '.join(reasons)}: "
            "give the old arguments, or start again in another folder or with --overwrite"
        )
