"""Options of `secateur compress`, worded once and sorted as its help page shows them."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from secateur.cli.compress_recipe import FACTORERS, PRUNERS
from secateur.recipe import Criterion

_WHAT = "What is done: --recipe, or --method and its options, or --drop-blocks, or both"
_BLOCKS, _DATA, _LONG = "Dropping blocks", "Calibration and measuring", "Models on disk, long runs"

RecipeFile = Annotated[
    Path | None,
    typer.Option(help="Recipe file, YAML or JSON.", show_default=False, rich_help_panel=_WHAT),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        help=f"{PRUNERS} (zeros) or {FACTORERS} (factors).",
        show_default=False,
        rich_help_panel=_WHAT,
    ),
]
Pattern = Annotated[
    str | None,
    typer.Option(
        help="Zeros: keep:group such as 2:4, or unstructured.",
        show_default=False,
        rich_help_panel=_WHAT,
    ),
]
Sparsity = Annotated[
    float | None,
    typer.Option(
        help="Zeros: their fraction, for unstructured.", show_default=False, rich_help_panel=_WHAT
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        help="Factors: fraction of the parameters to remove.",
        show_default=False,
        rich_help_panel=_WHAT,
    ),
]
Rank = Annotated[
    int | None,
    typer.Option(
        help="Factors: the same rank everywhere.", show_default=False, rich_help_panel=_WHAT
    ),
]
Cut = Annotated[
    list[str] | None,
    typer.Option(
        help="laser: TYPE:BLOCK:FRACTION, such as mlp_in:7:0.1 (`secateur search` finds some). "
        "Repeatable.",
        show_default=False,
        rich_help_panel=_WHAT,
    ),
]
Joint = Annotated[
    bool,
    typer.Option(
        "--joint", help="Factors: q/k/v and gate/up share one `down`.", rich_help_panel=_WHAT
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Factors: refuse ranks that store more than the matrix.",
        rich_help_panel=_WHAT,
    ),
]
Published = Annotated[
    bool,
    typer.Option(
        "--published",
        help="Regional optimizer: the paper's own, gentler setting.",
        rich_help_panel=_WHAT,
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave these matrices dense: name, class, or re:regex. Repeatable.",
        rich_help_panel=_WHAT,
    ),
]
DropBlocks = Annotated[
    int | None,
    typer.Option(
        help="Drop this many blocks of least influence.",
        show_default=False,
        rich_help_panel=_BLOCKS,
    ),
]
CriterionName = Annotated[
    str | None,
    typer.Option(
        "--criterion",
        help=f"Of influence: {', '.join(get_args(Criterion))}. Default: block_influence.",
        show_default=False,
        rich_help_panel=_BLOCKS,
    ),
]
Granularity = Annotated[
    str | None,
    typer.Option(
        help="block, or only its attention or mlp. Default: block.",
        show_default=False,
        rich_help_panel=_BLOCKS,
    ),
]
ProtectFirst = Annotated[
    int, typer.Option(help="Never drop the first so many.", rich_help_panel=_BLOCKS)
]
ProtectLast = Annotated[
    int, typer.Option(help="Never drop the last so many.", rich_help_panel=_BLOCKS)
]
Remeasure = Annotated[
    bool,
    typer.Option(
        "--remeasure", help="Measure influence anew after each removal.", rich_help_panel=_BLOCKS
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Text file, folder, JSON lines, or dataset name[:config[:split]].",
        show_default=False,
        rich_help_panel=_DATA,
    ),
]
NumCalibrationSamples = Annotated[
    int, typer.Option(help="Windows of calibration text.", rich_help_panel=_DATA)
]
MaxSeqLength = Annotated[
    int | None,
    typer.Option(
        help="Tokens in a window. Default: 2048, or the model's context.", rich_help_panel=_DATA
    ),
]
Seed = Annotated[int, typer.Option(help="Of the windows' places.", rich_help_panel=_DATA)]
CalibrateAllExperts = Annotated[
    bool,
    typer.Option(
        "--calibrate-all-experts",
        help="Statistics of every expert are those of all tokens; the router still decides what "
        "the model gives.",
        rich_help_panel=_DATA,
    ),
]
EvaluationText = Annotated[
    Path | None,
    typer.Option(
        "--text",
        help="Measure perplexity on this text, before and after.",
        show_default=False,
        rich_help_panel=_DATA,
    ),
]
FormatName = Annotated[
    str,
    typer.Option("--format", help="dense, compact (2:4 and factors as such), or auto: as made."),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Prune from disk to disk, a block at a time, with a journal: for models that do not "
        "fit in memory, and for long runs.",
        rich_help_panel=_LONG,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with an interrupted run: after its last block (--stream), or in its training.",
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
