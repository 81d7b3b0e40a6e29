"""Throughput as pictures: time of a token against its floor, and speed of prefill."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes

from secateur.report import plots, throughput_words
from secateur.report.lists import MISSING
from secateur.report.numbers import format_number, printable
from secateur.report.throughput_record import ThroughputMeasurement, ThroughputRecord

_COLOURS = {
    "dense": plots.FAMILY_COLOURS["dense"],
    "2:4": plots.FAMILY_COLOURS["sparsegpt"],
    "low-rank": plots.FAMILY_COLOURS["svd-whitened"],
    "depth": plots.FAMILY_COLOURS["depth"],
}
_MIXED = plots.FAMILY_COLOURS["sparse-plus-low-rank"]
_LONGEST = 34

Value = Callable[[ThroughputMeasurement], float | None]


def decode_svg(record: ThroughputRecord) -> str:
    """Median milliseconds a token, a panel a workload; a tick marks each model's floor."""

    def milliseconds(one: ThroughputMeasurement) -> float | None:
        spread = one.time_per_output_token
        return None if spread is None else 1e3 * spread.p50

    def floor(one: ThroughputMeasurement) -> float:
        return 1e3 * record.floor(one.model)

    return _panels(record, milliseconds, "Milliseconds a token (lower is better)", floor)


def prefill_svg(record: ThroughputRecord) -> str:
    """Prompt tokens a second, a panel a workload."""

    def speed(one: ThroughputMeasurement) -> float | None:
        return one.prefill_tokens_per_second

    return _panels(record, speed, "Prompt tokens a second (higher is better)")


def _panels(
    record: ThroughputRecord,
    value: Value,
    label: str,
    floor: Callable[[ThroughputMeasurement], float] | None = None,
) -> str:
    groups = _workloads(record.measurements)
    height = 0.9 + sum(0.65 + 0.3 * len(group) for group in groups.values())
    with plots.drawing(height) as figure:
        ratios = [0.65 + 0.3 * len(group) for group in groups.values()]
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, (title, group) in zip(panels, groups.items(), strict=True):
            axes.set_title(title, fontsize=9, weight="bold")
            _bars(axes, record, group, value, floor)
        panels[-1].set_xlabel(label)
        return plots.as_svg(figure, f"{label}: {_alt(groups, value)}.")


def _workloads(
    measurements: Sequence[ThroughputMeasurement],
) -> dict[str, list[ThroughputMeasurement]]:
    groups: dict[str, list[ThroughputMeasurement]] = {}
    for one in measurements:
        title = f"Batch {one.batch_size}, prompts of {one.prompt_length} tokens"
        groups.setdefault(title, []).append(one)
    return groups


def _bars(
    axes: Axes,
    record: ThroughputRecord,
    group: Sequence[ThroughputMeasurement],
    value: Value,
    floor: Callable[[ThroughputMeasurement], float] | None,
) -> None:
    values = [value(one) for one in group]
    for place, (one, length) in enumerate(zip(group, values, strict=True)):
        claimed = throughput_words.is_claimed(record, one)
        colour = _colour(record.model(one.model).form)
        looks: dict[str, Any] = {"color": colour, "height": 0.68}
        if not claimed:
            looks |= {"color": plots.PAPER, "edgecolor": colour, "hatch": "///"}
        axes.barh(place, length or 0.0, **looks)
        text = (MISSING if length is None else _figure(length)) + (
            "" if claimed else " (reference)"
        )
        plots.note_at(axes, text, (length or 0.0, place), (4, 0), ha="left", va="center")
        if floor is not None:
            axes.plot(
                [floor(one)] * 2, [place - 0.42, place + 0.42], color=plots.INK, linewidth=1.4
            )
    axes.set_yticks(range(len(group)), [_label(one) for one in group])
    axes.set_ylim(len(group) - 0.45, -0.55)
    longest = max([length or 0.0 for length in values], default=0.0)
    axes.set_xlim(0, 1.18 * longest if longest > 0 else 1.0)
    axes.grid(axis="x")


def _colour(form: str) -> str:
    return _COLOURS.get(form, _MIXED)


def _label(one: ThroughputMeasurement) -> str:
    name = printable(one.model)
    name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    return name if one.runner == "engine" else f"{name}, {one.runner}"


def _figure(value: float) -> str:
    return format_number(value, 2 if value < 100 else 0)


def _alt(groups: dict[str, list[ThroughputMeasurement]], value: Value) -> str:
    parts = []
    for title, group in groups.items():
        shown = (
            f"{_label(one)} {MISSING if (v := value(one)) is None else _figure(v)}" for one in group
        )
        parts.append(f"{title}: {', '.join(shown)}")
    return "; ".join(parts)
