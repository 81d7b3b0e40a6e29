"""2:4 checkpoints of other formats, or with their zeros stored, as compact ones of our own."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from secateur.ancestry import ancestry_of
from secateur.checkpoint.bitmask import check_bitmask_config, says_how_stored, write_dense
from secateur.checkpoint.compact import make_compact
from secateur.checkpoint.files import read_json
from secateur.checkpoint.fingerprint import fingerprint
from secateur.checkpoint.load import LoadedModel, load_model
from secateur.checkpoint.write import check_output, check_saving, check_space, write_checkpoint
from secateur.clock import StepClock
from secateur.errors import SecateurError
from secateur.models.inventory import take_inventory
from secateur.models.measure import num_bytes
from secateur.models.swap import find_sparse24
from secateur.prepare import check_model
from secateur.progress import Progress, default_progress
from secateur.recipe import PruneStage, Recipe
from secateur.report.record import Report
from secateur.run_report import model_record, report_of, size_record
from secateur.run_stages import run_stages

# Dense weights are written once on the way: a bitmask checkpoint has 9/16 of their bytes.
_DENSE_RATIO = 16 / 9


def convert(
    source: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    max_shard_size: str | int = "5GB",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a 2:4 checkpoint as a compact one; every weight bit for bit.

    It may be in compressed-tensors' format `sparse-24-bitmask`, or dense with its zeros stored,
    whoever pruned it: then layers of the blocks that are exactly 2:4 are found by looking.

    The report names a recipe that changes nothing: 2:4 by magnitude on layers that are 2:4. Layers
    outside the model's blocks become dense. -0.0 becomes 0.0.

    Args:
        source: a folder with the checkpoint; its tokenizer goes with it.
        output: the folder to make.
        overwrite: replace a folder that is not empty, if Secateur wrote it.
        max_shard_size: of the weight files, as transformers reads it.
        trust_remote_code: run Python code that comes with the model.
        progress: told how far the work is; bars on a terminal by default.

    Returns:
        The report, as it was written.

    Raises:
        SecateurError: the source is not such a checkpoint, is quantised as well or not 2:4, or the
            output cannot be written; nothing was written.
    """
    source, output = Path(source), Path(output)
    if not source.is_dir():
        raise SecateurError(f"expected the folder of a checkpoint, got {source}")
    config = read_json(source / "config.json")
    is_stored_otherwise = says_how_stored(config)
    if is_stored_otherwise:
        check_bitmask_config(config)
    place = check_output(output, overwrite, source)
    clock = StepClock(progress or default_progress())
    try:
        load = _from_bitmask if is_stored_otherwise else _from_dense
        loaded, layers = load(source, place, trust_remote_code, clock)
        check_saving(loaded.model, max_shard_size)
        check_space(place, num_bytes(loaded.model))
        return _write(loaded, layers, place, overwrite, max_shard_size, trust_remote_code, clock)
    finally:
        clock.progress.close()


def _from_bitmask(
    source: Path, place: Path, trust_remote_code: bool, clock: StepClock
) -> tuple[LoadedModel, list[str]]:
    stored = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    check_space(place, int(stored * (1 + _DENSE_RATIO)))
    with tempfile.TemporaryDirectory(
        prefix=f".{place.name}.", suffix=".partial", dir=_existing(place)
    ) as scratch:
        with clock.step("decode"):
            layers = write_dense(source, Path(scratch))
        with clock.step("load"):
            loaded = load_model(scratch, trust_remote_code=trust_remote_code)
    return replace(loaded, source=str(source), folder=source), layers


def _from_dense(
    source: Path, _: Path, trust_remote_code: bool, clock: StepClock
) -> tuple[LoadedModel, list[str]]:
    with clock.step("load"):
        loaded = load_model(source, trust_remote_code=trust_remote_code, accept_compact=False)
    with clock.step("look for 2:4 layers"):
        layers = find_sparse24(loaded.model)
    if not layers:
        raise SecateurError(
            f"expected a checkpoint with 2:4 layers, but in {source} no linear layer of the blocks "
            "is exactly 2:4: prune it first (secateur compress --pattern 2:4 --format compact)"
        )
    return loaded, layers


def _write(
    loaded: LoadedModel,
    layers: list[str],
    output: Path,
    overwrite: bool,
    max_shard_size: str | int,
    trust_remote_code: bool,
    clock: StepClock,
) -> Report:
    model = loaded.model
    inventory = take_inventory(model)
    names = {site.name for site in inventory.all_sites} & set(layers)
    if not names:
        raise SecateurError(
            f"expected 2:4 layers in the blocks of the model, got {len(layers)} elsewhere, such as "
            f"{layers[0]}"
        )
    chosen = tuple(name for name in layers if name in names)
    recipe = Recipe(stages=(PruneStage(method="magnitude", pattern="2:4", targets=chosen),))
    before = model_record(loaded, check_model(model, recipe))
    cpu = torch.device("cpu")
    stages = run_stages(model, recipe, None, {}, ancestry_of(loaded), cpu, clock)
    make_compact(model)
    size, probe = size_record(model), fingerprint(model)

    def make_report() -> Report:
        return report_of(
            model=before,
            recipe=recipe,
            calibration=None,
            stages=stages,
            size=size,
            verification=probe,
            device=cpu,
            clock=clock,
        )

    with clock.step("save and verify"):
        return write_checkpoint(
            model,
            loaded.tokenizer,
            recipe,
            make_report,
            output,
            overwrite=overwrite,
            max_shard_size=max_shard_size,
            trust_remote_code=trust_remote_code,
        )


def _existing(place: Path) -> Path:
    return next(parent for parent in place.parents if parent.exists())
