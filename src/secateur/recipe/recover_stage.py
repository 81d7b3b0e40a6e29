"""The stage that trains a compressed model until its quality is back."""

from dataclasses import dataclass
from typing import Literal, get_args

from secateur.recipe.require import require
from secateur.recipe.training import Training

RecoverMethod = Literal["gates", "linears", "all", "lora", "head_and_last_blocks"]

# Peak learning rates at a width of 256 where none is given; from trials (see bench/NOTES.md).
DEFAULT_LEARNING_RATE: dict[RecoverMethod, float] = {
    "gates": 1e-3,
    "linears": 5e-4,
    "all": 5e-4,
    "lora": 5e-3,
    "head_and_last_blocks": 1e-3,
}

_METHOD_OF_OPTION: dict[str, RecoverMethod] = {
    "last_blocks": "head_and_last_blocks",
    "lora_rank": "lora",
    "lora_alpha": "lora",
}


@dataclass(frozen=True, kw_only=True)
class RecoverStage:
    """Train part of the model on text. Removed weights stay zero, factors stay factors.

    `gates` trains the matrices of the MLPs (gate_proj, up_proj, down_proj and what other families
    call them), `linears` all matrices of the blocks, `all` everything, `lora` adapters on every
    matrix of the blocks that are merged at the end, `head_and_last_blocks` the head and the last
    `last_blocks` blocks (arXiv 2411.15558).
    """

    stage: Literal["recover"] = "recover"
    method: RecoverMethod = "gates"
    training: Training
    teacher: str | None = None
    """Folder of the dense model; None: the model as it was before the first stage."""
    near_cut: int | None = None
    """Train only blocks at most this far from a place where blocks were dropped."""
    last_blocks: int = 3
    """Of `head_and_last_blocks`."""
    lora_rank: int = 8
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        methods = get_args(RecoverMethod)
        require(
            self.method in methods,
            f"recover: expected method one of {', '.join(methods)}, got {self.method!r}",
        )
        for name in ("last_blocks", "lora_rank"):
            value = getattr(self, name)
            require(value >= 1, f"recover: expected {name} of at least 1, got {value}")
        require(
            0.0 < self.lora_alpha < float("inf"),
            f"recover: expected lora_alpha above 0, got {self.lora_alpha}",
        )
        require(
            self.near_cut is None or self.near_cut >= 1,
            f"recover: expected near_cut of at least 1, got {self.near_cut}",
        )
        require(
            self.near_cut is None or self.method in ("gates", "linears", "lora"),
            f"recover: near_cut is for gates, linears and lora, not for {self.method}",
        )
        for name, method in _METHOD_OF_OPTION.items():
            default = type(self).__dataclass_fields__[name].default
            require(
                self.method == method or getattr(self, name) == default,
                f"recover: {name} is for {method}, not for {self.method}",
            )

    @property
    def needs_calibration(self) -> bool:
        """Training has its own data."""
        return False

    def learning_rate(self, width: int) -> float:
        """Peak for a model of this width: as asked, else the method's default."""
        return self.training.rate(width, DEFAULT_LEARNING_RATE[self.method])
