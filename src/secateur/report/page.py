"""Reports and comparisons as one HTML page each, with the findings in words.

The page needs nothing but itself: style and pictures are inline and there are no scripts. All
text from outside (names, prompts, what the models wrote) passes the template's escaping.
"""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import yaml
from jinja2 import Template
from markupsafe import Markup

from secateur.report import depth_plots, drop_words, factor_words, plots, table
from secateur.report.comparison import Comparison, Variant
from secateur.report.notes import comparison_notes
from secateur.report.record import (
    AnyStage,
    CalibrationRecord,
    DropRecord,
    FactorRecord,
    PruneRecord,
    Report,
)
from secateur.report.routing_words import routing_rows
from secateur.report.template import page_template, picture
from secateur.report.training_plots import inherit_svg, recover_svg
from secateur.report.training_record import InheritRecord, RecoverRecord
from secateur.report.training_words import training_facts, training_title, training_words
from secateur.report.tuning_plots import tuning_svg

_PUBLISHED_ORDER = {"sparsegpt": "SparseGPT", "wanda": "Wanda", "magnitude": "magnitude"}
_PRUNES_BY = {"wanda++": "RGS", "best-2:4": "ADMM"}
"""What these do before the regional optimizer."""
_SAME_SIZE = 1e-3  # Two files of as many weights differ by a few bytes of header.
_ZEROS_ALONE = (
    "Zeros in a dense file bring neither size nor speed by themselves; packed weights and kernels "
    "that skip the zeros do."
)


def render_comparison(comparison: Comparison) -> str:
    """The comparison as one HTML page; equal comparisons give equal pages.

    Raises:
        SecateurError: the comparison does not begin with a dense variant.
    """
    variants, dense = comparison.variants, table.dense_variant(comparison)
    return _template().render(
        kind="comparison",
        record=comparison,
        dense=dense,
        title=comparison.title,
        headline=headline(comparison),
        findings=findings(comparison),
        cautions=cautions(comparison),
        header=table.HEADER,
        rows=list(zip(variants, table.comparison_rows(comparison), strict=True)),
        best=[min(g, key=_rank) for g in _by_setting(comparison).values() if len(g) > 1],
        perplexity_picture=picture(plots.perplexity_svg(variants)) if variants[1:] else None,
        size_picture=picture(plots.size_svg(variants)),
        influence_picture=_influence_picture(comparison.block_influence, _dropped(variants)),
        samples=_samples(variants),
        calibrations=_calibrations(variants),
        views=[(v, _report_view(v.report)) for v in variants if v.report is not None],
    )


def render_report(report: Report) -> str:
    """The report as one HTML page; equal reports give equal pages."""
    return _template().render(
        kind="report",
        record=report,
        title=f"{_verb(report)} {report.model.source}",
        headline=report_headline(report),
        findings=_report_findings(report),
        cautions=table.report_notes(report),
        calibrations=[report.calibration] if report.calibration else [],
        views=[(None, _report_view(report))],
    )


def _verb(report: Report) -> str:
    only_trained = all(isinstance(stage, RecoverRecord) for stage in report.stages)
    return "Recovering" if report.stages and only_trained else "Compressing"


def headline(comparison: Comparison) -> str:
    """The main finding in a sentence: what kept quality best at 2:4, or where most compete."""
    groups, dense = _by_setting(comparison), table.dense_variant(comparison)
    if not groups:
        quality = dense.quality
        shown = table.format_perplexity(quality.perplexity, quality.standard_error)
        return f"Only the dense model was measured: perplexity {shown}."
    setting = "2:4" if "2:4" in groups else max(groups, key=lambda key: len(groups[key]))
    return _best_sentence(setting, groups[setting], dense)


def _best_sentence(setting: str, group: Sequence[Variant], dense: Variant) -> str:
    best, *others = sorted(group, key=_rank)
    value, base = best.quality.perplexity, dense.quality.perplexity
    if not math.isfinite(value):
        return f"At {setting}, nothing measured here has a finite perplexity."
    against = f"{table.format_number(value)} against {table.format_number(base)} dense"
    shown = f"perplexity {against} ({table.format_change(value, base)})"
    if not others or not math.isfinite(others[0].quality.perplexity):
        return f"At {setting}, {table.short_name(best)} has {shown}."
    gap = f"{table.format_number(others[0].quality.perplexity - value)} below"
    sentence = f"kept quality best: {shown}, {gap} {table.short_name(others[0])}"
    if _told_apart(best, others[0]):
        return f"At {setting}, {table.short_name(best)} {sentence}."
    return (
        f"At {setting}, {table.short_name(best)} {sentence}, a gap within the standard errors of "
        "both figures (secateur evaluate --baseline compares window by window)."
    )


def _told_apart(one: Variant, other: Variant) -> bool:
    error = math.hypot(one.quality.standard_error, other.quality.standard_error)
    return abs(one.quality.perplexity - other.quality.perplexity) > error


def _rank(variant: Variant) -> float:
    value = variant.quality.perplexity
    return math.inf if math.isnan(value) else value


def _by_setting(comparison: Comparison) -> dict[str, list[Variant]]:
    groups: dict[str, list[Variant]] = {}
    for variant in comparison.variants:
        if variant.family != "dense":
            groups.setdefault(variant.setting, []).append(variant)
    return groups


def findings(comparison: Comparison) -> list[str]:
    """What else the data says, a sentence each: other settings, order, size and speed."""
    groups, dense = _by_setting(comparison), table.dense_variant(comparison)
    main = headline(comparison)
    competing = [(setting, group) for setting, group in groups.items() if len(group) > 1]
    others = [_best_sentence(setting, group, dense) for setting, group in competing]
    sentences = [sentence for sentence in others if sentence != main]
    return [*sentences, *published_order(comparison), *_size_findings(comparison, dense)]


def published_order(comparison: Comparison) -> list[str]:
    """Whether SparseGPT < Wanda < magnitude in perplexity, a sentence for yes, one for each no.

    Empty if no setting has all three. The best variant of a method counts; NaN is in no order.
    """
    held, sentences = [], []
    for setting, group in _by_setting(comparison).items():
        best = [_best_of(family, group) for family in _PUBLISHED_ORDER]
        known = [variant for variant in best if variant is not None]
        if len(known) < len(best):
            continue
        first, second, third = (variant.quality.perplexity for variant in known)
        if first < second < third:
            held.append(setting)
        else:
            sentences.append(_order_fails(setting, known))
    order = " < ".join(_PUBLISHED_ORDER.values())
    holds = f"The published order of perplexity, {order}, holds at {table.listed(held)}."
    return [holds, *sentences] if held else sentences


def _best_of(family: str, group: Iterable[Variant]) -> Variant | None:
    return min((v for v in group if v.family == family), key=_rank, default=None)


def _order_fails(setting: str, variants: Sequence[Variant]) -> str:
    order = " < ".join(_PUBLISHED_ORDER.values())
    found = ", ".join(
        f"{_PUBLISHED_ORDER[variant.family]} {table.format_number(variant.quality.perplexity)}"
        for variant in sorted(variants, key=_rank)
    )
    return f"The published order, {order}, does not hold at {setting}: here, best first, {found}."


def _size_findings(comparison: Comparison, dense: Variant) -> list[str]:
    pruned = [v for v in comparison.variants if v.family != "dense"]
    same = [v for v in pruned if v.num_zeros > dense.num_zeros and _same_size(v, dense)]
    smaller = [v for v in pruned if v.num_bytes < dense.num_bytes and not _same_size(v, dense)]
    sentences = []
    if same:
        sentences.append(
            f"The weights set to zero are still stored: {len(same)} of {len(pruned)} compressed "
            f"models take the same {table.format_bytes(dense.num_bytes)} as the dense one. "
            f"{_ZEROS_ALONE}{_measured_speed(same, dense)}"
        )
    return sentences + [_smaller_sentence(variant, dense) for variant in smaller]


def _same_size(variant: Variant, dense: Variant) -> bool:
    return abs(variant.num_bytes - dense.num_bytes) <= _SAME_SIZE * dense.num_bytes


def _measured_speed(variants: Sequence[Variant], dense: Variant) -> str:
    ratios = [r for v in variants if (r := table.prefill_ratio(v, dense)) is not None]
    if not ratios:
        return ""
    return f" Measured prefill speed: {min(ratios):.2f} to {max(ratios):.2f} times dense."


def _smaller_sentence(variant: Variant, dense: Variant) -> str:
    ratio = table.prefill_ratio(variant, dense)
    fraction = table.format_fraction(variant.num_bytes / dense.num_bytes)
    change = table.format_change(variant.quality.perplexity, dense.quality.perplexity)
    speed = "" if ratio is None else f", prefill at {ratio:.2f} times dense"
    if (decode := table.decode_ratio(variant, dense)) is not None:
        speed += f", decode at {decode:.2f} times dense"
    return f"{variant.name}: {fraction} of the dense bytes, {change} perplexity{speed}."


def cautions(comparison: Comparison) -> list[str]:
    """What a reader must know before comparing: uneven protocols, failures, fallbacks."""
    sentences = []
    qualities = [variant.quality for variant in comparison.variants]
    protocols = {(q.text, q.num_tokens, q.max_seq_length) for q in qualities}
    if len(protocols) > 1:
        sentences.append(
            "Perplexities were not all measured on the same tokens: they do not compare."
        )
    for variant in comparison.variants:
        value = variant.quality.perplexity
        if not math.isfinite(value):
            sentences.append(f"{variant.name}: perplexity is {table.format_number(value)}.")
    return sentences + comparison_notes(comparison)


def report_headline(report: Report) -> str:
    """What was done, in a sentence."""
    done = ", then ".join(_stage_words(stage) for stage in report.stages) or "Nothing was done"
    total = table.format_seconds(sum(report.seconds.values()))
    left = ""
    if any(isinstance(s, FactorRecord) and not s.stored_dense for s in report.stages):
        left = f"; {table.format_fraction(report.parameters_left)} of the model’s parameters left"
    return f"{done[0].upper()}{done[1:]}{left}, in {total}."


def _stage_words(stage: AnyStage) -> str:
    if isinstance(stage, RecoverRecord | InheritRecord):
        return training_words(stage)
    if isinstance(stage, DropRecord):
        return drop_words.dropped_words(stage)
    if isinstance(stage, FactorRecord):
        return factor_words.factored_words(stage)
    count = f"{len(stage.layers)} {'matrix' if len(stage.layers) == 1 else 'matrices'}"
    method, zeros = _PUBLISHED_ORDER.get(stage.method, stage.method), f"{stage.sparsity:.1%}"
    return f"{zeros} of the weights in {count} set to zero by {method}, {stage.pattern}"


def _report_findings(report: Report) -> list[str]:
    sentences, (before, after) = [], (report.model.num_bytes, report.size.num_bytes)
    dense = {quality.text: quality for quality in report.quality if quality.when == "before"}
    for new in report.quality:
        if new.when == "after" and (old := dense.get(new.text)) is not None:
            was, now = map(table.format_number, (old.perplexity, new.perplexity))
            change = table.format_change(new.perplexity, old.perplexity)
            sentences.append(f"Perplexity on {new.text}: {was} before, {now} after ({change}).")
    if report.size.num_zeros and abs(after - before) <= _SAME_SIZE * before:
        sizes = f"{table.format_bytes(before)} before, {table.format_bytes(after)} after"
        sentences.append(f"The weights set to zero are still stored: {sizes}. {_ZEROS_ALONE}")
    return sentences


def _report_view(report: Report) -> dict[str, Any]:
    return {
        "report": report,
        "notes": table.report_notes(report),
        "recipe": yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True),
        "stages": [(stage, _stage_picture(stage)) for stage in report.stages],
        "seconds_picture": picture(plots.seconds_svg(report.seconds)) if report.seconds else None,
    }


def _stage_picture(stage: AnyStage) -> Markup | None:
    if isinstance(stage, RecoverRecord):
        return picture(recover_svg(stage))
    if isinstance(stage, InheritRecord):
        return picture(inherit_svg(stage))
    if isinstance(stage, DropRecord):
        return _scores_picture(stage)
    return picture(plots.layers_svg(stage)) if stage.layers else None


def _scores_picture(stage: DropRecord) -> Markup | None:
    scores, chosen = stage.first_scores, stage.dropped
    if not scores:
        return None
    if stage.criterion == "perplexity":
        scores = tuple(s if s is None else math.exp(min(s, 700.0)) for s in scores)
    if stage.criterion == "angular_distance":
        chosen = chosen[:1]
    return picture(plots.block_scores_svg(scores, chosen, drop_words.score_words(stage)))


def _removal_picture(stage: Any) -> Markup | None:
    if not isinstance(stage, DropRecord) or len(stage.losses) < 2:
        return None
    values, what = drop_words.perplexities(stage), drop_words.part_name(stage)
    if not any(map(math.isfinite, values)):
        return None
    return picture(depth_plots.removal_svg(values, stage.order, what))


def _tuning_picture(stage: PruneRecord) -> Markup | None:
    blocks = table.tuned_blocks(stage)
    name = _PRUNES_BY.get(stage.method, stage.method)
    return picture(tuning_svg(blocks, f"pruning by {name}")) if blocks else None


def _influence_picture(influence: Sequence[float], dropped: Sequence[int]) -> Markup | None:
    return picture(plots.block_influence_svg(influence, dropped)) if influence else None


def _dropped(variants: Sequence[Variant]) -> tuple[int, ...]:
    """The blocks that any variant dropped from the dense model, as its first stage."""
    first = [v.report.stages[0] for v in variants if v.report and v.report.stages]
    return tuple(sorted({b for s in first if isinstance(s, DropRecord) for b in s.dropped}))


def _samples(variants: Sequence[Variant]) -> dict[str, list[tuple[Variant, str]]]:
    prompts: dict[str, list[tuple[Variant, str]]] = {}
    for variant in variants:
        for sample in variant.samples:
            prompts.setdefault(sample.prompt, []).append((variant, sample.text))
    return prompts


def _calibrations(variants: Sequence[Variant]) -> list[CalibrationRecord]:
    records = (v.report.calibration for v in variants if v.report and v.report.calibration)
    return list(dict.fromkeys(records))


@cache
def _template() -> Template:
    return page_template(
        "page.html.j2",
        show=table,
        words=drop_words,
        factor_words=factor_words,
        colour=plots.family_colour,
        removal_picture=_removal_picture,
        tuning_picture=_tuning_picture,
        routing_rows=routing_rows,
        training_facts=training_facts,
        training_title=training_title,
    )
