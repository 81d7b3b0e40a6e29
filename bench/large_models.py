"""Prune models of large shapes from disk to disk: seconds, and the largest memory of the device.

    python -m bench.large_models --shape llama-3-8b --device cuda
    python -m bench.large_models --shape llama-3-70b-block --blocks 4 --device cuda

Weights are random and made a block at a time, so that the model is never whole in memory.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from bench.records import RESULTS, append_record
from secateur.compress_streaming import compress_streaming
from secateur.models.blocks import find_blocks
from secateur.progress import SilentProgress
from secateur.report.record import PruneRecord, Report
from secateur.streaming.shards import ShardPlan, write_index, write_shard
from secateur.throughput.shapes import ModelShape, shape_named

DTYPE = torch.bfloat16
# The initialisation that these families were trained from.
SCALE = 0.02


def write_random_model(folder: Path, shape: ModelShape, num_blocks: int | None, device: str) -> int:
    """A checkpoint of a shape with random weights; its bytes."""
    fields = dict(shape.fields) | ({"num_hidden_layers": num_blocks} if num_blocks else {})
    config = AutoConfig.for_model(shape.model_type, **fields, dtype=DTYPE)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    model.tie_weights()
    blocks = find_blocks(model)
    shards = ShardPlan(model, blocks)
    parameters = dict(model.named_parameters())
    generator = torch.Generator(device).manual_seed(0)
    files = []
    for file_name, names in _files(shards, len(blocks), blocks.name, parameters):
        tensors = {name: _random(parameters[name], generator, device) for name in names}
        write_shard(folder, file_name, tensors)
        files.append(file_name)
    write_index(folder, files)
    model.config.save_pretrained(folder)
    return sum((folder / name).stat().st_size for name in files)


def _files(
    shards: ShardPlan, num_blocks: int, list_name: str, parameters: dict[str, Any]
) -> Iterator[tuple[str, list[str]]]:
    for number, names in enumerate(shards.rest):
        yield shards.rest_file(number), list(names)
    for index in range(num_blocks):
        prefix = f"{list_name}.{index}."
        yield shards.block_file(index), [name for name in parameters if name.startswith(prefix)]


def _random(like: Tensor, generator: torch.Generator, device: str) -> Tensor:
    if like.ndim == 1:
        return torch.ones(like.shape, dtype=DTYPE)
    values = torch.empty(like.shape, dtype=DTYPE, device=device)
    return values.normal_(std=SCALE, generator=generator).cpu()


def measure(folder: Path, method: str, arguments: argparse.Namespace, vocabulary: int) -> Report:
    """Prune to 2:4 on random tokens."""
    generator = torch.Generator().manual_seed(1)
    size = (arguments.samples, arguments.length)
    tokens = torch.randint(0, vocabulary, size, generator=generator)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        return compress_streaming(
            folder,
            {"stages": [{"stage": "prune", "method": method, "pattern": "2:4"}]},
            calibration=tokens,
            output=Path(place) / "pruned",
            device=arguments.device,
            activations=arguments.activations,
            progress=SilentProgress(),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="llama-3-8b")
    parser.add_argument("--blocks", type=int, help="instead of the shape's own number")
    parser.add_argument("--methods", default="wanda,wanda++")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--activations", default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the record")
    parser.add_argument("--folder", type=Path, help="for the model; by default a temporary one")
    arguments = parser.parse_args()
    shape = shape_named(arguments.shape)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        num_bytes = write_random_model(folder, shape, arguments.blocks, arguments.device)
        vocabulary = int(shape.fields["vocab_size"])
        for method in arguments.methods.split(","):
            _measure_one(folder, method, arguments, vocabulary, num_bytes)


def _measure_one(
    folder: Path, method: str, arguments: argparse.Namespace, vocabulary: int, num_bytes: int
) -> None:
    on_gpu = torch.device(arguments.device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    started = perf_counter()
    report = measure(folder, method, arguments, vocabulary)
    seconds = perf_counter() - started
    stage = report.stages[0]
    assert isinstance(stage, PruneRecord)
    values = {
        "benchmark": "large model, streamed",
        "device": report.machine["device"],
        "shape": arguments.shape,
        "blocks": report.size.num_blocks,
        "model_bytes": num_bytes,
        "method": method,
        "samples": arguments.samples,
        "length": arguments.length,
        "seconds": seconds,
        "seconds_by_step": report.seconds,
        "seconds_calibrating": stage.seconds_calibrating,
        "seconds_pruning": stage.seconds_pruning,
        "seconds_tuning": stage.seconds_tuning,
        "seconds_propagating": stage.seconds_propagating,
        "device_peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
    }
    append_record("large_models", values, arguments.results)
    peak = f", device peak {values['device_peak_bytes'] / 2**30:.1f} GiB" if on_gpu else ""
    print(f"{arguments.shape} {method}: {seconds:.1f} s{peak}", flush=True)


if __name__ == "__main__":
    main()
