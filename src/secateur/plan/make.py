"""A plan from beginning to end: measure, select, build, measure again."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import stdev
from typing import Any

from torch import Tensor, nn

from secateur.calibration.data import CalibrationSource, load_calibration
from secateur.errors import SecateurError
from secateur.evaluate.forward import evaluating
from secateur.evaluate.perplexity import encode_text
from secateur.evaluate.suite import read_text, window_length
from secateur.models.blocks import find_blocks
from secateur.plan.around import counted_by
from secateur.plan.build import TOLERANCE, Bench, Built, measure_built, restricted
from secateur.plan.measure import Measured, measure_table
from secateur.plan.options import PlanOptions
from secateur.plan.recipe import plan_recipe
from secateur.plan.refine import best_within
from secateur.plan.result import Measurement, Plan, PlannedLayer, PlanRow, Prediction
from secateur.plan.solve import solve
from secateur.plan.table import DENSE, Limit, Selection, Table, select
from secateur.plan.workload import Workload
from secateur.progress import Progress, SilentProgress
from secateur.recipe import Recipe

DEFAULT_SAMPLES = 32
REMOVED = "removed"


@dataclass(frozen=True)
class Target:
    """What is asked of a plan; exactly one is given."""

    speedup: float | None = None
    """Over the dense model, above 1."""
    milliseconds: float | None = None
    """Of the workload."""
    num_bytes: int | None = None
    """Of weights in memory."""

    def __post_init__(self) -> None:
        given = [v for v in (self.speedup, self.milliseconds, self.num_bytes) if v is not None]
        if len(given) != 1:
            raise SecateurError(
                "expected exactly one limit: a target speed-up (--target-speedup), a latency "
                f"(--latency) or memory (--memory); got {len(given) or 'none'}"
            )
        if self.speedup is not None and not 1 < self.speedup < float("inf"):
            raise SecateurError(f"expected a target speed-up above 1, got {self.speedup:g}")
        if self.speedup is None:
            self.limit(1.0)

    def limit(self, dense_milliseconds: float) -> Limit:
        """The limit for a model that takes so long."""
        if self.speedup is not None:
            return Limit(milliseconds=dense_milliseconds / self.speedup)
        return Limit(self.milliseconds, self.num_bytes)

    @property
    def words(self) -> str:
        """Such as `1.5 times as fast as dense`."""
        if self.speedup is not None:
            return f"{self.speedup:g} times as fast as dense"
        if self.milliseconds is not None:
            return f"at most {self.milliseconds:g} ms"
        return f"at most {self.num_bytes:,} bytes of weights"


def make_plan(
    model: nn.Module,
    calibration: CalibrationSource,
    target: Target,
    *,
    workload: Workload | None = None,
    options: PlanOptions | None = None,
    tokenizer: Any | None = None,
    num_calibration_samples: int = DEFAULT_SAMPLES,
    max_seq_length: int | None = None,
    seed: int = 0,
    evaluation_text: str | Path | None = None,
    build: bool = True,
    compare: bool = True,
    source: str = "in memory",
    progress: Progress | None = None,
) -> Plan:
    """Choose for every layer of a model whether it stays dense, is compressed or goes.

    Args:
        model: a dense causal language model on the device where it is to be fast; not changed.
        calibration: as of `compress`. Three quarters of the samples fit factors, on the others
            losses are measured.
        target: what the plan must reach.
        workload: whose time counts; by default one step of decoding at batch 1.
        options: what is offered, and how carefully times are measured.
        tokenizer: needed for texts.
        num_calibration_samples: windows to draw from text.
        max_seq_length: tokens in a window; by default 2048, or the model's context if shorter.
        seed: of the draw.
        evaluation_text: a text file to measure perplexity on.
        build: also build the plan and measure it, and select again by what is seen: times where
            it is slower than predicted, losses as they are beside its own choices. It takes a
            copy of the model for each model built.
        compare: with `build`: also the best plan of each single method at the same limit; where
            the plan of all methods does not lose less than one of these by more than chance, as
            measured on the held-out samples, that one is the plan.
        source: name of the model, for the result.
        progress: told how far it is; its owner closes it.

    Raises:
        SecateurError: bad input, or a target that cannot be reached, with the best that can.
    """
    workload, options = workload or Workload(), options or PlanOptions()
    progress = progress or SilentProgress()
    tokens = load_calibration(
        calibration,
        tokenizer,
        num_samples=num_calibration_samples,
        max_seq_length=window_length(model, max_seq_length),
        seed=seed,
    )
    bench = Bench(
        model,
        tokens,
        workload,
        options.rounds,
        options.damping,
        _evaluation(tokenizer, evaluation_text),
        window_length(model, max_seq_length),
    )
    with evaluating(model):
        measured = measure_table(model, tokens, workload, options, progress)
        return plan_from(measured, bench, target, options, build, compare, source, progress)


def _evaluation(tokenizer: Any | None, text: str | Path | None) -> Tensor | None:
    if text is None:
        return None
    if tokenizer is None:
        raise SecateurError("an evaluation text needs the model's tokenizer; give `tokenizer`")
    return encode_text(tokenizer, read_text(Path(text)))


def plan_from(
    measured: Measured,
    bench: Bench,
    target: Target,
    options: PlanOptions,
    build: bool = True,
    compare: bool = True,
    source: str = "in memory",
    progress: Progress | None = None,
) -> Plan:
    """The plan for one target, out of what was measured before; arguments as of `make_plan`.

    Raises:
        SecateurError: the target cannot be reached, with the best that can.
    """
    progress = progress or SilentProgress()
    table, methods = measured.table, options.resolved_methods(bench.device)
    limit = target.limit(table.dense_milliseconds)
    if build:
        rows, selection, recipe = _built_rows(
            measured, bench, limit, methods, options.refinements, compare, progress
        )
    else:
        selection = solve(table, limit)
        recipe = plan_recipe(selection, find_blocks(bench.model), bench.damping)
        rows = [_dense_row(measured, None), _row("plan", measured, selection, None)]
    return Plan(
        model=source,
        device=str(bench.device),
        workload=bench.workload.name,
        methods=methods,
        limit=target.words,
        rows=tuple(rows),
        layers=_layers(table, counted_by(table, selection)),
        removed=tuple(removal.name for removal in selection.removals),
        recipe=recipe.to_dict() if recipe else None,
        time_scale=measured.time_scale,
        notes=measured.notes,
    )


def _built_rows(
    measured: Measured,
    bench: Bench,
    limit: Limit,
    methods: tuple[str, ...],
    refinements: int,
    compare: bool,
    progress: Progress,
) -> tuple[list[PlanRow], Selection, Recipe | None]:
    table = measured.table
    single = [name for name in methods if name != DENSE]
    wanted = {"plan": table}
    if compare and len(single) > 1:
        wanted |= {f"{name} only": restricted(table, name) for name in single}
    built: dict[str, Built] = {}
    missed: dict[str, str] = {}
    for name, offered in wanted.items():
        try:
            best_built = best_within(bench, measured, offered, limit, refinements, progress)
            built[name] = best_built.built
        except SecateurError as error:
            if name == "plan":
                raise
            missed[name] = str(error)
    progress.begin("measure all in turns", 1)
    found = measure_built(bench, {name: entry.model for name, entry in built.items()})
    progress.advance()
    best = best_measured(found, limit, table.dense_milliseconds)
    rows = [_dense_row(measured, found[DENSE])]
    for name in wanted:
        if name in missed:
            rows.append(PlanRow(name, note=missed[name]))
            continue
        source = best if name == "plan" else name
        row = _row(name, measured, built[source].selection, found[source])
        rows.append(replace(row, note=_why(source)) if source != name else row)
    return rows, built[best].selection, built[best].recipe


def best_measured(found: Mapping[str, Measurement], limit: Limit, dense_milliseconds: float) -> str:
    """`plan`, or the best single method that keeps to what the plan keeps to, where the plan does
    not lose less than that one by more than chance.

    What looked best in the table need not be when built: losses of choices add up only roughly,
    and among more choices more of them look good by chance.
    """
    allowed = _taken(found["plan"], limit, dense_milliseconds)
    allowed = max(allowed, limit.value) * (1 + TOLERANCE)
    names = [
        name
        for name, measurement in found.items()
        if name != DENSE and _taken(measurement, limit, dense_milliseconds) <= allowed
    ]
    singles = [name for name in names if name != "plan"]
    if not singles:
        return "plan"
    single = min(singles, key=lambda name: found[name].loss)
    return "plan" if _is_clear(found["plan"], found[single]) else single


def _is_clear(plan: Measurement, other: Measurement) -> bool:
    """Whether it loses less by more than the standard error of their differences by sample.

    One and the same model is the plan.
    """
    gain = other.loss - plan.loss
    differences = [b - a for a, b in zip(plan.losses, other.losses, strict=True)]
    if gain == 0 or len(differences) < 2:
        return gain >= 0
    return gain > stdev(differences) / sqrt(len(differences))


def _taken(measurement: Measurement, limit: Limit, dense_milliseconds: float) -> float:
    """In the unit of the limit; times in parts of the dense model's in the same turns."""
    if limit.milliseconds is None:
        return measurement.num_bytes
    return dense_milliseconds / measurement.speedup


def _why(source: str) -> str:
    return f"{source}: built, the plan of all methods did not lose less by more than chance"


def _dense_row(measured: Measured, found: Measurement | None) -> PlanRow:
    return _row(DENSE, measured, select(measured.table, {}), found)


def _row(name: str, measured: Measured, selection: Selection, found: Measurement | None) -> PlanRow:
    predicted = Prediction(
        selection.milliseconds, selection.num_bytes, measured.dense_loss + selection.loss
    )
    return PlanRow(
        name,
        predicted,
        found,
        tuple(removal.name for removal in selection.removals),
        dict(Counter(choice.form for choice in selection.forms.values())),
    )


def _layers(table: Table, selection: Selection) -> tuple[PlannedLayer, ...]:
    layers = []
    for unit in table.units:
        choice = selection.forms.get(unit.name)
        layers.append(
            PlannedLayer(
                name=unit.name,
                form=choice.form if choice else REMOVED,
                dense_milliseconds=unit.dense.milliseconds,
                milliseconds=choice.milliseconds if choice else 0.0,
                loss=choice.loss if choice else 0.0,
            )
        )
    return tuple(layers)
