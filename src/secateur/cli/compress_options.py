"""Options of `secateur compress`, worded once and sorted as its help page shows them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from secateur.prepare import DEFAULT_SAMPLES
from secateur.recipe import Criterion, FactorMethod, Method

PRUNERS = ", ".join(get_args(Method))
FACTORERS = ", ".join(get_args(FactorMethod))

_WHAT = "Zeros and factors: a recipe, or one method"
_BLOCKS, _DATA, _LONG = "Dropping blocks", "Calibration and measuring", "Models on disk, long runs"

RecipeFile = Annotated[
    Path | None,
    typer.Option(help="Recipe file, YAML or JSON.", show_default=False, rich_help_panel=_WHAT),
]
EvaluationText = Annotated[
    Path | None,
    typer.Option(
        "--text",
        help="Measure perplexity on this text before and after.",
        show_default=False,
        rich_help_panel=_DATA,
    ),
]
FormatName = Annotated[
    str,
    typer.Option(
        "--format",
        help="dense; compact (2:4 and factors stored as such); or auto: as the method makes them.",
    ),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Prune or factor from disk to disk, a block at a time, with a journal: for models "
        "that do not fit in memory, and for long runs.",
        rich_help_panel=_LONG,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue an interrupted run: after its last block (--stream), or in its training.",
        rich_help_panel=_LONG,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only check, and say what --stream will need: memory, disk, time.",
        rich_help_panel=_LONG,
    ),
]
Activations = Annotated[
    str,
    typer.Option(
        help="Keep hidden states on the device, in host memory, in a file, or where there is room "
        "(auto).",
        rich_help_panel=_LONG,
    ),
]


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The options that stand for one stage of a recipe."""

    method: Annotated[
        str | None,
        typer.Option(
            help=f"{PRUNERS} (zeros) or {FACTORERS} (factors).",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Zeros: keep:group such as 2:4, or unstructured.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="Zeros: their fraction, with --pattern unstructured.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None
    budget: Annotated[
        float | None,
        typer.Option(
            help="Factors: fraction of the parameters to remove.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None
    rank: Annotated[
        int | None,
        typer.Option(
            help="Factors: one rank for all matrices.", show_default=False, rich_help_panel=_WHAT
        ),
    ] = None
    cut: Annotated[
        list[str] | None,
        typer.Option(
            help="laser: TYPE:BLOCK:FRACTION, such as mlp_in:7:0.1 (`secateur search` finds some). "
            "Repeatable.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None
    joint: Annotated[
        bool,
        typer.Option(
            "--joint", help="Factors: q/k/v and gate/up share one `down`.", rich_help_panel=_WHAT
        ),
    ] = False
    importance: Annotated[
        str | None,
        typer.Option(
            help="svd-whitened: errors are weighed by the loss's gradients for each direction of "
            "an output (directions), for each whole output (loss), or not at all (output). "
            "Default: directions for a budget, loss with --at-once.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None
    in_turn: Annotated[
        bool | None,
        typer.Option(
            "--in-turn/--at-once",
            help="svd-whitened: fit matrices that lead out of attention and MLP after those "
            "that feed them. Default: in turn.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Factors: refuse ranks whose factors take more space than the matrix.",
            rich_help_panel=_WHAT,
        ),
    ] = False
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="Regional optimizer: use the paper's own, gentler setting.",
            rich_help_panel=_WHAT,
        ),
    ] = False
    calibrate_all_experts: Annotated[
        bool,
        typer.Option(
            "--calibrate-all-experts",
            help="Zeros: collect statistics of every expert over all tokens; the model's outputs "
            "still follow its router.",
            rich_help_panel=_WHAT,
        ),
    ] = False
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave these matrices dense: name, class, or re:regex. Repeatable.",
            rich_help_panel=_WHAT,
        ),
    ] = None

    @property
    def of_pruning(self) -> bool:
        """Whether one was given that only a prune stage has."""
        sized = self.pattern is not None or self.sparsity is not None
        return sized or self.published or self.calibrate_all_experts

    @property
    def of_factoring(self) -> bool:
        """Whether one was given that only a factor stage has."""
        sized = self.budget is not None or self.rank is not None
        fitted = self.importance is not None or self.in_turn is not None
        return sized or self.joint or self.strict or fitted or bool(self.cut)


@dataclass(frozen=True, kw_only=True)
class DropOptions:
    """The options that stand for a drop_blocks stage before that of `StageOptions`."""

    drop_blocks: Annotated[
        int | None,
        typer.Option(
            help="Drop this many blocks: those of least influence.",
            show_default=False,
            rich_help_panel=_BLOCKS,
        ),
    ] = None
    criterion: Annotated[
        str | None,
        typer.Option(
            help=f"How influence is measured: {', '.join(get_args(Criterion))}. Default: "
            "block_influence.",
            show_default=False,
            rich_help_panel=_BLOCKS,
        ),
    ] = None
    granularity: Annotated[
        str | None,
        typer.Option(
            help="What to drop: block, or only its attention or mlp. Default: block.",
            show_default=False,
            rich_help_panel=_BLOCKS,
        ),
    ] = None
    protect_first: Annotated[
        int,
        typer.Option(
            help="Number of first blocks that are never dropped.", rich_help_panel=_BLOCKS
        ),
    ] = 0
    protect_last: Annotated[
        int,
        typer.Option(help="Number of last blocks that are never dropped.", rich_help_panel=_BLOCKS),
    ] = 0
    remeasure: Annotated[
        bool,
        typer.Option(
            "--remeasure",
            help="Measure influence anew after each removal.",
            rich_help_panel=_BLOCKS,
        ),
    ] = False

    def stage(self) -> dict[str, Any]:
        """As plain values."""
        named = {"criterion": self.criterion, "granularity": self.granularity}
        return {
            "stage": "drop_blocks",
            "count": self.drop_blocks,
            "protect_first": self.protect_first,
            "protect_last": self.protect_last,
            "remeasure": self.remeasure,
            **{name: value for name, value in named.items() if value is not None},
        }


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """The options that choose calibration tokens."""

    calibration: Annotated[
        str | None,
        typer.Option(
            help="Text file, folder, JSON lines, or dataset name[:config[:split]].",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None
    num_calibration_samples: Annotated[
        int, typer.Option(help="Windows of calibration text.", rich_help_panel=_DATA)
    ] = DEFAULT_SAMPLES
    max_seq_length: Annotated[
        int | None,
        typer.Option(
            help="Tokens in a window. Default: 2048, or the model's context.", rich_help_panel=_DATA
        ),
    ] = None
    seed: Annotated[
        int, typer.Option(help="Seed of the windows' places in the text.", rich_help_panel=_DATA)
    ] = 0
