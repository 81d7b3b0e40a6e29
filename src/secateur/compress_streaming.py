"""The chain for models that do not fit in memory: a block is read, pruned, written, forgotten.

It runs the prune stage that `compress.py` runs, on the same inputs in the same order: the weights
that it writes are the same, bit for bit.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from secateur.calibration.data import CalibrationSource
from secateur.calibration.inputs import BlockInputs, capture_inputs, tokens_per_batch
from secateur.calibration.tokens import CalibrationTokens
from secateur.checkpoint.card import model_card
from secateur.checkpoint.fingerprint import fingerprint
from secateur.checkpoint.load import LoadedModel, usable_device
from secateur.checkpoint.manifest import write_manifest
from secateur.checkpoint.write import (
    RECIPE_FILE,
    check_output,
    flush_folder,
    make_readable,
    put_in_place,
    space_errors,
)
from secateur.clock import StepClock
from secateur.compress import RecipeLike, as_recipe
from secateur.errors import SecateurError
from secateur.models.device import full_precision_products
from secateur.models.inventory import Inventory, take_inventory
from secateur.models.measure import num_bytes
from secateur.models.trace import Trace, trace_without_weights
from secateur.prepare import (
    DEFAULT_SAMPLES,
    CalibrationChoice,
    calibration_record,
    check_calibration,
    draw_tokens,
    model_record,
)
from secateur.progress import Progress, default_progress
from secateur.recipe import PruneStage, Recipe
from secateur.report.facts import machine_facts, package_versions, peak_memory_bytes
from secateur.report.record import (
    REPORT_FILE,
    PruneRecord,
    Report,
    SizeRecord,
    VerificationRecord,
    load_report,
)
from secateur.settings import read_settings
from secateur.stages.prune import BlockPruner
from secateur.stages.prune_plan import PlannedSite, plan_stage
from secateur.streaming.activations import Home, buffer_maker
from secateur.streaming.estimate import Estimate, check_room, estimate_job
from secateur.streaming.facts import job_facts
from secateur.streaming.finished import WRITERS, BlockJournal
from secateur.streaming.job import (
    WEIGHTS_FOLDER,
    bytes_in_job,
    check_job,
    close_job,
    has_ended,
    open_job,
)
from secateur.streaming.memory import return_large_tensors
from secateur.streaming.rest import write_rest
from secateur.streaming.shards import ShardPlan
from secateur.streaming.skeleton import Skeleton, build_skeleton, modules_outside, release
from secateur.streaming.source import BlockSource, Held
from secateur.streaming.walk import BlockWalk, blocks_on_demand


@dataclass(frozen=True)
class StreamingJob:
    """Everything that is settled before a block is read."""

    skeleton: Skeleton
    inventory: Inventory
    recipe: Recipe
    stage: PruneStage
    plan: list[list[PlannedSite]]
    tokens: CalibrationTokens | None
    seed: int
    output: Path
    device: torch.device
    dtype: str
    activations: Home
    overwrite: bool


def compress_streaming(
    model: str | Path,
    recipe: RecipeLike,
    *,
    calibration: CalibrationSource | None = None,
    output: str | Path,
    num_calibration_samples: int = DEFAULT_SAMPLES,
    max_seq_length: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    overwrite: bool = False,
    activations: Home = "auto",
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Prune a model on disk block by block, without ever holding it whole.

    In memory at a time: one block and the next one that is being read, what the method sums up,
    and the hidden states of the calibration tokens twice. After each block its weights and a
    journal entry are on disk, in a hidden folder beside `output`; killed at any moment, a run with
    the same arguments and `resume` goes on after the last finished block and ends bit for bit as
    one that was never interrupted.

    Args:
        model: a folder or a Hub id.
        recipe: one prune stage; see `compress_with_report`.
        calibration: as of `compress_with_report`.
        output: folder to write, in the dense format.
        num_calibration_samples: windows to draw from text.
        max_seq_length: tokens in a window.
        seed: of the draw.
        device: where blocks run; by default the CPU.
        dtype: to read the weights in.
        revision: of a Hub repository.
        overwrite: replace an output folder that is not empty, once the new one is complete.
        activations: where hidden states are kept: on the `device`, in `host` memory, or in a
            `file` in the job's folder. `auto` takes the first that has room.
        resume: go on with an interrupted run.
        progress: who is told how far the work is; by default bars on a terminal.

    Returns:
        the report that was written. Seconds are those of this run, without those of runs before.

    Raises:
        SecateurError: bad input, or the interrupted run was of another model, recipe, calibration,
            version or machine; says which.
        OutOfSpaceError: the disk is full; the old output and finished blocks are intact.
    """
    return_large_tensors()
    clock = StepClock(progress or default_progress())
    with ExitStack() as in_use:
        in_use.callback(clock.progress.close)
        with clock.step("check"):
            place = Path(os.path.realpath(output))
            check_job(place, resume)
            # Killed after its weights became the output, a job is checked like any other.
            ended = has_ended(place)
            job = prepare_streaming(
                model,
                recipe,
                CalibrationChoice(calibration, num_calibration_samples, max_seq_length, seed),
                output=output,
                device=device,
                dtype=dtype,
                revision=revision,
                overwrite=overwrite or ended,
                activations=activations,
            )
            needed = estimate_streaming(job)
            if not ended:
                check_room(needed, job.output, bytes_in_job(job.output))
            # Settled once: the room that was checked is that of this place.
            job = replace(job, activations=needed.activations)
        with clock.step("fingerprint the model"):
            facts = job_facts(job.skeleton.folder, job.recipe, job.tokens, job.device, dtype)
        folder = in_use.enter_context(open_job(job.output, facts))
        if ended:
            close_job(folder)
            return load_report(job.output)
        return _run(job, folder, clock)


def prepare_streaming(
    model: str | Path,
    recipe: RecipeLike,
    choice: CalibrationChoice,
    *,
    output: str | Path,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    overwrite: bool = False,
    activations: Home = "auto",
) -> StreamingJob:
    """Settle everything that needs no weights; arguments as of `compress_streaming`.

    Raises:
        SecateurError: bad input.
    """
    recipe = as_recipe(recipe)
    stage = recipe.stages[0]
    if len(recipe.stages) != 1 or not isinstance(stage, PruneStage):
        raise SecateurError(
            "only a recipe of one prune stage can be streamed: other stages need the whole model; "
            "compress without streaming"
        )
    if stage.needs_model_gradient:
        raise SecateurError(
            f"{stage.method} needs the gradient of the whole model, which is never whole while it "
            "is streamed; compress without streaming"
        )
    if read_settings().world_size > 1:
        raise SecateurError(
            "streaming is done by one process; several share the calibration of a model that is "
            "in memory: leave out streaming, or torchrun"
        )
    if activations not in ("auto", "device", "host", "file"):
        raise SecateurError(f"expected activations auto, device, host or file, got {activations!r}")
    place = check_output(Path(output), overwrite)
    check_calibration(choice.source, recipe)
    skeleton = build_skeleton(model, revision, dtype)
    check_output(Path(output), overwrite, skeleton.folder)
    inventory = take_inventory(skeleton.model)
    loaded = _as_loaded(skeleton)
    return StreamingJob(
        skeleton=skeleton,
        inventory=inventory,
        recipe=recipe,
        stage=stage,
        plan=plan_stage(stage, inventory),
        tokens=draw_tokens(choice, recipe, loaded),
        seed=choice.seed,
        output=place,
        device=usable_device(device),
        dtype=dtype,
        activations=activations,
        overwrite=overwrite,
    )


def estimate_streaming(job: StreamingJob) -> Estimate:
    """What a job will need, before anything is read."""
    return estimate_job(
        job.skeleton, job.inventory, job.stage, job.tokens, job.device, job.activations
    )


def _as_loaded(skeleton: Skeleton) -> LoadedModel:
    return LoadedModel(
        skeleton.model, skeleton.tokenizer, skeleton.folder, skeleton.source, skeleton.revision
    )


def _run(job: StreamingJob, folder: Path, clock: StepClock) -> Report:
    skeleton = job.skeleton
    shards = ShardPlan(skeleton.model, skeleton.blocks)
    before = model_record(_as_loaded(skeleton), job.inventory)
    num_parameters, size_bytes = _size_before(job)
    # On a CPU writers would take the cores, and hold blocks more in memory.
    on_cpu = job.device.type == "cpu"
    writers = 0 if on_cpu else WRITERS
    journal = BlockJournal(folder, skeleton.model, skeleton.blocks, shards, writers)
    # What is copied to a device may be overwritten.
    held: Held = "copied" if on_cpu else "reused"
    source = BlockSource(skeleton.folder, skeleton.model, skeleton.blocks, held)
    try:
        with journal:
            walk = BlockWalk(skeleton, job.inventory, source, journal, job.device)
            record = _prune(job, folder, source, walk, journal, clock)
        with clock.step("write what is outside the blocks"):
            zeros = journal.num_zeros() + write_rest(
                folder / WEIGHTS_FOLDER, skeleton.model, skeleton.blocks, source, shards, writers
            )
    finally:
        source.close()
    weights = folder / WEIGHTS_FOLDER
    with clock.step("run what was written"):
        probe = _fingerprint(skeleton, weights)
    report = Report(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=package_versions(),
        machine=machine_facts(job.device),
        model=before,
        recipe=job.recipe.to_dict(),
        calibration=calibration_record(job.tokens, job.seed) if job.tokens else None,
        stages=(record,),
        size=SizeRecord(
            num_parameters=num_parameters,
            num_bytes=size_bytes,
            num_zeros=zeros,
            num_blocks=len(skeleton.blocks),
        ),
        seconds=clock.seconds(),
        peak_memory_bytes=peak_memory_bytes(),
        verification=probe,
    )
    _complete(job, weights, report, journal.digests())
    close_job(folder)
    return report


def _size_before(job: StreamingJob) -> tuple[int, int]:
    """Parameters and bytes, which pruning does not change."""
    model = job.skeleton.model
    return sum(parameter.numel() for parameter in model.parameters()), num_bytes(model)


def _prune(
    job: StreamingJob,
    folder: Path,
    source: BlockSource,
    walk: BlockWalk,
    journal: BlockJournal,
    clock: StepClock,
) -> PruneRecord:
    with clock.measured(f"stage 1: {job.stage.method}"), full_precision_products():
        inputs, trace = _inputs_of_first_block(
            job, folder, source, walk, is_finished=journal.is_finished(0)
        )
        return BlockPruner(
            job.skeleton.blocks,
            job.stage,
            job.plan,
            job.device,
            clock.progress,
            opened=walk.opened,
            finished=journal,
        ).run(inputs, trace)


def _inputs_of_first_block(
    job: StreamingJob, folder: Path, source: BlockSource, walk: BlockWalk, *, is_finished: bool
) -> tuple[BlockInputs | None, Trace | None]:
    """The inputs of block 0, made with only what is before it in memory.

    `is_finished`: block 0 was pruned by an earlier run, so that it need not be read a second time.
    """
    model, blocks, tokens = job.skeleton.model, job.skeleton.blocks, job.tokens
    if tokens is None:
        return None, None
    source.load_rest()
    # In the dtype and on the device of the model's own run: the CPU, where the embedding is.
    source.load_block(0, then=None if is_finished else 0)
    trace = trace_without_weights(model, blocks, tokens.samples[0].unsqueeze(0))
    release(blocks.modules[0].modules())
    inputs = capture_inputs(
        model,
        blocks,
        trace,
        tokens,
        tokens_per_batch(job.device),
        job.device,
        buffer_maker(job.activations, job.device, folder),
    )
    release(modules_outside(model, blocks))
    walk.watch(inputs, trace)
    return inputs, trace


def _fingerprint(skeleton: Skeleton, weights: Path) -> VerificationRecord:
    """Run the written weights as they are read back, a block at a time."""
    source = BlockSource(weights, skeleton.model, skeleton.blocks, "mapped")
    try:
        source.load_rest()
        with blocks_on_demand(skeleton, source):
            return fingerprint(skeleton.model)
    finally:
        source.close()


def _complete(job: StreamingJob, weights: Path, report: Report, digests: Mapping[str, str]) -> None:
    """Add what else belongs to a checkpoint, and give the folder its name."""
    skeleton = job.skeleton
    with space_errors(job.output):
        skeleton.model.config.save_pretrained(weights)
        if skeleton.tokenizer is not None:
            skeleton.tokenizer.save_pretrained(weights)
        generation = skeleton.folder / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, weights / generation.name)
        (weights / RECIPE_FILE).write_text(job.recipe.to_yaml(), encoding="utf-8")
        (weights / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        card = model_card(job.recipe, report, is_compact=False)
        (weights / "README.md").write_text(card, encoding="utf-8")
        # Of files that a killed run did not finish; safetensors writes under a name of its own.
        for left in (*weights.glob("*.partial"), *weights.glob(".tmp*")):
            left.unlink()
        write_manifest(weights, digests)
        make_readable(weights)
        flush_folder(weights)
        check_output(job.output, job.overwrite)
        put_in_place(weights, job.output)
