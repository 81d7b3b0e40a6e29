"""Everything that can be wrong with a streaming job, found before a block is read."""

from dataclasses import dataclass
from pathlib import Path

import torch

from secateur.calibration.tokens import CalibrationTokens
from secateur.checkpoint.form import CheckpointFormat, require_known_format
from secateur.checkpoint.load import LoadedModel, usable_device
from secateur.checkpoint.write import check_output
from secateur.errors import SecateurError
from secateur.models.inventory import Inventory, take_inventory
from secateur.models.swap import dense_sites
from secateur.prepare import CalibrationChoice, check_calibration, draw_tokens
from secateur.recipe import FactorStage, PruneStage, Recipe, RecipeLike, as_recipe
from secateur.settings import read_settings
from secateur.stages.factor import whole_model_needs
from secateur.stages.factor_plan import FactorPlan, plan_factoring, stored_beyond_dense
from secateur.stages.prune_plan import PlannedSite, plan_stage
from secateur.streaming.activations import Home
from secateur.streaming.estimate import Estimate, estimate_job
from secateur.streaming.skeleton import Skeleton, build_skeleton

StreamedStage = PruneStage | FactorStage
StreamedPlan = list[list[PlannedSite]] | FactorPlan


@dataclass(frozen=True)
class StreamingJob:
    """Everything that is settled before a block is read."""

    skeleton: Skeleton
    inventory: Inventory
    recipe: Recipe
    stage: StreamedStage
    plan: StreamedPlan
    """Of the stage's own kind."""
    compact: bool
    """Whether layers are written compressed."""
    tokens: CalibrationTokens | None
    seed: int
    output: Path
    device: torch.device
    dtype: str
    activations: Home
    overwrite: bool


def prepare_streaming(
    model: str | Path,
    recipe: RecipeLike,
    choice: CalibrationChoice,
    *,
    output: str | Path,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    overwrite: bool = False,
    checkpoint_format: CheckpointFormat = "auto",
    activations: Home = "auto",
) -> StreamingJob:
    """Settle everything that needs no weights; arguments as of `compress_streaming`.

    Raises:
        SecateurError: bad input.
    """
    recipe = as_recipe(recipe)
    stage = _only_stage(recipe)
    if read_settings().world_size > 1:
        raise SecateurError(
            "streaming is done by one process; several share the calibration of a model that is "
            "in memory: leave out streaming, or torchrun"
        )
    if activations not in ("auto", "device", "host", "file"):
        raise SecateurError(f"expected activations auto, device, host or file, got {activations!r}")
    require_known_format(checkpoint_format)
    place = check_output(Path(output), overwrite)
    check_calibration(choice.source, recipe)
    skeleton = build_skeleton(model, revision, dtype)
    check_output(Path(output), overwrite, skeleton.folder)
    inventory = take_inventory(skeleton.model)
    plan: StreamedPlan
    if isinstance(stage, FactorStage):
        plan = plan_factoring(stage, inventory)
    else:
        plan = plan_stage(stage, inventory)
    return StreamingJob(
        skeleton=skeleton,
        inventory=inventory,
        recipe=recipe,
        stage=stage,
        plan=plan,
        compact=_is_compact(stage, plan, checkpoint_format, skeleton),
        tokens=draw_tokens(choice, recipe, as_loaded(skeleton)),
        seed=choice.seed,
        output=place,
        device=usable_device(device),
        dtype=dtype,
        activations=activations,
        overwrite=overwrite,
    )


def estimate_streaming(job: StreamingJob) -> Estimate:
    """What a job will need, before anything is read."""
    more = 0
    if isinstance(job.stage, FactorStage) and isinstance(job.plan, FactorPlan):
        more = stored_beyond_dense(job.stage, job.plan)
    return estimate_job(
        job.skeleton,
        job.inventory,
        job.stage,
        job.tokens,
        job.device,
        job.activations,
        job.compact,
        more,
    )


def as_loaded(skeleton: Skeleton) -> LoadedModel:
    """The model as those take it that need no weights."""
    return LoadedModel(
        skeleton.model, skeleton.tokenizer, skeleton.folder, skeleton.source, skeleton.revision
    )


def _only_stage(recipe: Recipe) -> StreamedStage:
    """The stage of a recipe that can work on one block at a time.

    Raises:
        SecateurError: there are several, or it needs the whole model.
    """
    stage = recipe.stages[0]
    if len(recipe.stages) != 1 or not isinstance(stage, StreamedStage):
        raise SecateurError(
            "only a recipe of one prune or factor stage can be streamed: others need the whole "
            "model; compress without streaming"
        )
    if isinstance(stage, PruneStage) and stage.needs_model_gradient:
        raise SecateurError(
            f"{stage.method} needs the gradient of the whole model, which is never whole while it "
            "is streamed; compress without streaming"
        )
    if isinstance(stage, FactorStage) and (needs := whole_model_needs(stage)):
        raise SecateurError(
            f"while a model is streamed it is never whole, but {needs}, or compress without "
            "streaming"
        )
    return stage


def _is_compact(
    stage: StreamedStage, plan: StreamedPlan, checkpoint_format: str, skeleton: Skeleton
) -> bool:
    """Whether layers are to be written compressed.

    Raises:
        SecateurError: the stage makes none, or makes some that are to be dense.
    """
    factors = _makes_factors(stage, plan)
    if checkpoint_format == "auto":
        return factors
    if checkpoint_format == "dense" and factors:
        raise SecateurError(
            "a streamed block is written as the next ones find it, its factors as factors: for "
            "dense matrices give the recipe's stage `write: dense`, or compress without streaming"
        )
    if checkpoint_format == "compact" and not (factors or _makes_sparse24(plan, skeleton)):
        raise SecateurError(
            "expected a stage that makes 2:4 or low-rank layers to write compactly, but "
            f"{stage.method} as asked for makes none: leave out the format, or give dense; where "
            "the model has such layers already, compress without streaming"
        )
    return checkpoint_format == "compact"


def _makes_factors(stage: StreamedStage, plan: StreamedPlan) -> bool:
    if not (isinstance(stage, FactorStage) and isinstance(plan, FactorPlan)):
        return False
    # Without ranks a budget will choose them, and some matrix has to become smaller.
    any_rank = not plan.ranks or any(rank is not None for rank in plan.ranks.values())
    return stage.writes_factors and any_rank


def _makes_sparse24(plan: StreamedPlan, skeleton: Skeleton) -> bool:
    if isinstance(plan, FactorPlan):
        return False
    layers = dense_sites(skeleton.model)
    return any(
        planned.site.name in layers
        and planned.site.shape[1] % 4 == 0
        and planned.sparsity.makes_sparse24
        for block in plan
        for planned in block
    )
