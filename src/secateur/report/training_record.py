"""What trainings did, for the report. Losses are mean cross-entropies a token, in nats."""

from dataclasses import dataclass
from typing import Literal

Ending = Literal["finished", "early", "diverged"]


@dataclass(frozen=True, kw_only=True)
class TrainingPoint:
    """The state of a training at one of its evaluations."""

    step: int
    num_tokens: int
    """Trained on so far, over all processes."""
    seconds: float
    """Since the training began, evaluations and checkpoints included."""
    train_loss: float | None
    """What was minimised, averaged over the steps since the point before; None at the start."""
    held_out_loss: float


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What was trained on and what the loss was measured on."""

    source: str
    num_windows: int
    max_seq_length: int
    tokens_sha256: str
    held_out_source: str
    num_held_out_windows: int
    remarks: tuple[str, ...] = ()
    """Of what was trained on: examples cut or left out, documents that run into each other."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One training."""

    data: DataRecord
    points: tuple[TrainingPoint, ...]
    num_trained_parameters: int
    num_steps: int
    num_tokens: int
    seconds: float
    """Of steps alone."""
    loss_before: float
    loss_after: float
    """Of the weights that were kept, in the dtype in which they are kept."""
    kept_step: int
    """The step whose weights were kept."""
    ending: Ending
    note: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Over the steps."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class RecoverRecord:
    """What a recover stage did."""

    stage: Literal["recover"] = "recover"
    method: str
    learning_rate: float
    minimised: str = "cross_entropy"
    """The kind of the run's training losses; held-out losses are cross-entropies always."""
    run: TrainingRun
    dense_loss: float | None
    """Of the dense model on the same windows; None where there was none to measure."""
    warnings: tuple[str, ...] = ()
    seconds: float

    @property
    def recovered(self) -> float | None:
        """Share of the loss that compression had cost which training won back."""
        if self.dense_loss is None or self.run.loss_before <= self.dense_loss:
            return None
        lost = self.run.loss_before - self.dense_loss
        return (self.run.loss_before - self.run.loss_after) / lost


@dataclass(frozen=True, kw_only=True)
class InheritRound:
    """One round: a number of blocks, trained."""

    num_blocks: int
    run: TrainingRun


@dataclass(frozen=True, kw_only=True)
class InheritRecord:
    """What an inherit stage did."""

    stage: Literal["inherit"] = "inherit"
    start: str
    part: str
    learning_rate: float
    minimised: str = "cross_entropy"
    """The kind of the rounds' training losses; held-out losses are cross-entropies always."""
    parent_blocks: int
    parent_loss: float
    """On the held-out windows: the target."""
    tolerance: float
    rounds: tuple[InheritRound, ...]
    warnings: tuple[str, ...] = ()
    seconds: float

    @property
    def loss(self) -> float:
        """Of the last round's weights."""
        return self.rounds[-1].run.loss_after

    @property
    def matched(self) -> bool:
        """Whether the parent's loss was reached."""
        return self.loss <= self.parent_loss + self.tolerance
