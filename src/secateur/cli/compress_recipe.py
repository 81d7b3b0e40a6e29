"""From the options of `secateur compress` to a recipe."""

from pathlib import Path
from typing import Any, get_args

from secateur.cli.compress_options import FACTORERS, PRUNERS, DropOptions, StageOptions
from secateur.cli.stage_options import recipe_of_stages
from secateur.errors import SecateurError
from secateur.recipe import (
    UNSTRUCTURED,
    FactorMethod,
    Method,
    Recipe,
    load_recipe,
)


def recipe_of(path: Path | None, drop: DropOptions, options: StageOptions) -> Recipe:
    """The recipe of a file, or of a drop stage, another stage, or both, from options.

    Raises:
        SecateurError: options of a stage that is not named, of another kind of stage, or beside a
            file.
    """
    by_options = drop != DropOptions() or options != StageOptions()
    if path is not None:
        if by_options:
            raise SecateurError(
                "give either --recipe or the options of one stage (--method, --pattern, "
                "--sparsity, --published, --calibrate-all-experts, --budget, --rank, --cut, "
                "--joint, --importance, --in-turn, --strict, --ignore) and --drop-blocks with its "
                "own (--criterion, --granularity, --protect-first, --protect-last, --remeasure), "
                "not both"
            )
        return load_recipe(path)
    stages: list[dict[str, Any]] = []
    if drop.drop_blocks is not None:
        stages.append(drop.stage())
    elif drop != DropOptions():
        raise SecateurError(
            "--criterion, --granularity, --protect-first, --protect-last and --remeasure need "
            "--drop-blocks"
        )
    if options.method is not None:
        stages.append(_stage(options))
    elif options != StageOptions():
        raise SecateurError("--pattern, --sparsity, --budget, --rank and --ignore need --method")
    if not stages:
        raise SecateurError("say what to do: --recipe FILE, --method NAME or --drop-blocks N")
    return recipe_of_stages(stages)


def _stage(options: StageOptions) -> dict[str, Any]:
    if options.method not in (*get_args(Method), *get_args(FactorMethod)):
        # Before the checks of what goes with it: those would take a misspelt factor for a pruner.
        raise SecateurError(
            f"--method: expected one of {PRUNERS} (zeros) or {FACTORERS} (factors), "
            f"got {options.method!r}"
        )
    is_factored = options.method in get_args(FactorMethod)
    return _factor_stage(options) if is_factored else _prune_stage(options)


def _prune_stage(options: StageOptions) -> dict[str, Any]:
    if options.of_factoring:
        raise SecateurError(
            "--budget, --rank, --cut, --joint, --importance, --in-turn and --strict are for "
            f"{FACTORERS}, not for {options.method}"
        )
    pattern = options.pattern or _pattern_of(options)
    if pattern == UNSTRUCTURED and options.sparsity is None:
        raise SecateurError(
            f"--method {options.method} needs --pattern, such as 2:4, or --sparsity, the "
            "fraction of zeros, such as 0.5"
        )
    return {
        "stage": "prune",
        "method": options.method,
        "pattern": pattern,
        "sparsity": options.sparsity,
        "ignore": options.ignore or [],
        "reconstruct": {"preset": "published"} if options.published else None,
        "calibrate_all_experts": options.calibrate_all_experts,
    }


def _factor_stage(options: StageOptions) -> dict[str, Any]:
    if options.of_pruning:
        raise SecateurError(
            "--pattern, --sparsity, --published and --calibrate-all-experts are for "
            f"{PRUNERS}, not for {options.method}"
        )
    if options.importance is not None and options.method != "svd-whitened":
        raise SecateurError(f"--importance is for svd-whitened, not for {options.method}")
    if options.in_turn is not None and options.method != "svd-whitened":
        raise SecateurError(
            f"--in-turn and --at-once are for svd-whitened, not for {options.method}"
        )
    if options.method == "laser":
        return _laser_stage(options)
    if options.cut:
        raise SecateurError(f"--cut is for laser, not for {options.method}")
    return {
        "stage": "factor",
        "method": options.method,
        "budget": options.budget,
        "rank": options.rank,
        "joint": options.joint,
        **({} if options.importance is None else {"importance": options.importance}),
        "in_turn": options.in_turn,
        "strict": options.strict,
        "ignore": options.ignore or [],
    }


def _pattern_of(options: StageOptions) -> str:
    """The pattern where none is named: that of the method's name, if it has one."""
    return "2:4" if options.method == "best-2:4" and options.sparsity is None else UNSTRUCTURED


def _laser_stage(options: StageOptions) -> dict[str, Any]:
    if not options.cut:
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
        "interventions": [_intervention(text) for text in options.cut],
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
