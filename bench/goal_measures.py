"""What `bench.goals` takes from the records of kernel benchmarks: figures, and how complete."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.kernel_records import read_records
from bench.kernel_summary import (
    DEVICE,
    Record,
    Size,
    error_ratios,
    latest,
    of_models,
    ratio,
)
from bench.linear_operands import LOW_RANK, SPARSE
from bench.linear_timing import MODES
from bench.linears import CHAIN_TOKENS
from bench.shapes import LARGEST_FOUR, SEVEN, SMALL, TOKENS

DRAWN_SHAPES = 20
_PACKED: Size = (14336, 4096)
_PACKING_WORK = "Wanda 2:4, score to packed"
_PREFILL = 128


@dataclass(frozen=True)
class Records:
    """The latest record of each case, and whose times count as ours."""

    linears: Sequence[Record]
    packing: Sequence[Record]
    kind: str = "ours auto"
    """How the names of candidates begin, of which the fastest counts."""
    device: str = DEVICE

    def ours(self, record: Record) -> float | None:
        """Microseconds of ours."""
        times = [us for name, us in record["microseconds"].items() if name.startswith(self.kind)]
        return min(times, default=None)


@dataclass(frozen=True)
class Found:
    """A figure, the case that decided it, and how many of the cases were measured."""

    value: float
    where: str = ""
    cases: int = 1
    of: int = 1


Measure = Callable[[Records], Found | None]
Case = tuple[float, str]
"""A figure and what it is of."""


def read_all(folder: Path, kind: str = "ours auto", device: str = DEVICE) -> Records:
    """The latest records of a device in a folder."""
    names = ("linears", "packing")
    linears, packing = (latest(read_records(name, folder), device) for name in names)
    return Records([r for r in linears if r.get("dtype") == "bfloat16"], packing, kind, device)


def mean_speed_up(mode: str, m: int) -> Measure:
    """The geometric mean over the seven shapes; nothing unless all were measured."""
    return lambda records: _mean(_speed_ups(records, mode, m))


def speed_up_of_each(mode: str, m: int) -> Measure:
    """The least over the seven shapes."""
    return lambda records: _least(_speed_ups(records, mode, m), len(SEVEN))


def time_of_eight_tokens(mode: str) -> Measure:
    """The most that eight tokens take over one, of the seven shapes."""

    def measure(records: Records) -> Found | None:
        times = {
            (tuple(r["shape"]), r["tokens"]): records.ours(r)
            for r in of_models(records.linears, SPARSE, mode)
        }
        pairs = [(size, times.get((size, 8)), times.get((size, 1))) for size in SEVEN]
        cases = [(-eight / one, _shape(size)) for size, eight, one in pairs if eight and one]
        found = _least(cases, len(SEVEN))
        return found and Found(-found.value, found.where, found.cases, found.of)

    return measure


def ceiling_shares(mode: str) -> Measure:
    """The least share of the read ceiling at one token, of the four largest shapes."""
    return lambda records: _least(_shares(records, mode), len(LARGEST_FOUR))


def ceiling_shares_mean(mode: str) -> Measure:
    """The mean of those shares; nothing unless all were measured."""

    def measure(records: Records) -> Found | None:
        shares = [value for value, _ in _shares(records, mode)]
        complete = len(shares) == len(LARGEST_FOUR)
        return Found(sum(shares) / len(shares)) if complete else None

    return measure


def versus_cusparselt(m: int) -> Measure:
    """The least of the best time of cuSPARSELt in the same run over ours, of the seven shapes."""

    def measure(records: Records) -> Found | None:
        cases = []
        for record in _seven(records, "isolated", m):
            theirs = _fastest(record, "cusparselt")
            ours = records.ours(record)
            if theirs and ours:
                cases.append((theirs / ours, _shape(record["shape"])))
        return _least(cases, len(SEVEN))

    return measure


def floor_of_dense(drawn: bool) -> Measure:
    """The least speed-up of any number of tokens: of the seven shapes and a small one, or of drawn
    shapes."""

    def measure(records: Records) -> Found | None:
        sizes = {*SEVEN, SMALL}
        cases = []
        for record in records.linears:
            right = record.get("seed") is not None if drawn else _is_model(record, sizes)
            value = ratio(record, records.kind) if right and record["op"] == SPARSE else None
            if value is not None:
                case = f"{_shape(record['shape'])}, M = {record['tokens']}, {record['mode']}"
                cases.append((value, case))
        return _least(cases, DRAWN_SHAPES if drawn else len(sizes) * _cases_a_shape())

    return measure


def decode_against_two_products(m: int) -> Measure:
    """The geometric mean over the seven shapes of two cuBLAS products over ours, in a chain."""

    def measure(records: Records) -> Found | None:
        chosen = [r for r in of_models(records.linears, LOW_RANK, "chain") if r["tokens"] == m]
        return _mean(_against_two_products(records, chosen))

    return measure


def low_rank_floor(records: Records) -> Found | None:
    """The least of two cuBLAS products over ours, any shape of the seven, tokens and mode."""
    chosen = [r for mode in MODES for r in of_models(records.linears, LOW_RANK, mode)]
    return _least(_against_two_products(records, chosen), len(SEVEN) * _cases_a_shape())


def prefill_against_two_products(records: Records) -> Found | None:
    """The geometric mean of two cuBLAS products over ours from 128 tokens on."""
    isolated = of_models(records.linears, LOW_RANK, "isolated")
    cases = _against_two_products(records, [r for r in isolated if r["tokens"] >= _PREFILL])
    return _mean(cases, len(SEVEN) * sum(m >= _PREFILL for m in TOKENS))


def packing_share(records: Records) -> Found | None:
    """Of the copy ceiling, scoring, selecting and packing a weight in one pass."""
    record = _packing(records)
    if record is None:
        return None
    return Found(record["bytes"] / record["microseconds"] * 1e6 / record["copy_ceiling"])


def packing_times_published(records: Records) -> Found | None:
    """How many times as fast as the published loop over groups of four."""
    record = _packing(records)
    if record is None or "published_ms" not in record:
        return None
    return Found(1e3 * record["published_ms"] / record["microseconds"])


def errors(records: Records) -> Found | None:
    """The largest error over that of torch's own products, both against float64."""
    found = error_ratios(records.linears)
    if not found:
        return None
    value, record = found[0]
    where = f"{record['op']}, {_shape(record['shape'])}, M = {record['tokens']}"
    return Found(value, where, len(found), len(records.linears))


def _packing(records: Records) -> Record | None:
    wanted = (list(_PACKED), _PACKING_WORK)
    found = [r for r in records.packing if (list(r["shape"]), r["work"]) == wanted]
    return found[-1] if found else None


def _seven(records: Records, mode: str, m: int) -> list[Record]:
    found = of_models(records.linears, SPARSE, mode)
    return [r for r in found if r["tokens"] == m and tuple(r["shape"]) in SEVEN]


def _speed_ups(records: Records, mode: str, m: int) -> list[Case]:
    found = [(ratio(r, records.kind), _shape(r["shape"])) for r in _seven(records, mode, m)]
    return [(value, where) for value, where in found if value is not None]


def _shares(records: Records, mode: str) -> list[Case]:
    cases = []
    for record in _seven(records, mode, 1):
        ours = records.ours(record)
        if tuple(record["shape"]) in LARGEST_FOUR and ours:
            share = record["weight_bytes"] / ours * 1e6 / record["read_ceiling"]
            cases.append((share, _shape(record["shape"])))
    return cases


def _against_two_products(records: Records, chosen: Iterable[Record]) -> list[Case]:
    cases = []
    for record in chosen:
        theirs, ours = _fastest(record, "two products"), records.ours(record)
        if theirs and ours and tuple(record["shape"]) in SEVEN:
            where = f"{_shape(record['shape'])}, M = {record['tokens']}, {record['mode']}"
            cases.append((theirs / ours, where))
    return cases


def _fastest(record: Record, kind: str) -> float | None:
    times = [us for name, us in record["microseconds"].items() if name.startswith(kind)]
    return min(times, default=None)


def _is_model(record: Record, sizes: set[Size]) -> bool:
    return record.get("seed") is None and tuple(record["shape"]) in sizes


def _cases_a_shape() -> int:
    return len(TOKENS) + sum(m <= CHAIN_TOKENS for m in TOKENS)


def _shape(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _mean(cases: Sequence[Case], of: int = len(SEVEN)) -> Found | None:
    if len(cases) != of:
        return None
    return Found(math.exp(sum(math.log(value) for value, _ in cases) / of))


def _least(cases: Sequence[Case], of: int) -> Found | None:
    if not cases:
        return None
    value, where = min(cases)
    return Found(value, where, len(cases), of)
