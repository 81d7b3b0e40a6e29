"""Compact checkpoints as dense ones, which any tool loads: the way out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur.checkpoint.compact import needs_own_format
from secateur.checkpoint.fingerprint import fingerprint
from secateur.checkpoint.load import load_model
from secateur.checkpoint.manifest import manifest_faults
from secateur.checkpoint.write import check_output, check_saving, check_space, write_checkpoint
from secateur.clock import StepClock
from secateur.errors import SecateurError, VerificationError
from secateur.models.measure import num_bytes
from secateur.models.sublayers import removed_sublayers
from secateur.progress import Progress, default_progress
from secateur.recipe import as_recipe
from secateur.report.record import Report, load_report
from secateur.run_report import size_record


def make_dense(
    source: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    max_shard_size: str | int = "5GB",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a compact checkpoint as `compress` with format dense would have written it.

    2:4 weights are the same with their zeros stored; factors are multiplied in fp32 and rounded to
    the checkpoint's dtype. The report is the compact one's, with the sizes and logits of the
    dense one.

    Args:
        source: a folder that Secateur wrote; its tokenizer goes with it.
        output: the folder to make.
        overwrite: replace a folder that is not empty, if Secateur wrote it.
        max_shard_size: of the weight files, as transformers reads it.
        trust_remote_code: run Python code that comes with the model.
        progress: told how far the work is; bars on a terminal by default.

    Returns:
        The report, as it was written.

    Raises:
        VerificationError: files of the source are not those that were written.
        SecateurError: the source is no compact checkpoint with a report, lacks attention or MLP in
            some blocks, which a dense one cannot say, or the output cannot be written; nothing was
            written.
    """
    source, output = Path(source), Path(output)
    if not source.is_dir():
        raise SecateurError(f"expected the folder of a checkpoint, got {source}")
    place = check_output(output, overwrite, source)
    compact = load_report(source)
    if faults := manifest_faults(source):
        raise VerificationError(f"{source} is not as it was written: {'; '.join(faults[:3])}")
    clock = StepClock(progress or default_progress())
    try:
        with clock.step("load"):
            loaded = load_model(source, trust_remote_code=trust_remote_code)
        model: Any = loaded.model
        if not needs_own_format(model):
            raise SecateurError(f"expected a compact checkpoint, but {source} is dense already")
        if removed := removed_sublayers(model):
            raise SecateurError(
                f"{source} is without {next(iter(removed))}: a dense checkpoint has attention and "
                "MLP in every block"
            )
        check_saving(model, max_shard_size)
        with clock.step("make dense"):
            model.dequantize()
        check_space(place, num_bytes(model))
        report = replace(compact, size=size_record(model), verification=fingerprint(model))
        with clock.step("save and verify"):
            return write_checkpoint(
                model,
                loaded.tokenizer,
                as_recipe(compact.recipe),
                lambda: report,
                place,
                overwrite=overwrite,
                max_shard_size=max_shard_size,
                trust_remote_code=trust_remote_code,
            )
    finally:
        clock.progress.close()
