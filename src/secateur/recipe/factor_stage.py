"""The stage that turns matrices into factors."""

from dataclasses import dataclass
from typing import Literal, get_args

from secateur.recipe.require import require

FactorMethod = Literal["laser", "svd", "svd-whitened", "sparse-plus-low-rank"]
ImportanceName = Literal["directions", "loss", "output"]
MatrixTypeName = Literal["q", "k", "v", "qkv", "o", "mlp_in", "mlp_up", "mlp_out"]


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """LASER's (type, block, fraction): one matrix cut to a part of its full rank."""

    matrix: MatrixTypeName
    block: int
    """0-based."""
    fraction: float
    """Kept part of the full rank, above 0 and below 1."""

    def __post_init__(self) -> None:
        types = get_args(MatrixTypeName)
        require(
            self.matrix in types,
            f"intervention: expected matrix one of {', '.join(types)}, got {self.matrix!r}",
        )
        require(self.block >= 0, f"intervention: expected a block of at least 0, got {self.block}")
        require(
            0.0 < self.fraction < 1.0,
            f"intervention: expected a kept fraction above 0 and below 1, got {self.fraction}",
        )


@dataclass(frozen=True, kw_only=True)
class RankOverride:
    """Another rank for the matrices that `targets` match; the last matching override holds."""

    targets: tuple[str, ...]
    rank: int | None
    """None: they stay dense."""

    def __post_init__(self) -> None:
        require(len(self.targets) > 0, "override: `targets` must name at least one layer")
        require(
            self.rank is None or self.rank >= 1, f"override: expected rank >= 1, got {self.rank}"
        )


@dataclass(frozen=True, kw_only=True)
class FactorStage:
    """Replace matrices by two thin factors, or cut their rank.

    `laser` cuts single matrices as named by `interventions`. The other methods work on what
    `targets` and `ignore` select (as in the prune stage) and want either `budget` or `rank`.
    """

    stage: Literal["factor"] = "factor"
    method: FactorMethod = "svd-whitened"
    interventions: tuple[Intervention, ...] = ()
    """Of `laser` only."""
    budget: float | None = None
    """Fraction of the selected matrices' parameters to remove, above 0 and below 1; ranks are
    shared out by what the outputs lose. `sparse-plus-low-rank`: of all that is stored, values only;
    below one half, the pattern's own."""
    rank: int | None = None
    """Of every selected matrix, but for those that `overrides` match."""
    overrides: tuple[RankOverride, ...] = ()
    """With `rank`, and without `joint`: other ranks for some matrices, all in one pass."""
    write: Literal["factors", "dense"] | None = None
    """`factors` become low-rank layers; `dense` multiplies them back (loads everywhere, saves
    nothing). None: `dense` for `laser`, as published, else `factors`."""
    joint: bool = False
    """Factor matrices of one input (q/k/v, gate/up) together, with one shared `down`."""
    importance: ImportanceName | None = None
    """`svd-whitened`, what an error of an output counts. `directions`: in every direction what the
    model's loss makes of it, to first order; that shapes the factors and shares out ranks. `loss`:
    a share of the output what the whole output is worth for the loss; ranks only. `output`: each
    output the same. All but the last take a backward pass of the whole model over a few samples,
    and `directions` an fp32 [N, N] of every matrix. Mixtures with fused experts use `output`. None:
    `directions` for a `budget` with `in_turn`, else `loss`, which for a `rank` needs no pass."""
    importance_samples: int = 16
    """Calibration samples that it takes: enough to rank matrices by. `directions` gain from more;
    each is a whole backward pass."""
    dense_targets: bool = False
    """`svd-whitened`: fit what the dense model's outputs are, not what the dense matrices make of
    inputs that are already off."""
    in_turn: bool | None = None
    """`svd-whitened`: fit the matrices that lead out of attention and MLP after those that feed
    them: on the inputs that these now give, to what the dense block makes of the same tokens, also
    where they stay dense; not experts. Takes two more runs of every block, and the memory of a
    block. None: wherever it can be, with `svd-whitened` but without `dense_targets`."""
    rounds: int = 20
    """Alternations of `sparse-plus-low-rank`."""
    exact: bool = True
    """Exact SVD; False: randomised with oversampling, whose error bound is reported."""
    damping: float = 0.01
    """Added to the diagonal of Hessians and of the gradients' mean squares, as a fraction of its
    mean."""
    strict: bool = False
    """A rank at which factors store more than the matrix is an error, not a warning."""
    targets: tuple[str, ...] = ("Linear",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        methods = get_args(FactorMethod)
        require(
            self.method in methods,
            f"expected method one of {', '.join(methods)}, got {self.method!r}",
        )
        require(
            self.importance is None or self.importance in get_args(ImportanceName),
            f"expected importance one of {', '.join(get_args(ImportanceName))}, "
            f"got {self.importance!r}",
        )
        require(
            self.importance != "directions" or self.method == "svd-whitened",
            f"importance directions is for svd-whitened, not for {self.method}",
        )
        require(
            not self.in_turn or self.method == "svd-whitened",
            f"in_turn is for svd-whitened, not for {self.method}",
        )
        require(
            not self.dense_targets or self.method == "svd-whitened",
            f"dense_targets is for svd-whitened, not for {self.method}",
        )
        require(
            not (self.in_turn and self.dense_targets),
            "in_turn fits to the dense block, dense_targets to the dense model: choose one",
        )
        require(len(self.targets) > 0, "`targets` must name at least one layer")
        require(0 <= self.damping < float("inf"), f"expected damping >= 0, got {self.damping}")
        require(
            self.importance_samples >= 1,
            f"expected at least 1 importance sample, got {self.importance_samples}",
        )
        require(self.rounds >= 1, f"expected at least 1 round, got {self.rounds}")
        if self.method == "laser":
            self._check_laser()
        else:
            self._check_size()

    def _check_laser(self) -> None:
        require(len(self.interventions) > 0, "laser needs at least one intervention")
        places = [(cut.matrix, cut.block) for cut in self.interventions]
        require(len(set(places)) == len(places), "laser: a matrix is named by two interventions")
        require(not self.joint, "laser cuts single matrices: leave out `joint`")
        require(
            self.budget is None and self.rank is None,
            "laser cuts each matrix to its intervention's fraction; leave out `budget` and `rank`",
        )
        require(not self.overrides, "laser has no rank to override: leave out `overrides`")

    def _check_size(self) -> None:
        require(not self.interventions, f"interventions are for laser, not for {self.method}")
        require(
            (self.budget is None) != (self.rank is None),
            f"{self.method} needs either `budget` or `rank`, and not both",
        )
        require(
            self.budget is None or 0.0 < self.budget < 1.0,
            f"expected a budget above 0 and below 1, got {self.budget}",
        )
        require(self.rank is None or self.rank >= 1, f"expected rank >= 1, got {self.rank}")
        require(
            not self.overrides or (self.rank is not None and not self.joint),
            "`overrides` change `rank` for some matrices: expected a rank, and no `joint`",
        )
        sparse = self.method == "sparse-plus-low-rank"
        require(
            not (sparse and self.budget is not None and self.budget >= 0.5),
            "sparse-plus-low-rank keeps one half as 2:4 and adds factors: expected a budget below "
            f"0.5, got {self.budget}",
        )
        require(not (sparse and self.joint), "sparse-plus-low-rank factors one matrix at a time")

    @property
    def writes_factors(self) -> bool:
        """Whether matrices become low-rank layers."""
        return (self.write or ("dense" if self.method == "laser" else "factors")) == "factors"

    @property
    def fits_in_turn(self) -> bool:
        """Whether what leads out of attention and MLP is fitted after what feeds it."""
        if self.in_turn is None:
            return self.method == "svd-whitened" and not self.dense_targets
        return self.in_turn

    @property
    def weighs_by(self) -> ImportanceName:
        """What an error of an output counts."""
        budgeted_in_turn = self.budget is not None and self.fits_in_turn
        return self.importance or ("directions" if budgeted_in_turn else "loss")

    @property
    def needs_calibration(self) -> bool:
        """Whether ranks or factors depend on activations, or on which matrices share an input."""
        return self.joint or self.method in ("svd-whitened", "sparse-plus-low-rank")
