"""The stage that removes weights from matrices."""

from dataclasses import dataclass
from typing import Literal, get_args

from secateur.recipe.reconstruction import Preset, Reconstruction
from secateur.recipe.require import require
from secateur.recipe.sparsity import UNSTRUCTURED, Sparsity, parse_sparsity

Method = Literal[
    "magnitude", "wanda", "sparsegpt", "ria", "gblm", "rgs", "wanda++", "admm", "best-2:4"
]
Score = Literal["magnitude", "wanda", "ria", "gblm", "rgs"]
Update = Literal["none", "least_squares", "conjugate_gradient", "admm", "sparsegpt"]
InputNorm = Literal["summed", "averaged"]
ComparisonGroup = Literal["row", "matrix", "block"]

# The comparison group of unstructured sparsity in each method's own publication.
PUBLISHED_COMPARISON_GROUP: dict[Method, ComparisonGroup] = {
    "magnitude": "matrix",
    "wanda": "row",
    "sparsegpt": "block",
    "ria": "matrix",
    "gblm": "row",
    "rgs": "row",
    "wanda++": "row",
    "admm": "matrix",
    "best-2:4": "matrix",
}

# What a method scores weights by; the others settle masks and weights together, by an update.
_SCORES: dict[Method, Score] = {
    "magnitude": "magnitude",
    "wanda": "wanda",
    "ria": "ria",
    "gblm": "gblm",
    "rgs": "rgs",
    "wanda++": "rgs",
}
_UPDATES: dict[Method, Update] = {"sparsegpt": "sparsegpt", "admm": "admm", "best-2:4": "admm"}
_PRESETS: dict[Method, Preset] = {"wanda++": "wanda++", "best-2:4": "best"}


@dataclass(frozen=True, kw_only=True)
class LayerOverride:
    """Another sparsity for the layers that `targets` match; the last matching override holds."""

    targets: tuple[str, ...]
    pattern: str = UNSTRUCTURED
    sparsity: float | None = None

    def __post_init__(self) -> None:
        require(len(self.targets) > 0, "override: `targets` must name at least one layer")
        parse_sparsity(self.pattern, self.sparsity)


@dataclass(frozen=True, kw_only=True)
class PruneStage:
    """Remove weights from the linear layers of every block: score -> mask -> swaps -> update ->
    regional optimizer.

    `method` names the whole chain. `magnitude`, `wanda`, `ria`, `gblm` (the gradient of the
    whole model's loss) and `rgs` (Wanda++'s regional gradient score) score weights and keep them
    as they are. `sparsegpt` and `admm` settle mask and weights together. `wanda++` is `rgs`, and
    `best-2:4` is `admm`, with the regional optimizer.
    The fields `swaps`, `update` and `reconstruct` add to a method, or change what it does.

    `targets` and `ignore` hold full module names, class names (`Linear` stands for every matrix
    that multiplies tokens, whatever class holds it), or regular expressions after `re:`.
    """

    stage: Literal["prune"] = "prune"
    method: Method = "wanda"
    pattern: str = UNSTRUCTURED
    sparsity: float | None = None
    comparison_group: ComparisonGroup | None = None
    """Unstructured only: weights compete within a `row`, the whole `matrix`, or a `block` of
    `block_size` columns and all rows. None means the method's published choice."""
    targets: tuple[str, ...] = ("Linear",)
    ignore: tuple[str, ...] = ()
    overrides: tuple[LayerOverride, ...] = ()
    block_size: int = 128
    """Columns that SparseGPT treats together, and the width of the comparison group `block`."""
    damping: float = 0.01
    """SparseGPT, least squares: added to the Hessian's diagonal, as a fraction of its mean."""
    alpha: float = 100.0
    """Weight of the gradient in the score of `rgs`, `wanda++` and `gblm`."""
    norm: InputNorm = "summed"
    """The input norm beside it: over all tokens, as published, or averaged over samples."""
    swaps: int = 0
    """In each row, so many times at most, a kept weight is traded for a pruned one where that
    lowers the layer's output error."""
    update: Update | None = None
    """Makes the kept weights anew on the mask. None: what the method does itself."""
    reconstruct: Reconstruction | None = None
    """The regional optimizer. None: none, but for `wanda++` and `best-2:4` their own."""
    min_expert_tokens: int = 32
    """An expert that fewer calibration tokens reached is pruned by magnitude."""
    calibrate_all_experts: bool = False
    """Statistics of every expert are those of all tokens of its layer. The router still decides
    what the layer gives, and a regional optimizer or gradient sees what the router chose."""

    def __post_init__(self) -> None:
        require(
            self.method in PUBLISHED_COMPARISON_GROUP,
            f"expected method one of {', '.join(PUBLISHED_COMPARISON_GROUP)}, got {self.method!r}",
        )
        sparsity = parse_sparsity(self.pattern, self.sparsity)
        require(
            not (sparsity.is_grouped and self.comparison_group is not None),
            f"comparison_group is for unstructured sparsity; with pattern {self.pattern} weights "
            "compete within their group",
        )
        require(len(self.targets) > 0, "`targets` must name at least one layer")
        require(self.block_size >= 1, f"expected block_size of at least 1, got {self.block_size}")
        require(0 < self.damping < float("inf"), f"expected damping above 0, got {self.damping}")
        require(
            self.min_expert_tokens >= 1,
            f"expected min_expert_tokens of at least 1, got {self.min_expert_tokens}",
        )
        self._check_chain(sparsity.is_grouped)

    @property
    def sparsities(self) -> tuple[Sparsity, ...]:
        """Its own, and those of its overrides."""
        own = parse_sparsity(self.pattern, self.sparsity)
        return (own, *(parse_sparsity(o.pattern, o.sparsity) for o in self.overrides))

    def _check_chain(self, is_grouped: bool) -> None:
        require(0.0 <= self.alpha < float("inf"), f"expected alpha of at least 0, got {self.alpha}")
        norms, updates = get_args(InputNorm), get_args(Update)
        require(self.norm in norms, f"expected norm {' or '.join(norms)}, got {self.norm!r}")
        require(
            self.update is None or self.update in updates,
            f"expected update one of {', '.join(updates)}, got {self.update!r}",
        )
        require(
            self.score in ("rgs", "gblm") or self.alpha == 100.0,
            f"alpha is of scores by gradients (rgs, wanda++, gblm), not of {self.method}",
        )
        require(
            self.score == "rgs" or self.norm == "summed",
            f"norm is of the regional gradient score (rgs, wanda++), not of {self.method}",
        )
        require(self.swaps >= 0, f"expected swaps of at least 0, got {self.swaps}")
        unstructured = {self.pattern, *(entry.pattern for entry in self.overrides)} & {UNSTRUCTURED}
        require(
            not (self.swaps and unstructured and self.resolved_comparison_group() == "block"),
            "swaps trade weights within a row; with comparison_group block a group would not keep "
            "its number of weights: ask for row or matrix",
        )
        tuning = self.resolved_reconstruct()
        if tuning is not None and not tuning.frozen_mask:
            require(
                self.score is not None and not self.swaps and self.resolved_update() == "none",
                "reconstruct: frozen_mask false (as in the preset published) chooses masks anew by "
                "score alone: it goes with magnitude, wanda, ria, gblm, rgs and wanda++, without "
                f"swaps and update, not with {self._chain_words()}",
            )

    def _chain_words(self) -> str:
        words: list[str] = [self.method]
        words += [f"swaps {self.swaps}"] if self.swaps else []
        words += [f"update {self.update}"] if self.update not in (None, "none") else []
        return ", ".join(words)

    def resolved_comparison_group(self) -> ComparisonGroup:
        """The comparison group asked for, else the one that the method's authors use."""
        return self.comparison_group or PUBLISHED_COMPARISON_GROUP[self.method]

    @property
    def score(self) -> Score | None:
        """What weights are scored by; None where mask and weights are settled together."""
        return _SCORES.get(self.method)

    def own_update(self) -> Update:
        """What settles mask and weights together in this method, or `none`."""
        return _UPDATES.get(self.method, "none")

    def resolved_update(self) -> Update:
        """The update asked for, else the method's own."""
        return self.own_update() if self.update is None else self.update

    def resolved_reconstruct(self) -> Reconstruction | None:
        """The regional optimizer with every field said; None if there is none."""
        preset = _PRESETS.get(self.method)
        if self.reconstruct is None and preset is None:
            return None
        return (self.reconstruct or Reconstruction()).resolved(preset or "best")

    @property
    def needs_hessian(self) -> bool:
        """Whether more than the norm of inputs is asked for."""
        return self.swaps > 0 or self.own_update() != "none" or self.resolved_update() != "none"

    @property
    def needs_model_gradient(self) -> bool:
        """Whether the whole model is differentiated before anything is pruned."""
        return self.score == "gblm"

    @property
    def needs_calibration(self) -> bool:
        """Whether anything depends on activations."""
        return (
            self.method != "magnitude"
            or self.needs_hessian
            or self.resolved_reconstruct() is not None
        )
