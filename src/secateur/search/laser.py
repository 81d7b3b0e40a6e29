"""The LASER search: every cut alone, then several together, chosen on one split and reported on
the other (Sharma, Ash and Misra, arXiv 2312.13558, section 4).
"""

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

from torch import nn

from secateur.evaluate.tokenizer import Tokenizer
from secateur.lowrank import Intervention
from secateur.plain import to_plain
from secateur.progress import Progress, SilentProgress
from secateur.report.facts import machine_facts, package_versions
from secateur.report.search_record import (
    AnalysisRecord,
    CutRecord,
    RankedRecord,
    SearchedModelRecord,
    SearchRecord,
    SearchTaskRecord,
    StepRecord,
    TrialRecord,
)
from secateur.search.analysis import analyse
from secateur.search.choose import Choice, choose
from secateur.search.journal import JOURNAL_FILE, Fingerprint, Journal, fingerprint_of
from secateur.search.options import SearchOptions
from secateur.search.ranking import rank_places
from secateur.search.ready import Ready, make_ready
from secateur.search.space import rank_of
from secateur.search.states import state_records
from secateur.search.task import SearchTask
from secateur.search.trials import Trials
from secateur_kernels.precision import dtype_name


def search_laser(
    model: nn.Module,
    tokenizer: Tokenizer,
    task: SearchTask,
    options: SearchOptions | None = None,
    *,
    source: str = "in memory",
    folder: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> SearchRecord:
    """Find cuts that make a model better at a task.

    The score of a cut is that of the model with one matrix replaced by its nearest matrix of lower
    rank. Cuts are chosen on the validation split alone; the test split is measured for the dense
    model, the best single cut and the composition, once each, when all is chosen.

    Args:
        model: dense; the same to the bit when this returns or raises.
        tokenizer: its own.
        task: what to improve.
        options: grid, filter, split and composition; the published grid by default.
        source: of the model, for the record.
        folder: where a journal is kept; none is kept without one.
        resume: go on with the folder's journal, if it has one. Otherwise it is replaced.
        progress: told of every trial; its owner closes it.

    Returns:
        Everything that was measured. A search that was killed and resumed gives the same record
        as one that was not, but for `created` and `seconds`.

    Raises:
        SecateurError: bad options or items, or a journal of another search: before anything was
            measured. Weights that are not finite, where they are met.
    """
    options, progress = options or SearchOptions(), progress or SilentProgress()
    started = perf_counter()
    ready = make_ready(model, tokenizer, task, options)
    fingerprint = fingerprint_of(model, tokenizer, task, options)
    journal = _open_journal(folder, fingerprint, resume)
    ranking = _ranking(model, ready, options, journal, progress)
    if ranking:
        kept = {(record.matrix, record.block) for record in ranking if record.is_kept}
        ready = replace(ready, space=ready.space.narrowed(kept))
    trials = Trials(ready.space.sites, journal)
    lower_is_better = ready.prepared.lower_is_better
    choice = choose(ready.space, trials, ready.validation, lower_is_better, options, progress)

    def record(cut: Intervention) -> CutRecord:
        return _cut_record(cut, ready)

    states = state_records(
        {"dense": (), "single": (choice.best,), "composed": choice.composition.cuts},
        trials,
        ready.validation,
        ready.test,
        ready.test_groups,
        lower_is_better,
        record,
    )
    return SearchRecord(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=package_versions(),
        machine=machine_facts(next(model.parameters()).device),
        model=_model_record(model, ready, source),
        task=_task_record(task, ready),
        options=to_plain(options),
        fingerprint={"model": fingerprint.model, "task": task.digest},
        notes=ready.space.notes,
        ranking=ranking,
        trials=tuple(
            TrialRecord(cut=record(cut), validation=trials.measure((cut,), ready.validation).score)
            for cut in choice.singles
        ),
        num_composition_trials=choice.composition.num_trials,
        steps=tuple(
            StepRecord(
                cut=record(step.cut),
                replaces=step.replaces.fraction if step.replaces else None,
                validation=trials.measure(step.cuts, ready.validation).score,
            )
            for step in choice.composition.steps
        ),
        states=states,
        analysis=_analysis(ready, choice),
        seconds=perf_counter() - started,
    )


def _open_journal(folder: str | Path | None, fingerprint: Fingerprint, resume: bool) -> Journal:
    if folder is None:
        return Journal()
    path = Path(folder) / JOURNAL_FILE
    if resume and path.is_file():
        return Journal.resume(path, fingerprint)
    return Journal.start(path, fingerprint)


def _ranking(
    model: nn.Module, ready: Ready, options: SearchOptions, journal: Journal, progress: Progress
) -> tuple[RankedRecord, ...]:
    if options.filter is None:
        return ()
    noted = journal.get("ranking")
    if noted is None:
        assert ready.prepared.likelihood is not None
        items = ready.split.validation
        likelihood = ready.prepared.likelihood(items)
        ranked = rank_places(
            model, ready.space, likelihood, len(items), options.fractions, progress
        )
        noted = [
            {
                "matrix": matrix,
                "block": block,
                "fraction": candidate.fraction,
                "predicted_change": candidate.predicted_change,
                "is_kept": number < options.filter,
            }
            for number, ((matrix, block), candidate) in enumerate(ranked)
        ]
        journal.put("ranking", noted)
    return tuple(RankedRecord(**values) for values in noted)


def _cut_record(cut: Intervention, ready: Ready) -> CutRecord:
    site = ready.space.sites[cut.matrix, cut.block]
    return CutRecord(
        matrix=cut.matrix,
        block=cut.block,
        fraction=cut.fraction,
        rank=rank_of(cut, site),
        name=site.name,
        shape=site.shape,
    )


def _model_record(model: nn.Module, ready: Ready, source: str) -> SearchedModelRecord:
    return SearchedModelRecord(
        source=source,
        architecture=type(model).__name__,
        num_blocks=len(ready.blocks),
        dtype=dtype_name(next(model.parameters()).dtype),
    )


def _task_record(task: SearchTask, ready: Ready) -> SearchTaskRecord:
    return SearchTaskRecord(
        name=task.name,
        kind=ready.prepared.kind,
        metric=ready.prepared.metric,
        lower_is_better=ready.prepared.lower_is_better,
        num_items=len(ready.prepared.units),
        num_validation=len(ready.split.validation),
        num_test=len(ready.split.test),
    )


def _analysis(ready: Ready, choice: Choice) -> AnalysisRecord | None:
    """With the best single cut, as published: what one matrix has stored."""
    cuts = (choice.best,)
    answers = [
        answer for asked in ready.asked for answer in analyse(cuts, ready.space.sites, asked)
    ]
    if not answers:
        return None
    records = tuple(_cut_record(cut, ready) for cut in cuts)
    return AnalysisRecord(cuts=records, answers=tuple(answers))
