"""The stage that removes weights from matrices."""

from dataclasses import dataclass
from typing import Literal

from secateur.recipe.require import require
from secateur.recipe.sparsity import UNSTRUCTURED, parse_sparsity

Method = Literal["magnitude", "wanda", "sparsegpt"]
ComparisonGroup = Literal["row", "matrix", "block"]

# The comparison group of unstructured sparsity in each method's own publication.
PUBLISHED_COMPARISON_GROUP: dict[Method, ComparisonGroup] = {
    "magnitude": "matrix",
    "wanda": "row",
    "sparsegpt": "block",
}


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
    """Remove weights from the linear layers of every block.

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
    """SparseGPT: added to the Hessian's diagonal, as a fraction of its mean."""
    min_expert_tokens: int = 32
    """An expert that fewer calibration tokens were routed to is pruned by magnitude."""

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

    def resolved_comparison_group(self) -> ComparisonGroup:
        """The comparison group asked for, else the one that the method's authors use."""
        return self.comparison_group or PUBLISHED_COMPARISON_GROUP[self.method]

    @property
    def needs_calibration(self) -> bool:
        """Whether scores depend on activations."""
        return self.method != "magnitude"
