"""`secateur compress --stream` and `--dry-run`: from disk to disk, and what that will need."""

from dataclasses import dataclass
from pathlib import Path

import typer
from rich.table import Table

from secateur.checkpoint.form import CheckpointFormat
from secateur.compress_streaming import compress_streaming
from secateur.errors import SecateurError
from secateur.prepare import CalibrationChoice
from secateur.prepare_streaming import estimate_streaming, prepare_streaming
from secateur.recipe import Recipe
from secateur.report.numbers import format_bytes, format_seconds
from secateur.report.record import Report
from secateur.streaming.activations import Home
from secateur.streaming.estimate import Estimate
from secateur.streaming.job import job_folder

_INTERRUPTED = "interrupted: nothing was written"
_INTERRUPTED_KEPT = (
    "interrupted: finished blocks are kept, and the same command with --resume goes on after them"
)


@dataclass(frozen=True)
class StreamedRun:
    """What `compress_streaming` is called with."""

    model: str
    recipe: Recipe
    tokens: CalibrationChoice
    output: Path
    device: str | None
    dtype: str
    revision: str | None
    overwrite: bool
    checkpoint_format: CheckpointFormat
    activations: Home

    def run(self, resume: bool) -> Report:
        """Compress, and write the output; where it is interrupted, say what is left of it."""
        try:
            return self._run(resume)
        except KeyboardInterrupt:
            kept = job_folder(self.output).is_dir()
            typer.echo(_INTERRUPTED_KEPT if kept else _INTERRUPTED, err=True)
            raise

    def _run(self, resume: bool) -> Report:
        return compress_streaming(
            self.model,
            self.recipe,
            calibration=self.tokens.source,
            output=self.output,
            num_calibration_samples=self.tokens.num_samples,
            max_seq_length=self.tokens.max_seq_length,
            seed=self.tokens.seed,
            device=self.device,
            dtype=self.dtype,
            revision=self.revision,
            overwrite=self.overwrite,
            checkpoint_format=self.checkpoint_format,
            activations=self.activations,
            resume=resume,
        )

    def estimate(self) -> Estimate:
        """What that will need; nothing is written."""
        return estimate_streaming(
            prepare_streaming(
                self.model,
                self.recipe,
                self.tokens,
                output=self.output,
                device=self.device,
                dtype=self.dtype,
                revision=self.revision,
                overwrite=self.overwrite,
                checkpoint_format=self.checkpoint_format,
                activations=self.activations,
            )
        )


def require_streamable(text: Path | None, trust_remote_code: bool, resumes_nothing: bool) -> None:
    """Refuse options that go with a model that is whole in memory.

    Raises:
        SecateurError: one of them was given.
    """
    if text is not None:
        raise SecateurError(
            "--text measures the whole model; leave it out with --stream, and run `secateur "
            "evaluate` on the output"
        )
    if trust_remote_code:
        raise SecateurError(
            "--stream takes models that transformers has itself, without own code: leave out "
            "--trust-remote-code, or compress without --stream"
        )
    if resumes_nothing:
        raise SecateurError("--dry-run does nothing that --resume could go on with: give one")


def require_no_streaming(activations: str) -> None:
    """Raise SecateurError if an option of --stream was given without it."""
    if activations != "auto":
        raise SecateurError(
            "--activations says where --stream keeps hidden states: add --stream or leave it out"
        )


def estimate_table(estimate: Estimate) -> Table:
    """One row a need."""
    table = Table("--stream needs", "about")
    gpu, hidden = estimate.device_bytes, format_bytes(estimate.activation_bytes)
    rows = {
        "hidden states": f"{hidden}, kept in: {estimate.activations}",
        "largest block": format_bytes(estimate.largest_block_bytes),
        "memory of the GPU": format_bytes(gpu) if gpu else "none",
        "memory of the host": format_bytes(estimate.host_bytes),
        "disk": format_bytes(estimate.disk_bytes),
        "time": f"{format_seconds(estimate.seconds)}, reading and writing not counted",
        "(the whole model)": f"({format_bytes(estimate.model_bytes)})",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
