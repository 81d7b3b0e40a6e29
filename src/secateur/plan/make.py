"""A plan from beginning to end: measure, search among built models, measure again."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.calibration.data import CalibrationSource, load_calibration
from secateur.errors import SecateurError
from secateur.evaluate.forward import evaluating
from secateur.evaluate.perplexity import encode_text, windows_of
from secateur.evaluate.suite import read_text, window_length
from secateur.plan.build import Bench, Built, Trial, fitted_to, measure_built, restricted
from secateur.plan.measure import Measured, measure_table
from secateur.plan.options import PlanOptions
from secateur.plan.result import Measurement, Plan, PlannedLayer, PlanRow, Prediction
from secateur.plan.search import search
from secateur.plan.solve import solve
from secateur.plan.table import DENSE, Limit, Selection, Table, counted_by, select
from secateur.plan.workload import Workload
from secateur.progress import Progress, SilentProgress
from secateur.recipe import Recipe

DEFAULT_SAMPLES = 64
REMOVED = "removed"
_SAME = "the plan itself: nothing that was tried loses less by more than chance"


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
        calibration: as of `compress`. Half of the samples fit factors, on the others
            losses are measured.
        target: what the plan must reach.
        workload: whose time counts; by default one step of decoding at batch 1.
        options: what is offered, and how carefully times are measured.
        tokenizer: needed for texts.
        num_calibration_samples: windows to draw from text.
        max_seq_length: tokens in a window; by default 2048, or the model's context if shorter.
        seed: of the draw.
        evaluation_text: a text file to measure perplexity on; only with `build`.
        build: also build the plan and others near it, go by what they lose on the held-out
            samples, and choose ranks anew where the plan is not as fast as predicted. It takes
            up to a copy of the model for each single method and three more.
        compare: with `build`: also the best plan of each single method at the same limit. The
            plan of all methods is searched for from the best of these on: where nothing loses
            less by more than chance, that one is the plan.
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
    tokens.check_fit(model)
    length = window_length(model, max_seq_length)
    if evaluation_text is not None and not build:
        raise SecateurError("an evaluation text is for what is built: leave it out, or build")
    evaluation = _evaluation(model, tokenizer, evaluation_text, length)
    bench = Bench(model, tokens, workload, options.rounds, options.damping, evaluation, length)
    with evaluating(model):
        measured = measure_table(model, tokens, workload, options, progress)
        return plan_from(measured, bench, target, options, build, compare, source, progress)


def _evaluation(
    model: nn.Module, tokenizer: Any | None, text: str | Path | None, length: int
) -> Tensor | None:
    """Its tokens, which windows of `length` can be cut of; None without a text."""
    if text is None:
        return None
    if tokenizer is None:
        raise SecateurError("an evaluation text needs the model's tokenizer; give `tokenizer`")
    token_ids = encode_text(tokenizer, read_text(Path(text)))
    windows_of(model, token_ids, length)
    return token_ids


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
    bench = replace(bench, importance=measured.importance)
    table, methods = measured.table, options.resolved_methods(bench.device)
    limit = target.limit(table.dense_milliseconds)
    if build:
        rows, selection, recipe = _built_rows(
            measured, bench, limit, methods, options.trials, compare, progress
        )
    else:
        selection = solve(table, limit)
        recipe = bench.recipe(selection)
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


@dataclass(frozen=True)
class Sought:
    """The best that was found by each way to keep to a limit."""

    built: dict[str, Built]
    """`plan` first, then `low-rank only` and the like."""
    missed: dict[str, str]
    """The ways by which the limit cannot be kept to, and why."""


def seek(
    measured: Measured,
    bench: Bench,
    limit: Limit,
    methods: tuple[str, ...],
    trials: int,
    progress: Progress,
) -> Sought:
    """Search by each method alone, then by all of them from the best single one on.

    Args:
        measured: of the dense model.
        bench: the dense model, in evaluation mode.
        limit: to keep to.
        methods: to search by alone; may be empty.
        trials: models to build in each search.
        progress: told how far it is.

    Raises:
        SecateurError: the limit cannot be kept to by all methods together.
    """
    tables = {f"{method} only": restricted(measured.table, method) for method in methods}
    found: dict[str, Trial] = {}
    missed: dict[str, str] = {}
    for name, table in tables.items():
        try:
            found[name] = search(bench, measured, table, limit, (), trials, progress)
        except SecateurError as error:
            missed[name] = str(error)
    plan = search(bench, measured, measured.table, limit, tuple(found.values()), trials, progress)
    same = [name for name, trial in found.items() if trial is plan]
    # Each goes before another is made of it.
    built = {name: fitted_to(bench, tables[name], limit, found.pop(name)) for name in [*found]}
    best = built[same[0]] if same else fitted_to(bench, measured.table, limit, plan)
    return Sought({"plan": best} | built, missed)


def _built_rows(
    measured: Measured,
    bench: Bench,
    limit: Limit,
    methods: tuple[str, ...],
    trials: int,
    compare: bool,
    progress: Progress,
) -> tuple[list[PlanRow], Selection, Recipe | None]:
    single = [name for name in methods if name != DENSE]
    alone = tuple(single) if compare and len(single) > 1 else ()
    sought = seek(measured, bench, limit, alone, trials, progress)
    progress.begin("measure all in turns", 1)
    found = measure_built(bench, {name: entry.trial.model for name, entry in sought.built.items()})
    progress.advance()
    rows = [_dense_row(measured, found[DENSE])]
    plan = sought.built["plan"]
    for name in ("plan", *(f"{method} only" for method in alone)):
        if name in sought.missed:
            rows.append(PlanRow(name, note=sought.missed[name]))
            continue
        built = sought.built[name]
        row = _row(name, measured, built.trial.selection, found[name])
        rows.append(replace(row, note=_SAME) if name != "plan" and built is plan else row)
    return rows, plan.trial.selection, plan.trial.recipe


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
