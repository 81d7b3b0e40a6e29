"""Measured times: what ships with the package and what `secateur tune` adds on a machine."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from secateur_kernels.dispatch.candidates import config_from
from secateur_kernels.dispatch.problem import DeviceFacts, Problem
from secateur_kernels.errors import SecateurError
from secateur_kernels.precision import dtype_name
from secateur_kernels.version import __version__

FORMAT = 1
SHIPPED = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Measurement:
    """The time of one candidate."""

    backend: str
    config: Mapping[str, int | str] | None
    """Fields of the backend's config; None where it has none."""
    microseconds: float


@dataclass(frozen=True)
class Entry:
    """The candidates of one problem, timed in turns in one run: all but those left out."""

    op: str
    m: int
    n: int
    k: int
    rank: int
    groups: int
    dtype: str
    measurements: tuple[Measurement, ...]
    left_out: tuple[str, ...] = ()
    """Backends that could serve the problem and were not asked for: without times."""

    @classmethod
    def of(
        cls,
        problem: Problem,
        measurements: Iterable[Measurement],
        left_out: Iterable[str] = (),
    ) -> "Entry":
        """For a problem that was measured."""
        dtype = dtype_name(problem.dtype)
        return cls(
            problem.op,
            problem.m,
            problem.n,
            problem.k,
            problem.rank,
            problem.groups,
            dtype,
            tuple(measurements),
            tuple(left_out),
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """Everything but the times."""
        return (self.op, self.m, self.n, self.k, self.rank, self.groups, self.dtype)

    def completed(self, older: "Entry | None") -> "Entry":
        """With an older run's times of what was left out here.

        Times of two runs do not compare: those of dense, which is in every run, bring the older
        ones to scale. Without them an older run is of no use.
        """
        ours, theirs = _dense_time(self), _dense_time(older) if older else None
        if older is None or ours is None or theirs is None:
            return self
        missing = [m for m in older.measurements if m.backend in self.left_out]
        scaled = [replace(m, microseconds=m.microseconds * ours / theirs) for m in missing]
        found = {m.backend for m in missing}
        return replace(
            self,
            measurements=(*self.measurements, *scaled),
            left_out=tuple(name for name in self.left_out if name not in found),
        )


def _dense_time(entry: Entry) -> float | None:
    times = [m.microseconds for m in entry.measurements if m.backend == "dense"]
    return min(times, default=None)


@dataclass(frozen=True)
class Table:
    """What was measured on one kind of device."""

    device: str
    capability: tuple[int, int]
    versions: Mapping[str, str]
    """torch, triton, driver and package, for people who read the file."""
    entries: tuple[Entry, ...] = ()

    def with_entries(self, entries: Iterable[Entry]) -> "Table":
        """The same device with these entries."""
        return replace(self, entries=tuple(entries))

    def merged(self, newer: "Table") -> "Table":
        """Entries of both; the newer ones win, completed with older times of what they left out.

        Raises:
            SecateurError: the tables are of different devices.
        """
        if newer.device != self.device:
            raise SecateurError(f"expected a table of {self.device}, got one of {newer.device}")
        older = {entry.key: entry for entry in self.entries}
        completed = {e.key: e.completed(older.get(e.key)) for e in newer.entries}
        entries = older | completed
        return replace(newer, entries=tuple(entries.values()))

    def save(self, path: Path) -> None:
        """Write as JSON, aside and renamed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        aside.write_text(text + "\n", encoding="utf-8")
        aside.replace(path)


def load_table(path: Path) -> Table:
    """Read a table.

    Raises:
        SecateurError: the file is not such a table, or holds configs that no kernel has; says what
            is wrong.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.pop("format") != FORMAT:
            raise SecateurError(f"{path} has another format than {FORMAT}; run secateur tune again")
        entries = tuple(_entry(entry) for entry in raw.pop("entries"))
        capability, versions = tuple(raw.pop("capability")), dict(raw.pop("versions"))
        table = Table(capability=capability, versions=versions, entries=entries, **raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SecateurError(
            f"{path} is not a table of measured times ({type(error).__name__}: {error}); "
            "delete it or run secateur tune again"
        ) from error
    _check_configs(path, table)
    return table


def table_of_this_version(path: Path) -> tuple[Table | None, str]:
    """The table in a file, if this version of the package measured it.

    The kernels of another version may have other configs, and take another time with the same.

    Returns:
        the table, or None and why it is of no use: nothing where there is no file.
    """
    try:
        if not path.is_file():
            return None, ""
        table = load_table(path)
    except (SecateurError, OSError) as error:
        return None, str(error)
    by = table.versions.get("secateur", "of an unknown version")
    if by != __version__:
        return None, f"{path} is by secateur {by}, this is {__version__}; run secateur tune again"
    return table, ""


def _check_configs(path: Path, table: Table) -> None:
    for entry in table.entries:
        for measurement in entry.measurements:
            try:
                config_from(entry.op, measurement.backend, measurement.config)
            except SecateurError as error:
                raise SecateurError(
                    f"{path} is not of this version: {error}; run secateur tune again"
                ) from error


def _entry(raw: dict[str, Any]) -> Entry:
    measurements = tuple(Measurement(**measurement) for measurement in raw.pop("measurements"))
    left_out = tuple(raw.pop("left_out", ()))
    return Entry(measurements=measurements, left_out=left_out, **raw)


def table_path(folder: Path, device: DeviceFacts) -> Path:
    """Where a folder keeps the table of a device."""
    return folder / f"times-{device.slug}.json"


def tables_in(folder: Path) -> list[Path]:
    """The tables of all devices in a folder."""
    return sorted(folder.glob("times-*.json"))
