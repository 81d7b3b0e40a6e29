"""The chain: model -> blocks -> calibration -> stages -> report -> checkpoint.

The one file that sees every stage; it reads like the data path.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn
from typing_extensions import Unpack

from secateur.ancestry import ancestry_of
from secateur.calibration.data import CalibrationSource
from secateur.checkpoint.fingerprint import fingerprint
from secateur.checkpoint.form import CheckpointFormat, give_form, require_known_format
from secateur.checkpoint.write import check_output, check_saving, check_space, write_checkpoint
from secateur.clock import StepClock
from secateur.errors import SecateurError
from secateur.evaluate.forward import evaluating
from secateur.models.device import slow_products_note
from secateur.models.measure import num_bytes
from secateur.prepare import (
    DEFAULT_SAMPLES,
    CalibrationChoice,
    check_calibration,
    check_form,
    check_model,
    draw_tokens,
    open_model,
    run_device,
)
from secateur.prepare_training import (
    check_resume,
    prepare_trainings,
    training_place,
)
from secateur.progress import Progress, default_progress
from secateur.recipe import RecipeLike, RecoverStage, as_recipe
from secateur.report.record import Report
from secateur.run_report import (
    EvaluationText,
    calibration_record,
    measure_quality,
    model_record,
    report_of,
    size_record,
)
from secateur.run_stages import run_stages
from secateur.settings import read_settings
from secateur_kernels.precision import dtype_name


class CompressOptions(TypedDict, total=False):
    """The keyword arguments of `compress_with_report` that have defaults."""

    tokenizer: Any
    num_calibration_samples: int
    max_seq_length: int | None
    seed: int
    device: str | torch.device | None
    dtype: str | torch.dtype
    revision: str | None
    trust_remote_code: bool
    overwrite: bool
    max_shard_size: str | int
    checkpoint_format: CheckpointFormat
    evaluation_text: str | Path | None
    cache: str | Path | None
    resume: bool
    progress: Progress | None


def compress(
    model: nn.Module | str | Path,
    recipe: RecipeLike,
    *,
    calibration: CalibrationSource | None = None,
    output: str | Path | None = None,
    **options: Unpack[CompressOptions],
) -> nn.Module:
    """Compress a model: `compress_with_report` (which explains all options) without its report.

    Returns:
        The compressed model: the very object that was given, changed in place, or the one that
        was loaded.
    """
    compressed, _ = compress_with_report(
        model, recipe, calibration=calibration, output=output, **options
    )
    return compressed


def compress_with_report(
    model: nn.Module | str | Path,
    recipe: RecipeLike,
    *,
    calibration: CalibrationSource | None = None,
    output: str | Path | None = None,
    tokenizer: Any | None = None,
    num_calibration_samples: int = DEFAULT_SAMPLES,
    max_seq_length: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    max_shard_size: str | int = "5GB",
    checkpoint_format: CheckpointFormat = "auto",
    evaluation_text: str | Path | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[nn.Module, Report]:
    """Run a recipe on a model, and write the result as a checkpoint if asked.

    Everything that can be wrong with the arguments is found before the model is changed. Under
    `torchrun` or `accelerate launch` every process does the same but for training, where each takes
    its share, and the first one writes.

    Args:
        model: a folder, a Hub id, or a transformers causal language model, which is changed in
            place.
        recipe: a `Recipe`, its plain values, a stage or a list of stages, or the path of a YAML or
            JSON file.
        calibration: where calibration tokens come from (see `load_calibration`): a path, texts,
            or a LongTensor [samples, length]. Needed where the recipe's `needs_calibration` says
            so: by all methods that prune or factor but plain magnitude, svd and laser, and by
            drop_blocks that measures; where it is given, output errors are measured in any case.
        output: folder to write; None to return the model only.
        tokenizer: needed with a model object when calibration is text; saved with the output.
        num_calibration_samples: windows to draw from text.
        max_seq_length: tokens in a window; by default 2048, or the model's context if shorter.
        seed: of the draw.
        device: where blocks run, one at a time; by default where the model is.
        dtype: to load the weights in, such as `bfloat16` or `torch.bfloat16`; `auto` keeps the
            checkpoint's own.
        revision: of a Hub repository.
        trust_remote_code: run Python code that comes with the model.
        overwrite: replace an output folder that is not empty, once the new one is complete.
        max_shard_size: of the weight files: bytes, or a word such as 500MB.
        checkpoint_format: `dense`: zeros are stored and factors multiplied back, any tool loads it.
            `compact`: exactly 2:4 and factored layers are stored and returned as such; loads after
            `import secateur`. `auto`: compact if a stage made factors or took attention or MLP out
            of blocks, else dense; so is what your own `save_pretrained` writes without `output`.
        evaluation_text: a text file to measure perplexity on, before and after.
        cache: folder for tokenised training texts; by default as the settings say.
        resume: training stages go on from the checkpoints that an interrupted run with the same
            arguments left beside `output`; stages before them run again.
        progress: who is told how far the work is; by default bars on a terminal.

    Returns:
        (model, report).

    Raises:
        SecateurError: bad input; nothing was written.
    """
    if torch.is_inference_mode_enabled():
        raise SecateurError(
            "expected to be called outside of torch.inference_mode(), whose tensors cannot be "
            "trained; torch.no_grad() does no harm"
        )
    recipe = as_recipe(recipe)
    require_known_format(checkpoint_format)
    if output is not None:
        check_output(Path(output), overwrite)
    check_calibration(calibration, recipe)
    if resume:
        check_resume(recipe)
    clock = StepClock(progress or default_progress())
    with ExitStack() as in_use:
        in_use.callback(clock.progress.close)
        with clock.step("load"):
            only_trains = all(isinstance(stage, RecoverStage) for stage in recipe.stages)
            loaded = open_model(
                model,
                tokenizer,
                revision,
                dtype_name(dtype),
                trust_remote_code,
                accept_compact=only_trains,
            )
            blocks_device = run_device(device, loaded.model)
        in_use.enter_context(evaluating(loaded.model))
        with clock.step("check"):
            check_form(loaded.model, recipe, checkpoint_format)
            inventory = check_model(loaded.model, recipe)
            if output is not None:
                check_output(Path(output), overwrite, loaded.folder)
                check_saving(loaded.model, max_shard_size)
                check_space(Path(output), num_bytes(loaded.model))
        choice = CalibrationChoice(calibration, num_calibration_samples, max_seq_length, seed)
        clock.progress.begin("draw calibration tokens", 1)
        with clock.measured("draw calibration tokens"):
            tokens = draw_tokens(choice, recipe, loaded)
        clock.progress.advance(slow_products_note(loaded.model, blocks_device) if tokens else "")
        place = in_use.enter_context(training_place(output, cache, resume, device))
        calibrated_on = tokens.sha256() if tokens else ""
        ancestry = ancestry_of(loaded)
        trainings = prepare_trainings(loaded, ancestry, recipe, place, clock, calibrated_on)
        before = model_record(loaded, inventory)
        text = EvaluationText(evaluation_text, max_seq_length)
        quality = measure_quality(loaded, text, "before", blocks_device, clock)
        stages = run_stages(loaded.model, recipe, tokens, trainings, ancestry, blocks_device, clock)
        with clock.step("bring into form"):
            give_form(loaded.model, checkpoint_format, output is not None)
        quality += measure_quality(loaded, text, "after", blocks_device, clock)
        after = size_record(loaded.model)
        probe = fingerprint(loaded.model)

        def make_report() -> Report:
            return report_of(
                model=before,
                recipe=recipe,
                calibration=calibration_record(tokens, seed) if tokens else None,
                stages=stages,
                size=after,
                verification=probe,
                device=blocks_device,
                clock=clock,
                quality=quality,
            )

        if output is None or read_settings().rank != 0:
            return loaded.model, make_report()
        with clock.step("save and verify"):
            report = write_checkpoint(
                loaded.model,
                loaded.tokenizer,
                recipe,
                make_report,
                Path(output),
                overwrite=overwrite,
                max_shard_size=max_shard_size,
                trust_remote_code=trust_remote_code,
            )
        for training in trainings.values():
            training.checkpoints.remove()
        return loaded.model, report
