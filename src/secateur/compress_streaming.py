"""The chain for models that do not fit in memory: a block is read, changed, written, forgotten.

It runs the stage that `compress.py` runs, on the same inputs in the same order: the weights that it
writes are the same, bit for bit.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from secateur.calibration.data import CalibrationSource
from secateur.checkpoint.card import model_card
from secateur.checkpoint.fingerprint import fingerprint
from secateur.checkpoint.form import CheckpointFormat
from secateur.checkpoint.manifest import write_manifest
from secateur.checkpoint.write import (
    RECIPE_FILE,
    check_output,
    flush_folder,
    make_readable,
    put_in_place,
    remove_old,
    space_errors,
    write_card,
)
from secateur.clock import StepClock
from secateur.integrations.transformers_quantizer import mark_compressed
from secateur.models.device import slow_products_note
from secateur.models.measure import num_bytes, num_logical_parameters
from secateur.prepare import DEFAULT_SAMPLES, CalibrationChoice
from secateur.prepare_streaming import (
    StreamingJob,
    as_loaded,
    estimate_streaming,
    prepare_streaming,
)
from secateur.progress import Progress, default_progress
from secateur.recipe import RecipeLike
from secateur.report.record import (
    REPORT_FILE,
    Report,
    SizeRecord,
    VerificationRecord,
    load_report,
)
from secateur.run_report import calibration_record, model_record, report_of
from secateur.run_streamed import run_streamed
from secateur.streaming.activations import Home
from secateur.streaming.estimate import check_room
from secateur.streaming.facts import job_facts
from secateur.streaming.finished import WRITERS
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
from secateur.streaming.skeleton import Skeleton
from secateur.streaming.source import BlockSource, Held
from secateur.streaming.walk import blocks_on_demand
from secateur_kernels.precision import dtype_name


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
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    overwrite: bool = False,
    checkpoint_format: CheckpointFormat = "auto",
    activations: Home = "auto",
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Prune or factor a model on disk block by block, without ever holding it whole.

    In memory at a time: one block and the next one that is being read, what the method sums up,
    and the hidden states of the calibration tokens twice. After each block its weights and a
    journal entry are on disk, in a hidden folder beside `output`; killed at any moment, a run with
    the same arguments and `resume` goes on after the last finished block and ends bit for bit as
    one that was never interrupted.

    Args:
        model: a folder or a Hub id.
        recipe: one prune or factor stage that needs no gradients of the whole model; see
            `compress_with_report`.
        calibration: as of `compress_with_report`.
        output: folder to write.
        num_calibration_samples: windows to draw from text.
        max_seq_length: tokens in a window; by default 2048, or the model's context if shorter.
        seed: of the draw.
        device: where blocks run; by default the CPU.
        dtype: to read the weights in.
        revision: of a Hub repository.
        overwrite: replace an output folder that is not empty, once the new one is complete.
        checkpoint_format: as of `compress_with_report`, but that factors are never multiplied
            back.
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
    dtype = dtype_name(dtype)
    clock = StepClock(progress or default_progress())
    with ExitStack() as in_use:
        in_use.callback(clock.progress.close)
        clock.progress.begin("check", 1)
        with clock.measured("check"):
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
                checkpoint_format=checkpoint_format,
                activations=activations,
            )
            needed = estimate_streaming(job)
            if not ended:
                check_room(needed, job.output, bytes_in_job(job.output))
            # Settled once: the room that was checked is that of this place.
            job = replace(job, activations=needed.activations)
        note = slow_products_note(job.skeleton.model, job.device) if job.tokens else ""
        clock.progress.advance(note)
        with clock.step("fingerprint the model"):
            facts = job_facts(
                job.skeleton.folder, job.recipe, job.tokens, job.device, dtype, job.compact
            )
        folder = in_use.enter_context(open_job(job.output, facts))
        if ended:
            remove_old(folder / WEIGHTS_FOLDER, job.output)
            close_job(folder)
            return load_report(job.output)
        return _run(job, folder, clock)


def _run(job: StreamingJob, folder: Path, clock: StepClock) -> Report:
    skeleton = job.skeleton
    shards = ShardPlan(skeleton.model, skeleton.blocks)
    before = model_record(as_loaded(skeleton), job.inventory)
    # On a CPU writers would take the cores, and hold blocks more in memory.
    on_cpu = job.device.type == "cpu"
    writers = 0 if on_cpu else WRITERS
    # What is copied to a device may be overwritten.
    held: Held = "copied" if on_cpu else "reused"
    source = BlockSource(skeleton.folder, skeleton.model, skeleton.blocks, held)
    try:
        record, journal = run_streamed(job, folder, source, shards, writers, clock)
        with clock.step("write what is outside the blocks"):
            zeros = journal.num_zeros() + write_rest(
                folder / WEIGHTS_FOLDER, skeleton.model, skeleton.blocks, source, shards, writers
            )
    finally:
        source.close()
    # Where all blocks were finished before, none was opened.
    journal.build_layers()
    # No rank may be worth its parameters: then it is a plain model.
    is_compact = job.compact and bool(mark_compressed(skeleton.model))
    weights = folder / WEIGHTS_FOLDER
    with clock.step("run what was written"):
        probe = _fingerprint(skeleton, weights)
    size = SizeRecord(
        num_parameters=num_logical_parameters(skeleton.model),
        num_bytes=num_bytes(skeleton.model),
        num_zeros=zeros,
        num_blocks=len(skeleton.blocks),
    )
    report = report_of(
        model=before,
        recipe=job.recipe,
        calibration=calibration_record(job.tokens, job.seed) if job.tokens else None,
        stages=(record,),
        size=size,
        verification=probe,
        device=job.device,
        clock=clock,
    )
    _complete(job, weights, report, journal.digests(), is_compact)
    close_job(folder)
    return report


def _fingerprint(skeleton: Skeleton, weights: Path) -> VerificationRecord:
    """Run the written weights as they are read back, a block at a time."""
    source = BlockSource(weights, skeleton.model, skeleton.blocks, "mapped")
    try:
        source.load_rest()
        with blocks_on_demand(skeleton, source):
            return fingerprint(skeleton.model)
    finally:
        source.close()


def _complete(
    job: StreamingJob,
    weights: Path,
    report: Report,
    digests: Mapping[str, str],
    is_compact: bool,
) -> None:
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
        card = model_card(job.recipe, report, is_compact)
        write_card(weights, card)
        # Of files that a killed run did not finish; safetensors writes under a name of its own.
        for left in (*weights.glob("*.partial"), *weights.glob(".tmp*")):
            left.unlink()
        write_manifest(weights, digests)
        make_readable(weights)
        flush_folder(weights)
        check_output(job.output, job.overwrite)
        put_in_place(weights, job.output)
