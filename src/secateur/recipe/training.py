"""How a model is trained after it was compressed: what the stages `recover` and `inherit` share."""

from dataclasses import dataclass
from typing import Literal, get_args

from secateur.recipe.require import require
from secateur.seeds import require_seed

Loss = Literal["cross_entropy", "distillation"]
Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["auto", "float32", "bfloat16"]
DataFormat = Literal["auto", "text", "chat"]

_RATED_WIDTH = 256

_CHOICES = {
    "loss": get_args(Loss),
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
    "format": get_args(DataFormat),
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """Data, length, loss and optimizer (AdamW) of one training."""

    data: tuple[str, ...]
    """Text files, folders, JSON lines or `datasets` names."""
    format: DataFormat = "auto"
    """`chat`: prompts and responses, with the loss on responses only."""
    evaluation: str | None = None
    """Text to measure the loss on while training; None: windows held out of `data`."""
    held_out: int = 64
    """Windows held out, or at most taken from `evaluation`."""
    streaming: bool = False
    """Tokenise while training instead of before; needs `evaluation`."""
    max_seq_length: int = 512
    """Tokens in a window."""
    num_tokens: int | None = None
    """To train on; None: the data `epochs` times."""
    epochs: float = 1.0
    batch_size: int = 8
    """Windows a step on one device."""
    gradient_accumulation: int = 1
    """Batches that share an optimizer step."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    learning_rate: float | None = None
    """Peak; None: the method's default, smaller for wide models (see `rate`)."""
    schedule: Schedule = "cosine"
    warmup: float = 0.03
    """Share of the steps in which the rate rises."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    loss: Loss = "cross_entropy"
    """`distillation`: of the dense model's next-token distribution."""
    temperature: float = 1.0
    """Of distillation."""
    distillation_weight: float = 1.0
    """Share of the distillation in the loss; the rest is cross-entropy."""
    block_weight: float = 0.0
    """Weight of the relative squared error of what leaves each block, against the dense model."""
    precision: Precision = "auto"
    """Of products; weights and optimizer are fp32 in any case. `auto`: bfloat16 on a GPU that has
    it, else float32."""
    eval_steps: int = 100
    """Optimizer steps between evaluations; each also saves a checkpoint."""
    patience: int | None = None
    """Stop after this many evaluations without a better loss; None: never."""
    keep_best: bool = True
    """End with the weights of the best evaluation instead of the last step's."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.data) > 0, "training: `data` must name at least one text")
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            require(
                value in known, f"training: expected {name} one of {', '.join(known)}, got {value}"
            )
        for name in (
            "held_out",
            "max_seq_length",
            "batch_size",
            "gradient_accumulation",
            "eval_steps",
        ):
            least = 2 if name == "max_seq_length" else 1
            value = getattr(self, name)
            require(value >= least, f"training: expected {name} of at least {least}, got {value}")
        for name in ("num_tokens", "patience"):
            value = getattr(self, name)
            require(
                value is None or value >= 1,
                f"training: expected {name} of at least 1, got {value}",
            )
        for name in ("epochs", "temperature", "max_grad_norm"):
            value = getattr(self, name)
            require(0.0 < value < float("inf"), f"training: expected {name} above 0, got {value}")
        require(
            self.learning_rate is None or 0.0 < self.learning_rate < float("inf"),
            f"training: expected a learning_rate above 0, got {self.learning_rate}",
        )
        for name in ("warmup", "distillation_weight"):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"training: expected {name} between 0 and 1, got {value}")
        for name in ("weight_decay", "block_weight"):
            value = getattr(self, name)
            require(
                0.0 <= value < float("inf"), f"training: expected {name} of at least 0, got {value}"
            )
        require_seed(self.seed, "training: ")
        self._check_together()

    def _check_together(self) -> None:
        is_distilled = self.loss == "distillation"
        require(
            is_distilled or (self.temperature == 1.0 and self.distillation_weight == 1.0),
            "training: temperature and distillation_weight need loss: distillation",
        )
        require(
            self.num_tokens is None or self.epochs == 1.0,
            f"training: expected num_tokens or epochs, got both ({self.num_tokens} and "
            f"{self.epochs})",
        )
        require(
            not self.streaming or (self.evaluation is not None and self.num_tokens is not None),
            "training: streaming needs `evaluation`, a text of its own, and `num_tokens`",
        )
        require(
            self.patience is None or self.keep_best,
            "training: patience needs keep_best, or the worse weights would be kept",
        )

    def rate(self, width: int, default: float) -> float:
        """The peak learning rate: as asked, else a default that was found at a width of 256.

        Wider models get less, in inverse proportion: so rates of matrices scale under Adam (muP,
        arXiv 2203.03466). Narrower ones get no more.

        Args:
            width: features of the model's hidden states.
            default: peak at a width of up to 256.
        """
        return self.learning_rate or default * min(1.0, _RATED_WIDTH / width)

    @property
    def minimised(self) -> str:
        """What training losses are, in a word or two: `cross_entropy` if they are nothing else."""
        return self.loss if self.block_weight == 0.0 else f"{self.loss} and block outputs"

    @property
    def needs_teacher(self) -> bool:
        """Whether the dense model has to be at hand while training."""
        return self.loss == "distillation" or self.block_weight > 0.0
