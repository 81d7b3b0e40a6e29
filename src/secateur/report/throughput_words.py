"""What a run of the benchmark found: rows of a table, and sentences."""

from collections.abc import Sequence
from typing import NamedTuple

from secateur.report.lists import MISSING
from secateur.report.numbers import format_bytes, format_number, format_ratio, printable
from secateur.report.throughput_record import (
    Spread,
    ThroughputMeasurement,
    ThroughputModel,
    ThroughputRecord,
)

REFERENCE = "reference, no speed-up claimed"
"""Said of 2:4 models wherever no kernel for 2:4 runs."""


class Row(NamedTuple):
    """One measurement as the cells of a table."""

    model: str
    runner: str
    batch: str
    prompt: str
    first_token: str
    per_token: str
    decode: str
    prefill: str
    decode_ratio: str
    prefill_ratio: str
    floor: str
    memory: str


HEADER = Row(
    *("Model", "Run by", "Batch", "Prompt", "TTFT p50 / p99", "TPOT p50 / p99", "Decode tokens/s"),
    *("Prefill tokens/s", "Decode", "Prefill", "Of floor", "Peak memory"),
)


def format_milliseconds(seconds: float) -> str:
    """`12.3 ms`: three figures and more, for tokens."""
    return f"{format_number(1e3 * seconds, 2 if seconds < 0.01 else 1)} ms"


def format_spread(spread: Spread | None) -> str:
    """`2.91 / 3.40 ms`, the median and the 99th percentile."""
    if spread is None:
        return MISSING
    first, last = format_milliseconds(spread.p50), format_milliseconds(spread.p99)
    return f"{first.removesuffix(' ms')} / {last}"


def decode_speedup(record: ThroughputRecord, one: ThroughputMeasurement) -> float | None:
    """Median time of a token against the baseline's, above 1 is faster."""
    base = record.baseline_of(one)
    ours = one.time_per_output_token
    theirs = base.time_per_output_token if base is not None else None
    return None if ours is None or theirs is None else theirs.p50 / ours.p50


def prefill_speedup(record: ThroughputRecord, one: ThroughputMeasurement) -> float | None:
    """Prefill speed against the baseline's, above 1 is faster."""
    base = record.baseline_of(one)
    return None if base is None else one.prefill_tokens_per_second / base.prefill_tokens_per_second


def times_of_floor(record: ThroughputRecord, one: ThroughputMeasurement) -> float | None:
    """Median time of a token against the time that streaming the weights takes."""
    spread = one.time_per_output_token
    return None if spread is None else spread.p50 / record.floor(one.model)


def is_claimed(record: ThroughputRecord, one: ThroughputMeasurement) -> bool:
    """Whether the measurement may be called a speed-up or its lack."""
    return not record.model(one.model).is_reference


def rows(record: ThroughputRecord) -> list[Row]:
    """The measurements as text, in their order."""
    return [_row(record, one) for one in record.measurements]


def _row(record: ThroughputRecord, one: ThroughputMeasurement) -> Row:
    is_baseline = one.model == record.baseline
    claimed = is_claimed(record, one)
    ratios = [decode_speedup(record, one), prefill_speedup(record, one)]
    shown = [
        MISSING if is_baseline else format_ratio(ratio) if claimed else "reference"
        for ratio in ratios
    ]
    decode = one.decode_tokens_per_second
    memory = one.peak_memory_bytes
    return Row(
        model=printable(one.model),
        runner=one.runner,
        batch=str(one.batch_size),
        prompt=str(one.prompt_length),
        first_token=format_spread(one.time_to_first_token),
        per_token=format_spread(one.time_per_output_token),
        decode=MISSING if decode is None else format_number(decode, 0),
        prefill=format_number(one.prefill_tokens_per_second, 0),
        decode_ratio=shown[0],
        prefill_ratio=shown[1],
        floor=format_ratio(times_of_floor(record, one)),
        memory=MISSING if memory is None else format_bytes(memory),
    )


def model_note(model: ThroughputModel) -> str:
    """What must be said of a model, or nothing."""
    return REFERENCE if model.is_reference else ""


def headline(record: ThroughputRecord) -> str:
    """The fastest model at decoding against the baseline, in one sentence."""
    compared = _decode_speedups(record)
    base = printable(record.baseline)
    if len(record.models) == 1:
        return f"{base}, measured on {_device(record)}; give more models to compare it with."
    if not compared:
        return f"Measured on {_device(record)}, beside {base}: no decoding that could be compared."
    one, ratio = max(compared, key=lambda pair: pair[1])
    if ratio <= 1:
        return f"Measured on {_device(record)}, beside {base}: no other model decodes faster."
    return (
        f"{printable(one.model)} decodes {format_ratio(ratio)} as fast as {base} at batch "
        f"{one.batch_size} after {one.prompt_length} tokens, on {_device(record)}."
    )


def _decode_speedups(record: ThroughputRecord) -> list[tuple[ThroughputMeasurement, float]]:
    """Of all models but the baseline for which they may be claimed, where they were measured."""
    return [
        (one, ratio)
        for one in record.measurements
        if one.model != record.baseline
        and is_claimed(record, one)
        and (ratio := decode_speedup(record, one)) is not None
    ]


def _device(record: ThroughputRecord) -> str:
    machine = record.machine
    if machine.get("device", "cpu") != "cpu":
        return printable(machine["device"])
    threads = machine.get("threads", "?")
    noun = "thread" if threads == "1" else "threads"
    return f"{printable(machine.get('processor', 'a CPU'))}, {threads} {noun}"


def findings(record: ThroughputRecord) -> list[str]:
    """Every other model against the baseline, a sentence each."""
    return [_finding(record, model) for model in record.models if model.name != record.baseline]


def _finding(record: ThroughputRecord, model: ThroughputModel) -> str:
    base = record.model(record.baseline)
    part = model.weight_bytes / base.weight_bytes
    start = f"{printable(model.name)}: {part:.0%} of the baseline's bytes"
    if model.is_reference:
        return f"{start}; {REFERENCE}."
    own = [one for one in record.measurements if one.model == model.name]
    decode = _range([decode_speedup(record, one) for one in own])
    prefill = _range([prefill_speedup(record, one) for one in own])
    return f"{start}; decode {decode}, prefill {prefill} of the baseline's speed."


def _range(ratios: Sequence[float | None]) -> str:
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return "not measured"
    low, high = format_ratio(min(known)), format_ratio(max(known))
    return low if low == high else f"{low} to {high}"


def cautions(record: ThroughputRecord) -> list[str]:
    """What a reader should know before quoting a figure."""
    said = list(record.notes)
    references = [printable(model.name) for model in record.models if model.is_reference]
    if references:
        said.append(
            f"{', '.join(references)}: {REFERENCE}. 2:4 layers run in plain torch here, which "
            "shows that they are right, not that they are fast."
        )
    small = [one for one in record.measurements if (times_of_floor(record, one) or 2) < 1]
    if small:
        said.append(
            "Some models decode faster than memory can be read: their weights stay in the cache "
            "of the processor, where the floor does not hold."
        )
    return said
