"""What compression costs beside what it must cost at least.

    python -m bench.compression [--model examples/books-8m]

Time: the whole Wanda compression of 128 x 512 tokens against two bare forward passes of every
block over the same batches, taken in turns; goal 1.15. Memory: growth of the resident size after
imports and loading, against two activation buffers and one block; goal 1.5 times the buffers plus
one block. The memory part runs in a process of its own, before anything else has grown.
"""

import json
import subprocess
import sys
import threading
from copy import deepcopy
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Annotated, Any

import psutil
import torch
import typer

from bench.records import append_record
from secateur.calibration.inputs import TOKENS_PER_BATCH, BlockInputs, capture_inputs
from secateur.calibration.tokens import tokens_from_tensor
from secateur.checkpoint.load import load_model, silence_transformers
from secateur.compress import compress
from secateur.models.inventory import Inventory, take_inventory
from secateur.models.measure import num_bytes
from secateur.models.trace import trace_blocks
from secateur.progress import SilentProgress

NUM_SAMPLES, LENGTH = 128, 512
WANDA = {"stages": [{"stage": "prune", "method": "wanda", "pattern": "2:4"}]}


def token_ids(vocabulary: int) -> torch.Tensor:
    """int64 [128, 512], random with a fixed seed: speed does not depend on which."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, (NUM_SAMPLES, LENGTH), generator=generator)


def bare_passes(model: Any, tokens: torch.Tensor) -> float:
    """Seconds for two forward passes of every block over all batches, nothing else."""
    inventory = take_inventory(model)
    inputs = block_inputs(model, inventory, tokens)
    started = perf_counter()
    for index, block in enumerate(inventory.blocks.modules):
        for _ in range(2):
            inputs.run_block(block, index)
        for hidden, output in zip(inputs.hidden, inputs.outputs, strict=True):
            hidden.copy_(output)
    return perf_counter() - started


def block_inputs(model: Any, inventory: Inventory, tokens: torch.Tensor) -> BlockInputs:
    trace = trace_blocks(model, inventory.blocks, {}, tokens[:1, :8])
    samples = tokens_from_tensor(tokens)
    device = torch.device("cpu")
    return capture_inputs(model, inventory.blocks, trace, samples, TOKENS_PER_BATCH, device)


def time_ratio(folder: str, rounds: int) -> dict[str, Any]:
    loaded = load_model(folder).model
    tokens = token_ids(loaded.config.vocab_size)
    bare, whole = [], []
    for turn in range(rounds + 1):
        bare_seconds = bare_passes(loaded, tokens)
        model = deepcopy(loaded)
        started = perf_counter()
        compress(model, WANDA, calibration=tokens, progress=SilentProgress())
        if turn:
            bare.append(bare_seconds)
            whole.append(perf_counter() - started)
    ratios = [w / b for w, b in zip(whole, bare, strict=True)]
    return {
        "bare_seconds": median(bare),
        "compress_seconds": median(whole),
        "ratio": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "goal": 1.15,
        "rounds": rounds,
    }


def memory_growth(folder: str) -> dict[str, Any]:
    model = load_model(folder).model
    tokens = token_ids(model.config.vocab_size)
    with torch.no_grad():
        # Thread pools and kernels' own buffers are set up by the first use of a model.
        model(tokens[:1, :8])
    process = psutil.Process()
    before = process.memory_info().rss
    peak = before
    running = True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, process.memory_info().rss)
            sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    compress(model, WANDA, calibration=tokens, progress=SilentProgress())
    running = False
    watcher.join()
    buffer = NUM_SAMPLES * LENGTH * model.config.hidden_size * model.dtype.itemsize
    block = num_bytes(take_inventory(model).blocks.modules[0])
    allowed = 1.5 * 2 * buffer + block
    return {
        "growth_bytes": peak - before,
        "activation_buffer_bytes": buffer,
        "block_bytes": block,
        "allowed_bytes": int(allowed),
        "of_allowed": (peak - before) / allowed,
    }


def main(
    model: Annotated[str, typer.Option(help="Model folder.")] = "examples/books-8m",
    rounds: Annotated[int, typer.Option(help="Timed turns.")] = 5,
    memory_only: Annotated[bool, typer.Option("--memory-only", hidden=True)] = False,
    record: Annotated[bool, typer.Option(help="Append to bench/results.")] = True,
) -> None:
    silence_transformers()
    if memory_only:
        typer.echo(json.dumps(memory_growth(model)))
        return
    command = [sys.executable, "-m", "bench.compression", "--model", model, "--memory-only"]
    memory = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    result = {"memory": memory, "time": time_ratio(model, rounds)}
    typer.echo(json.dumps(result, indent=2))
    if record:
        append_record(
            "compression", {"model": Path(model).name, "shape": [NUM_SAMPLES, LENGTH]} | result
        )


if __name__ == "__main__":
    typer.run(main)
