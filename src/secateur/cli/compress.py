"""`secateur compress`: run a recipe, write the checkpoint, say what it cost and bought."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console

from secateur.cli.options import Device, Dtype, ModelArgument, Revision, TrustRemoteCode
from secateur.compress import CheckpointFormat, compress_with_report
from secateur.errors import SecateurError
from secateur.prepare import DEFAULT_SAMPLES
from secateur.recipe import (
    UNSTRUCTURED,
    Criterion,
    FactorMethod,
    Method,
    Recipe,
    load_recipe,
    recipe_from_dict,
)
from secateur.report.table import report_table
from secateur.settings import read_settings

_PRUNERS = ", ".join(get_args(Method))
_FACTORERS = ", ".join(get_args(FactorMethod))
_CRITERIA = ", ".join(get_args(Criterion))


def compress_command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option(help="Folder to write; must be empty or new.")],
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe file, YAML or JSON.", show_default=False)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"{_PRUNERS} (zeros) or {_FACTORERS} (factors).", show_default=False),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="keep:group such as 2:4, or unstructured.", show_default=False),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Fraction of zeros, for unstructured.", show_default=False),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Factors: fraction of the parameters to remove.", show_default=False),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Factors: the same rank everywhere.", show_default=False),
    ] = None,
    cut: Annotated[
        list[str] | None,
        typer.Option(
            help="laser: TYPE:BLOCK:FRACTION, such as mlp_in:7:0.1 (`secateur search` finds "
            "some). Repeatable.",
            show_default=False,
        ),
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="Factors: q/k/v and gate/up share one `down`.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Factors: refuse ranks that store more than the matrix."),
    ] = False,
    published: Annotated[
        bool,
        typer.Option("--published", help="Regional optimizer: the paper's own, gentler setting."),
    ] = False,
    drop_blocks: Annotated[
        int | None,
        typer.Option(help="Drop this many blocks of least influence.", show_default=False),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            help=f"--drop-blocks: {_CRITERIA}. Default: block_influence.", show_default=False
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            help="--drop-blocks: block, or only its attention or mlp. Default: block.",
            show_default=False,
        ),
    ] = None,
    protect_first: Annotated[int, typer.Option(help="--drop-blocks: never the first so many.")] = 0,
    protect_last: Annotated[int, typer.Option(help="--drop-blocks: never the last so many.")] = 0,
    remeasure: Annotated[
        bool,
        typer.Option("--remeasure", help="--drop-blocks: measure anew after each removal."),
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Text file, folder, JSON lines, or dataset name[:config[:split]].",
            show_default=False,
        ),
    ] = None,
    num_calibration_samples: Annotated[int, typer.Option(help="Windows.")] = DEFAULT_SAMPLES,
    max_seq_length: Annotated[
        int | None,
        typer.Option(help="Tokens in a window. Default: 2048, or the model's context."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the windows' places.")] = 0,
    calibrate_all_experts: Annotated[
        bool,
        typer.Option(
            "--calibrate-all-experts",
            help="Statistics of every expert are those of all tokens; the router still decides "
            "what the model gives.",
        ),
    ] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="Leave these matrices dense: name, class, or re:regex. Repeatable."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Measure perplexity on this text, before and after.", show_default=False),
    ] = None,
    checkpoint_format: Annotated[
        str,
        typer.Option(
            "--format", help="dense, compact (2:4 and factors as such), or auto: as made."
        ),
    ] = "auto",
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output once the new one is complete.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compress MODEL and write a Hugging Face folder with a report."""
    _, report = compress_with_report(
        model,
        _recipe(
            recipe,
            _DropOptions(
                count=drop_blocks,
                criterion=criterion,
                granularity=granularity,
                protect_first=protect_first,
                protect_last=protect_last,
                remeasure=remeasure,
            ),
            _Options(
                method=method,
                pattern=pattern,
                sparsity=sparsity,
                budget=budget,
                rank=rank,
                cuts=cut or [],
                joint=joint,
                strict=strict,
                published=published,
                calibrate_all_experts=calibrate_all_experts,
                ignore=ignore or [],
            ),
        ),
        calibration=calibration,
        output=output,
        num_calibration_samples=num_calibration_samples,
        max_seq_length=max_seq_length,
        seed=seed,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
        checkpoint_format=cast(CheckpointFormat, checkpoint_format),
        evaluation_text=text,
    )
    if read_settings().rank != 0:
        return
    console = Console(emoji=False)
    console.print(report_table(report))
    console.print(f"wrote {output}", highlight=False, soft_wrap=True, markup=False)


@dataclass(frozen=True, kw_only=True)
class _Options:
    """The options that stand for one stage of a recipe."""

    method: str | None
    pattern: str | None
    sparsity: float | None
    budget: float | None
    rank: int | None
    cuts: list[str]
    joint: bool
    strict: bool
    published: bool
    calibrate_all_experts: bool
    ignore: list[str]

    @property
    def of_pruning(self) -> bool:
        sized = self.pattern is not None or self.sparsity is not None
        return sized or self.published or self.calibrate_all_experts

    @property
    def of_factoring(self) -> bool:
        sized = self.budget is not None or self.rank is not None
        return sized or self.joint or self.strict or bool(self.cuts)


@dataclass(frozen=True, kw_only=True)
class _DropOptions:
    """The options that stand for a drop_blocks stage before that of `_Options`."""

    count: int | None = None
    criterion: str | None = None
    granularity: str | None = None
    protect_first: int = 0
    protect_last: int = 0
    remeasure: bool = False

    def stage(self) -> dict[str, Any]:
        named = {"criterion": self.criterion, "granularity": self.granularity}
        return {
            "stage": "drop_blocks",
            "count": self.count,
            "protect_first": self.protect_first,
            "protect_last": self.protect_last,
            "remeasure": self.remeasure,
            **{name: value for name, value in named.items() if value is not None},
        }


def _recipe(path: Path | None, drop: _DropOptions, options: _Options) -> Recipe:
    by_options = drop != _DropOptions() or options != _NONE
    if path is not None:
        if by_options:
            raise SecateurError(
                "give either --recipe or the options of one stage (--method, --pattern, "
                "--sparsity, --published, --calibrate-all-experts, --budget, --rank, --cut, "
                "--joint, --strict, --ignore) and --drop-blocks with its own (--criterion, --granularity, --protect-first, "
                "--protect-last, --remeasure), not both"
            )
        return load_recipe(path)
    stages: list[dict[str, Any]] = []
    if drop.count is not None:
        stages.append(drop.stage())
    elif drop != _DropOptions():
        raise SecateurError(
            "--criterion, --granularity, --protect-first, --protect-last and --remeasure need "
            "--drop-blocks"
        )
    if options.method is not None:
        stages.append(_stage(options))
    elif options != _NONE:
        raise SecateurError("--pattern, --sparsity, --budget, --rank and --ignore need --method")
    if not stages:
        raise SecateurError("say what to do: --recipe FILE, --method NAME or --drop-blocks N")
    return recipe_from_dict({"stages": stages}, "the command line")


def _stage(options: _Options) -> dict[str, Any]:
    if options.method not in get_args(FactorMethod):
        if options.of_factoring:
            raise SecateurError(
                f"--budget, --rank, --joint and --strict are for {_FACTORERS}, "
                f"not for {options.method}"
            )
        return {
            "stage": "prune",
            "method": options.method,
            "pattern": options.pattern or _pattern_of(options),
            "sparsity": options.sparsity,
            "ignore": options.ignore,
            "reconstruct": {"preset": "published"} if options.published else None,
            "calibrate_all_experts": options.calibrate_all_experts,
        }
    if options.of_pruning:
        raise SecateurError(
            "--pattern, --sparsity, --published and --calibrate-all-experts are for "
            f"{_PRUNERS}, not for {options.method}"
        )
    if options.method == "laser":
        return _laser_stage(options)
    if options.cuts:
        raise SecateurError(f"--cut is for laser, not for {options.method}")
    return {
        "stage": "factor",
        "method": options.method,
        "budget": options.budget,
        "rank": options.rank,
        "joint": options.joint,
        "strict": options.strict,
        "ignore": options.ignore,
    }


def _pattern_of(options: _Options) -> str:
    """The pattern where none is named: that of the method's name, if it has one."""
    return "2:4" if options.method == "best-2:4" and options.sparsity is None else UNSTRUCTURED


def _laser_stage(options: _Options) -> dict[str, Any]:
    if not options.cuts:
        raise SecateurError(
            "laser cuts single matrices: name them by --cut TYPE:BLOCK:FRACTION, such as "
            "--cut mlp_in:7:0.1, or let `secateur search` find them and write a recipe"
        )
    if options.joint or options.strict or options.ignore:
        raise SecateurError("--joint, --strict and --ignore are not for laser")
    return {
        "stage": "factor",
        "method": "laser",
        "budget": options.budget,
        "rank": options.rank,
        "interventions": [_intervention(text) for text in options.cuts],
    }


def _intervention(text: str) -> dict[str, Any]:
    matrix, block, fraction = [*text.split(":"), "", ""][:3]
    try:
        values = {"matrix": matrix, "block": int(block), "fraction": float(fraction)}
    except ValueError:
        values = {}
    if not values or text.count(":") != 2:
        raise SecateurError(
            f"expected --cut TYPE:BLOCK:FRACTION such as mlp_in:7:0.1, got {text!r}"
        )
    return values


_NONE = _Options(
    method=None,
    pattern=None,
    sparsity=None,
    budget=None,
    rank=None,
    cuts=[],
    joint=False,
    strict=False,
    published=False,
    calibrate_all_experts=False,
    ignore=[],
)
