"""What low rank costs and buys: perplexity at equal parameters, prefill speed on this machine.

    python -m bench.low_rank quality --model FOLDER --calibration FILE --text FILE
    python -m bench.low_rank speed --model FOLDER

`quality`: one record for each method and budget, all from the same calibration tokens. `speed`:
dense against factors at a quarter of the smaller side, models in turns in one run.
"""

import copy
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from bench.one_text import OneText
from bench.records import append_record
from secateur.checkpoint.load import load_with_tokenizer, silence_transformers
from secateur.compress import compress_with_report
from secateur.errors import SecateurError
from secateur.evaluate.speed import prefill_tokens_per_second
from secateur.models.inventory import take_inventory
from secateur.progress import SilentProgress

BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
# Options are named where the stage's own choices have changed since the first records.
METHODS: dict[str, dict[str, Any]] = {
    "svd": {"method": "svd"},
    "svd-whitened": {"importance": "loss", "in_turn": False},
    "svd-whitened, in turn": {"importance": "loss", "in_turn": True},
    "svd-whitened, directions": {"importance": "directions", "in_turn": False},
    "svd-whitened, directions, in turn": {"importance": "directions", "in_turn": True},
    "svd-whitened, joint": {"joint": True, "importance": "loss", "in_turn": False},
    "svd-whitened, joint, in turn": {"joint": True, "importance": "loss", "in_turn": True},
    "svd-whitened, joint, directions, in turn": {
        "joint": True,
        "importance": "directions",
        "in_turn": True,
    },
    "svd-whitened, dense targets": {"importance": "loss", "dense_targets": True},
    "sparse-plus-low-rank": {"method": "sparse-plus-low-rank", "rounds": 4},
}

app = typer.Typer(add_completion=False)


@app.command()
def quality(
    model: Annotated[str, typer.Option(help="Model folder.")] = "examples/books-8m",
    calibration: Annotated[
        str, typer.Option(help="Text to calibrate on.")
    ] = "examples/books-8m/calibration.txt",
    text: Annotated[Path, typer.Option(help="Text to measure on.")] = Path(
        "examples/books-8m/evaluation.txt"
    ),
    num_samples: Annotated[int, typer.Option(help="Calibration windows.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens in a window, of both texts.")] = 256,
    windows: Annotated[int | None, typer.Option(help="Only the first windows of the text.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Only these, between semicolons.", show_default=False)
    ] = None,
    untimed: Annotated[
        bool, typer.Option("--untimed", help="Record no seconds: the machine has other work.")
    ] = False,
) -> None:
    chosen = list(METHODS) if methods is None else [name.strip() for name in methods.split(";")]
    if not METHODS.keys() >= {*chosen}:
        raise typer.BadParameter(f"expected methods of {'; '.join(METHODS)}, got {methods}")
    one = OneText(model, calibration, text, num_samples, length, windows)

    def measure(network: nn.Module, values: dict[str, Any]) -> None:
        record = one.measure(network) | values
        append_record("low_rank_quality", record)
        kept = f"{values['kept_fraction']:.3f}"
        typer.echo(f"{values['method']:28} {values['budget']:4} {kept} {record['perplexity']:8.2f}")

    measure(one.dense, {"method": "dense", "budget": 0.0, "kept_fraction": 1.0})
    for budget in BUDGETS:
        for name in chosen:
            try:
                network, report = one.compress(
                    {"stage": "factor", **METHODS[name], "budget": budget}
                )
            except SecateurError as error:
                typer.echo(f"{name:28} {budget:4} skipped: {error}")
                continue
            [record] = report.stages
            seconds = sum(report.seconds.values())
            kept = record.kept_fraction  # type: ignore[union-attr]
            values = {"method": name, "budget": budget, "kept_fraction": kept}
            measure(network, values | ({} if untimed else {"seconds": seconds}))


@app.command()
def speed(
    model: Annotated[str, typer.Option(help="Model folder.")] = "examples/books-8m",
    batch: Annotated[int, typer.Option(help="Sequences.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens in each.")] = 512,
    dtype: Annotated[str, typer.Option(help="To compute in.")] = "float32",
    rounds: Annotated[int, typer.Option(help="Timed turns.")] = 7,
) -> None:
    """Prefill, dense against factors at a quarter of the smaller side of every matrix."""
    silence_transformers()
    dense = load_with_tokenizer(model, dtype=dtype).model
    models = {"dense": dense}
    for name, share in (("rank 1/4", 4), ("rank 1/8", 8)):
        network: nn.Module = copy.deepcopy(dense)
        for rank, targets in _targets_by_rank(network, share).items():
            stage = {"stage": "factor", "method": "svd", "rank": rank, "targets": targets}
            recipe = {"stages": [stage]}
            network, _ = compress_with_report(network, recipe, progress=SilentProgress())
        models[name] = network
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(3, 256, (batch, length), generator=generator)
    speeds = prefill_tokens_per_second(models, input_ids, rounds)
    for name, tokens_per_second in speeds.items():
        ratio = tokens_per_second / speeds["dense"]
        typer.echo(f"{name:10} {tokens_per_second:9.0f} tokens/s  {ratio:.2f} of dense")
        record = {
            "model": Path(model).name,
            "shape": [batch, length],
            "dtype": dtype,
            "variant": name,
            "tokens_per_second": tokens_per_second,
            "ratio": ratio,
        }
        append_record("low_rank_speed", record)


def _targets_by_rank(model: nn.Module, share: int) -> dict[int, list[str]]:
    ranks: dict[int, list[str]] = {}
    for site in take_inventory(model).all_sites:
        ranks.setdefault(min(site.shape) // share, []).append(site.name)
    return ranks


if __name__ == "__main__":
    app()
