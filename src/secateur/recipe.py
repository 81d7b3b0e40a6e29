"""The recipe: one frozen, typed object that says what is done to a model, stage after stage.

A recipe round-trips through YAML and JSON, and is written beside the weights that it made.
Unknown keys are errors, so that a misspelt option never passes for a default.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateur.errors import SecateurError
from secateur.plain import from_plain, to_plain
from secateur.yaml_text import read_yaml, write_yaml

Method = Literal["magnitude", "wanda", "sparsegpt"]
ComparisonGroup = Literal["row", "matrix", "block"]

UNSTRUCTURED = "unstructured"

# The comparison group of unstructured sparsity in each method's own publication.
PUBLISHED_COMPARISON_GROUP: dict[Method, ComparisonGroup] = {
    "magnitude": "matrix",
    "wanda": "row",
    "sparsegpt": "block",
}


@dataclass(frozen=True)
class Sparsity:
    """How many weights go, and in which pattern.

    Either `unstructured` with `fraction` of the weights removed, or `keep` weights kept of every
    `group` consecutive ones along K (2:4 is keep=2, group=4).
    """

    fraction: float
    keep: int | None = None
    group: int | None = None

    @property
    def is_grouped(self) -> bool:
        """Whether this is a keep:group pattern."""
        return self.group is not None

    @property
    def name(self) -> str:
        """`2:4` or `0.5 unstructured`."""
        return (
            f"{self.keep}:{self.group}" if self.is_grouped else f"{self.fraction:.4g} unstructured"
        )


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise SecateurError(fault)


def parse_sparsity(pattern: str, fraction: float | None) -> Sparsity:
    """Turn the two options that people write into one value.

    Args:
        pattern: `unstructured`, or `keep:group` such as `2:4`.
        fraction: the fraction of zeros wanted, in (0, 1). Needed for `unstructured`; for a
            keep:group pattern it may be left out and must agree with it if given.

    Raises:
        SecateurError: the pattern cannot be read, removes everything or removes nothing.
    """
    if pattern == UNSTRUCTURED:
        if fraction is None or not 0.0 < fraction < 1.0:
            raise SecateurError(
                "unstructured sparsity needs `sparsity`, the fraction of weights to remove, "
                f"above 0 and below 1; got {fraction}"
            )
        return Sparsity(fraction=fraction)
    keep, group = _parse_keep_group(pattern)
    implied = 1.0 - keep / group
    if fraction is not None and not abs(fraction - implied) <= 1e-9:
        raise SecateurError(
            f"pattern {pattern} removes {implied:.4g} of the weights, but sparsity says "
            f"{fraction:.4g}; leave `sparsity` out with a keep:group pattern"
        )
    return Sparsity(fraction=implied, keep=keep, group=group)


def _parse_keep_group(pattern: str) -> tuple[int, int]:
    keep_text, colon, group_text = pattern.partition(":")
    if not (colon and keep_text.isdecimal() and group_text.isdecimal()):
        raise SecateurError(
            f"expected pattern `unstructured` or `keep:group` such as `2:4`, got {pattern!r}"
        )
    keep, group = int(keep_text), int(group_text)
    if keep == 0 or group == 0:
        raise SecateurError(f"pattern {pattern} would remove every weight; keep at least one")
    if keep >= group:
        raise SecateurError(
            f"pattern {pattern} keeps {keep} of every {group} and would remove nothing; "
            "keep fewer than the group holds"
        )
    return keep, group


@dataclass(frozen=True, kw_only=True)
class LayerOverride:
    """Another sparsity for the layers that `targets` match; the last matching override holds."""

    targets: tuple[str, ...]
    pattern: str = UNSTRUCTURED
    sparsity: float | None = None

    def __post_init__(self) -> None:
        _require(len(self.targets) > 0, "override: `targets` must name at least one layer")
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
        _require(
            self.method in PUBLISHED_COMPARISON_GROUP,
            f"expected method one of {', '.join(PUBLISHED_COMPARISON_GROUP)}, got {self.method!r}",
        )
        sparsity = parse_sparsity(self.pattern, self.sparsity)
        _require(
            not (sparsity.is_grouped and self.comparison_group is not None),
            f"comparison_group is for unstructured sparsity; with pattern {self.pattern} weights "
            "compete within their group",
        )
        _require(len(self.targets) > 0, "`targets` must name at least one layer")
        _require(self.block_size >= 1, f"expected block_size of at least 1, got {self.block_size}")
        _require(0 < self.damping < float("inf"), f"expected damping above 0, got {self.damping}")
        _require(
            self.min_expert_tokens >= 1,
            f"expected min_expert_tokens of at least 1, got {self.min_expert_tokens}",
        )

    def resolved_comparison_group(self) -> ComparisonGroup:
        """The comparison group asked for, else the one that the method's authors use."""
        return self.comparison_group or PUBLISHED_COMPARISON_GROUP[self.method]


@dataclass(frozen=True, kw_only=True)
class DropBlocksStage:
    """Remove whole blocks: the `count` of lowest score, or those named in `blocks` (0-based)."""

    stage: Literal["drop_blocks"] = "drop_blocks"
    criterion: Literal["block_influence"] = "block_influence"
    count: int | None = None
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require(
            (self.count is None) == bool(self.blocks),
            "drop_blocks needs either `count` or `blocks`, and not both",
        )
        _require(
            self.count is None or self.count >= 1,
            f"drop_blocks: expected `count` of at least 1, got {self.count}",
        )
        _require(
            len(set(self.blocks)) == len(self.blocks) and all(block >= 0 for block in self.blocks),
            f"drop_blocks: `blocks` must be distinct 0-based indices, got {list(self.blocks)}",
        )


Stage = PruneStage | DropBlocksStage


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages in the order in which they run."""

    version: Literal[1] = 1
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        _require(len(self.stages) > 0, "a recipe needs at least one stage")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, defaults included."""
        values: dict[str, Any] = to_plain(self)
        return values

    def to_json(self) -> str:
        """JSON text that `recipe_from_text` reads back."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_yaml(self) -> str:
        """YAML text that `recipe_from_text` reads back."""
        return write_yaml(self.to_dict())

    @property
    def needs_calibration(self) -> bool:
        """Whether any stage looks at calibration tokens."""
        return any(
            stage.method != "magnitude" if isinstance(stage, PruneStage) else not stage.blocks
            for stage in self.stages
        )


def recipe_from_dict(values: object, source: str = "recipe") -> Recipe:
    """Validate plain values.

    Raises:
        SecateurError: what is wrong and where; `source` names the origin.
    """
    try:
        return from_plain(Recipe, values)
    except SecateurError as error:
        raise SecateurError(f"{source} is not a valid recipe: {error}") from None


def recipe_from_text(text: str, source: str = "recipe") -> Recipe:
    """Parse JSON or YAML."""
    try:
        values = json.loads(text)
    except ValueError:
        values = read_yaml(text, source)
    return recipe_from_dict(values, source)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file."""
    path = Path(path)
    try:
        is_file = path.is_file()
    except OSError:  # a name too long for a file, such as the recipe itself
        is_file = False
    if not is_file:
        raise SecateurError(f"expected a recipe file, but {str(path)[:200]} is not a file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SecateurError(f"{path} is not UTF-8 text: {error}") from None
    return recipe_from_text(text, str(path))
