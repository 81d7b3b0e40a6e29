"""What dropping blocks costs and buys: perplexity by criterion, prefill and decode speed.

    python -m bench.depth quality
    python -m bench.depth speed

Speeds are of all models in turns in one run, as ratios to the dense one.
"""

import copy
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from bench.records import append_record
from secateur.checkpoint.load import load_with_tokenizer, silence_transformers
from secateur.compress import compress_with_report
from secateur.evaluate.perplexity import encode_text, perplexity
from secateur.evaluate.speed import decode_tokens_per_second, prefill_tokens_per_second
from secateur.models.blocks import find_blocks
from secateur.progress import SilentProgress

EXAMPLE = Path("examples/books-8m")
LENGTH = 256
CRITERIA: dict[str, dict[str, Any]] = {
    "Block Influence": {"criterion": "block_influence"},
    "Block Influence, remeasured": {"criterion": "block_influence", "remeasure": True},
    "angular distance": {"criterion": "angular_distance"},
    "relative magnitude": {"criterion": "relative_magnitude"},
    "perplexity": {"criterion": "perplexity"},
    "perplexity, remeasured (SLEB)": {"criterion": "perplexity", "remeasure": True},
    "attention only, perplexity": {"criterion": "perplexity", "granularity": "attention"},
    "MLP only, perplexity": {"criterion": "perplexity", "granularity": "mlp"},
}
SHAPES: dict[str, dict[str, Any]] = {
    "1 block": {"count": 1},
    "2 blocks": {"count": 2},
    "3 blocks": {"count": 3},
    "4 blocks": {"count": 4},
    "attention of 2 blocks": {"count": 2, "granularity": "attention"},
    "MLP of 2 blocks": {"count": 2, "granularity": "mlp"},
}

app = typer.Typer(add_completion=False)


def dropped(model: nn.Module, tokenizer: Any, num_samples: int, stage: dict[str, Any]) -> nn.Module:
    """A copy of a model without some blocks."""
    network, _ = compress_with_report(
        copy.deepcopy(model),
        {"stages": [{"stage": "drop_blocks", **stage}]},
        calibration=EXAMPLE / "calibration.txt",
        tokenizer=tokenizer,
        num_calibration_samples=num_samples,
        max_seq_length=LENGTH,
        progress=SilentProgress(),
    )
    return network


@app.command()
def quality(
    num_samples: Annotated[int, typer.Option(help="Calibration windows.")] = 64,
    most: Annotated[int, typer.Option(help="Blocks to drop at most.")] = 4,
    criteria: Annotated[
        str | None, typer.Option(help="Only these, between semicolons.", show_default=False)
    ] = None,
) -> None:
    """Perplexity against blocks removed, for every criterion. One record each."""
    silence_transformers()
    dense = load_with_tokenizer(EXAMPLE)
    text = EXAMPLE / "evaluation.txt"
    token_ids = encode_text(dense.tokenizer, text.read_text(encoding="utf-8"))

    def measure(name: str, count: int, network: nn.Module) -> None:
        result = perplexity(network, token_ids, LENGTH)
        record = {
            "kind": "quality",
            "model": EXAMPLE.name,
            "num_samples": num_samples,
            "text": f"{EXAMPLE.name}/{text.name}",
            "max_seq_length": LENGTH,
            "num_tokens": result.num_tokens,
            "criterion": name,
            "removed": count,
            "perplexity": result.perplexity,
            "standard_error": result.standard_error,
        }
        append_record("depth", record)
        typer.echo(f"{name:32} {count} {result.perplexity:8.2f} ± {result.standard_error:.2f}")

    measure("dense", 0, dense.model)
    names = list(CRITERIA) if criteria is None else [n.strip() for n in criteria.split(";")]
    for name in names:
        stage = CRITERIA[name]
        for count in range(1, most + 1):
            network = dropped(dense.model, dense.tokenizer, num_samples, {**stage, "count": count})
            measure(name, count, network)


@app.command()
def speed(
    batch: Annotated[int, typer.Option(help="Sequences of the prefill.")] = 4,
    length: Annotated[int, typer.Option(help="Tokens in each.")] = 256,
    prompt: Annotated[int, typer.Option(help="Tokens before decoding.")] = 128,
    rounds: Annotated[int, typer.Option(help="Timed turns.")] = 7,
    dtype: Annotated[str, typer.Option(help="To compute in.")] = "float32",
    shared: Annotated[
        bool, typer.Option("--shared", help="The machine has other work: say so in the records.")
    ] = False,
) -> None:
    """Prefill and decode without some blocks, as ratios to dense. One record a model."""
    silence_transformers()
    dense = load_with_tokenizer(EXAMPLE, dtype=dtype)
    models: dict[str, nn.Module] = {"dense": dense.model}
    for name, stage in SHAPES.items():
        models[name] = dropped(dense.model, dense.tokenizer, 16, stage)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(3, 256, (batch, length), generator=generator)
    prefill = prefill_tokens_per_second(models, input_ids, rounds)
    decode = decode_tokens_per_second(models, input_ids[:1, :prompt], rounds=rounds)
    whole, in_blocks = _num_parameters(dense.model), _block_parameters(dense.model)
    for name, model in models.items():
        kept = _block_parameters(model) / in_blocks
        record = {
            "kind": "speed",
            "model": EXAMPLE.name,
            "shape": [batch, length],
            "prompt": prompt,
            "dtype": dtype,
            "variant": name,
            "machine_shared": shared,
            "block_parameters_kept": kept,
            "parameters_kept": _num_parameters(model) / whole,
            # Were time in blocks alone, and as their parameters.
            "proportional_ratio": 1 / kept,
            "prefill_tokens_per_second": prefill[name],
            "prefill_ratio": prefill[name] / prefill["dense"],
            "decode_tokens_per_second": decode[name],
            "decode_ratio": decode[name] / decode["dense"],
        }
        append_record("depth", record)
        typer.echo(
            f"{name:22} {kept:.1%} of the blocks  prefill {record['prefill_ratio']:.2f}  "
            f"decode {record['decode_ratio']:.2f}  proportional {1 / kept:.2f}"
        )


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _block_parameters(model: nn.Module) -> int:
    return _num_parameters(find_blocks(model).modules)


if __name__ == "__main__":
    app()
