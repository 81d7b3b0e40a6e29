"""The throughput benchmark: models, workloads and runners in turns, to one record."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import torch
from torch import nn

from secateur.engine import Engine
from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks
from secateur.progress import Progress
from secateur.report.facts import machine_facts, package_versions
from secateur.report.throughput_record import ThroughputRecord
from secateur.runtime.accelerate import accelerate
from secateur.throughput.bandwidth import copy_bandwidth
from secateur.throughput.candidates import Candidate, described
from secateur.throughput.runners import EngineRunner, Prompts, Runner, TransformersRunner
from secateur.throughput.turn import Turn, Workload, check_turn, summarise
from secateur_kernels.precision import dtype_name

_FLEX = "The engine's decode steps attended by flex attention."


@dataclass(frozen=True, kw_only=True)
class ThroughputOptions:
    """What is measured."""

    workloads: tuple[Workload, ...]
    rounds: int = 5
    """Timed turns of each model, after one that is not timed."""
    against_transformers: bool = False
    """Also the baseline's own `generate`, eager and with a static cache."""
    baseline: str | None = None
    """Name of the model to compare with; None: the first."""
    compile: bool | None = None
    """Whether the engine compiles; None: on a GPU only."""
    attention: str = "sdpa"
    """Of the engine's decode steps: `sdpa` or `flex`."""
    notes: tuple[str, ...] = ()
    """Kept with the record."""

    def __post_init__(self) -> None:
        if not self.workloads or self.rounds < 1:
            raise SecateurError(
                f"expected a workload and a round at least, got {len(self.workloads)} workloads "
                f"and {self.rounds} rounds"
            )


def run_throughput(
    candidates: Sequence[Candidate], options: ThroughputOptions, progress: Progress
) -> Iterator[ThroughputRecord]:
    """Measure models side by side.

    Every model, accelerated as `secateur.accelerate` sees fit, gets an engine with room for the
    largest workload. For each workload they take turns.

    Args:
        candidates: on one device; changed in place where layers are accelerated.
        options: what is measured.
        progress: is told of every turn.

    Returns:
        the record so far, after each workload; the first is begun as it is asked for.

    Raises:
        SecateurError: a model cannot run the workload, or the baseline is not among them.
    """
    names = [candidate.name for candidate in candidates]
    baseline = _baseline(names, options.baseline)
    batch_sizes = sorted({workload.batch_size for workload in options.workloads})
    for candidate in candidates:
        accelerate(candidate.model, batch_sizes=batch_sizes)
    runners = _runners(candidates, baseline, options)
    device = next(candidates[0].model.parameters()).device
    deepest = max(len(find_blocks(candidate.model)) for candidate in candidates)
    record = ThroughputRecord(
        created=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        machine=machine_facts(device),
        versions=package_versions(),
        dtype=dtype_name(next(candidates[0].model.parameters()).dtype),
        copy_bandwidth=copy_bandwidth(device),
        baseline=baseline,
        models=tuple(described(candidate, deepest) for candidate in candidates),
        measurements=(),
        notes=options.notes if options.attention == "sdpa" else (*options.notes, _FLEX),
    )
    return _workloads(candidates, runners, record, options, progress)


def _workloads(
    candidates: Sequence[Candidate],
    runners: Sequence[tuple[str, Runner]],
    record: ThroughputRecord,
    options: ThroughputOptions,
    progress: Progress,
) -> Iterator[ThroughputRecord]:
    """`record` with the measurements so far, after each workload."""
    for workload in options.workloads:
        prompts = random_prompts([candidate.model for candidate in candidates], workload)
        turns = _take_turns(runners, workload, prompts, options.rounds, progress)
        measured = tuple(
            summarise(name, runner.name, workload, taken)
            for (name, runner), taken in zip(runners, turns, strict=True)
        )
        record = replace(record, measurements=(*record.measurements, *measured))
        yield record


def _baseline(names: Sequence[str], wanted: str | None) -> str:
    if not names:
        raise SecateurError("expected a model to measure, got none")
    if wanted is not None and wanted not in names:
        raise SecateurError(f"expected --baseline one of {', '.join(names)}, got {wanted!r}")
    return wanted or names[0]


def _runners(
    candidates: Sequence[Candidate], baseline: str, options: ThroughputOptions
) -> list[tuple[str, Runner]]:
    rows = max(workload.batch_size for workload in options.workloads)
    length = max(workload.prompt_length + workload.new_tokens for workload in options.workloads)
    found: list[tuple[str, Runner]] = []
    for candidate in candidates:
        try:
            engine = Engine(
                candidate.model,
                max_batch_size=rows,
                max_length=length,
                compile=options.compile,
                attention=options.attention,
            )
        except SecateurError as error:
            raise SecateurError(f"{candidate.name}: {error}") from None
        found.append((candidate.name, EngineRunner(engine, candidate.model)))
        if options.against_transformers and candidate.name == baseline:
            for static in (False, True):
                found.append((candidate.name, TransformersRunner(candidate.model, static)))
    return found


def _take_turns(
    runners: Sequence[tuple[str, Runner]],
    workload: Workload,
    prompts: Prompts,
    rounds: int,
    progress: Progress,
) -> list[list[Turn]]:
    """The timed turns of each runner."""
    turns: list[list[Turn]] = [[] for _ in runners]
    task = f"batch {workload.batch_size}, prompts of {workload.prompt_length}"
    progress.begin(task, (rounds + 1) * len(runners))
    for number in range(rounds + 1):
        for (name, runner), taken in zip(runners, turns, strict=True):
            turn = runner.run(prompts, workload.new_tokens)
            check_turn(turn, workload, f"{name} by {runner.name}")
            if number:
                taken.append(turn)
            progress.advance(f"{name}, {runner.name}")
    return turns


def random_prompts(models: Sequence[nn.Module], workload: Workload) -> Prompts:
    """Prompts of tokens that all models know; equal workloads give equal prompts."""
    smallest = min(_vocabulary(model) for model in models)
    generator = torch.Generator().manual_seed(0)
    shape = (workload.batch_size, workload.prompt_length)
    prompts: list[list[int]] = torch.randint(0, smallest, shape, generator=generator).tolist()
    return prompts


def _vocabulary(model: nn.Module) -> int:
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    size = getattr(embedding, "num_embeddings", None)
    if not isinstance(size, int):
        raise SecateurError(f"expected a model with input embeddings, got {type(model).__name__}")
    return size
