"""What a process is about to run on a GPU, noted in a file, so that the next one knows its end.

A kernel that never ends, or reads where nothing is, takes its process along: a CUDA context that
has failed once fails for ever, and a call that waits for a hung kernel never returns. Whoever
tries many kernels notes each before it runs; the process that follows leaves out what its
predecessor died of, and goes on with the others. One process at a time writes the file.
"""

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

BROKEN = 76
"""Exit status of a process that cannot go on: start it again (EX_PROTOCOL of sysexits.h)."""
_MOST_FRAMES = 8
_LONGEST_VALUE = 160


@dataclasses.dataclass(frozen=True)
class Death:
    """What a process died of."""

    what: str
    blame: str
    """What is to be left out: a kernel, say."""
    why: str
    """Several lines, for what hung: where, and with which values."""

    @property
    def first_line(self) -> str:
        """Why, in short."""
        return self.why.partition("\n")[0]


class BrokenContextError(RuntimeError):
    """The CUDA context of this process has failed and cannot be used any more."""


class Attempts:
    """The file, and how this process goes on with it."""

    def __init__(
        self, path: Path | None, patience: float | None = None, stderr: int = 2, build: str = ""
    ) -> None:
        """Reads what earlier processes died of.

        Args:
            path: of the file; None notes nothing.
            patience: seconds after which an attempt counts as hung: the process then says where it
                is, and ends with `BROKEN`. None waits for ever.
            stderr: file descriptor for that.
            build: of what is tried; what another build died of does not count.
        """
        self._path = path
        self._patience = patience
        self._stderr = stderr
        self._build = build
        self.deaths: tuple[Death, ...] = tuple(_deaths(path, build)) if path else ()

    def died_of(self, blame: str) -> int:
        """How many processes died of it."""
        return sum(death.blame == blame for death in self.deaths)

    @contextmanager
    def trying(self, what: str, blame: str, longer: float = 1.0) -> Iterator[None]:
        """Around one attempt; returning, or raising anything but `BrokenContextError`, ends it.

        Args:
            what: different for each.
            blame: as of `Death`.
            longer: by this factor than others it may take.
        """
        self._note({"trying": what, "blame": blame, "build": self._build})
        watch = self._watch(what, longer)
        try:
            yield
        except BrokenContextError as error:
            self._note({"died": str(error)})
            raise
        except Exception:
            self._note({"done": what})
            raise
        else:
            self._note({"done": what})
        finally:
            if watch:
                watch.cancel()

    def _note(self, line: dict[str, str]) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _watch(self, what: str, longer: float) -> threading.Timer | None:
        if self._patience is None:
            return None
        seconds = longer * self._patience
        arguments = (what, seconds, threading.get_ident())
        timer = threading.Timer(seconds, self._give_up, arguments)
        timer.daemon = True
        timer.start()
        return timer

    def _give_up(self, what: str, seconds: float, thread: int) -> None:
        try:
            where = "\n".join(_where(sys._current_frames().get(thread)))
            why = f"hung: no end after {seconds:.0f} s"
            self._note({"died": f"{why}\n{where}"})
            os.write(self._stderr, f"\n{what} {why}, in\n{where}\n".encode(errors="replace"))
        finally:  # whatever a value's repr raises
            # A kernel that runs for ever lets no orderly end pass.
            os._exit(BROKEN)


def check_usable(device: torch.device) -> None:
    """Wait for a device, and see whether this process can still use it.

    Raises:
        BrokenContextError: it cannot: a kernel failed, or a capture did and left torch's random
            numbers waiting for its end.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
        torch.rand(1, device=device)
    except RuntimeError as error:
        raise BrokenContextError(str(error).strip().partition("\n")[0]) from error


def _deaths(path: Path, build: str) -> Iterator[Death]:
    """Attempts of this build that have no end, or a bad one."""
    if not path.is_file():
        return
    begun: dict[str, str] | None = None
    for line in map(_parsed, path.read_text(encoding="utf-8").splitlines()):
        if begun is not None and begun["build"] == build and "done" not in line:
            why = line.get("died", "the process ended in the middle of it")
            yield Death(begun["trying"], begun["blame"], why)
        begun = line if "trying" in line else None
    if begun is not None and begun["build"] == build:
        yield Death(begun["trying"], begun["blame"], "the process ended in the middle of it")


def _parsed(line: str) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(line)
    except ValueError:  # cut when the process was killed
        return {}
    return found


def _where(frame: FrameType | None) -> list[str]:
    """The innermost frames outside of installed packages, each with its plain values."""
    lines: list[str] = []
    while frame is not None and len(lines) < _MOST_FRAMES:
        name = frame.f_code.co_filename
        if "site-packages" not in name and "dist-packages" not in name and "<" not in name:
            values = ", ".join(_values(dict(frame.f_locals)))
            lines.append(f"  {Path(name).name}:{frame.f_lineno} {frame.f_code.co_name} {values}")
        frame = frame.f_back
    return lines


def _values(variables: dict[str, Any]) -> Iterator[str]:
    for name, value in variables.items():
        if isinstance(value, Tensor):
            # Its values are on the device, which does not answer.
            yield f"{name}={value.dtype}{list(value.shape)}"
        elif isinstance(value, (bool, int, float, str, tuple)) or dataclasses.is_dataclass(value):
            text = "" if _holds_tensors(value) else repr(value)
            if 0 < len(text) <= _LONGEST_VALUE:
                yield f"{name}={text}"


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_holds_tensors(part) for part in value)
    if dataclasses.is_dataclass(value):
        fields = (getattr(value, field.name, None) for field in dataclasses.fields(value))
        return any(_holds_tensors(part) for part in fields)
    return isinstance(value, (Tensor, dict, list))
