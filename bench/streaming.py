"""Memory of pruning a model from disk to disk, beside pruning it in memory.

    python -m bench.streaming [--threads 1] [--samples 16] [--length 512] [--factors]

A Llama of 24 blocks x hidden 1024 with random weights in bfloat16, made block by block in a folder
that goes afterwards, is pruned by Wanda 2:4 on 16 x 512 random tokens; streamed, it is also written
compact and, with `--factors`, made into factors of rank 256, which takes a quarter of an hour. Each
way runs in a process of its own. What counts is how far its resident size grew after imports: the
largest that the system saw (VmHWM, set back after imports) minus what it was then. Goal for
streaming by Wanda: below 40% of the model's bytes. Seconds are of the whole run with reading and
writing.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep
from typing import Annotated, Any

import torch
import typer
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig

from bench.records import append_record
from secateur.checkpoint.load import silence_transformers
from secateur.compress import compress_with_report
from secateur.compress_streaming import compress_streaming
from secateur.progress import SilentProgress

NUM_BLOCKS, WIDTH, INNER, VOCABULARY = 24, 1024, 2816, 32000
GOAL = 0.4
WANDA = {"stages": [{"stage": "prune", "method": "wanda", "pattern": "2:4"}]}
FACTORS = {"stages": [{"stage": "factor", "method": "svd-whitened", "rank": 256}]}
WAYS = ("streaming", "in_memory", "streaming_compact")

_KINDS = ("RssAnon", "RssFile", "RssShmem")
_SECONDS_BETWEEN_LOOKS = 0.005


def make_model(folder: Path) -> int:
    """Write the model, a block at a time; bytes of its weights."""
    LlamaConfig(
        num_hidden_layers=NUM_BLOCKS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        vocab_size=VOCABULARY,
        num_attention_heads=WIDTH // 64,
        num_key_value_heads=WIDTH // 64,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(_shards()):
        file_name = f"model-{number + 1:05d}-of-{NUM_BLOCKS + 1:05d}.safetensors"
        tensors = {name: _values(shape, generator) for name, shape in shapes.items()}
        save_file(tensors, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file_name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _shards() -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes by name: what belongs to no block, then block after block."""
    yield {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }
    for block in range(NUM_BLOCKS):
        inside = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
        inside |= {f"mlp.{name}_proj": (INNER, WIDTH) for name in ("gate", "up")}
        inside |= {"mlp.down_proj": (WIDTH, INNER)}
        norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (WIDTH,))
        shapes: dict[str, tuple[int, ...]] = {**inside, **norms}
        yield {f"model.layers.{block}.{name}.weight": shape for name, shape in shapes.items()}


def _values(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (0.02 * torch.randn(shape, generator=generator)).bfloat16()


def token_ids(samples: int, length: int) -> torch.Tensor:
    """int64 [samples, length], random with a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (samples, length), generator=generator)


def compress(way: str, folder: Path, output: Path, tokens: torch.Tensor) -> None:
    """Do the work in one of the ways."""
    if way != "in_memory":
        compress_streaming(
            folder,
            FACTORS if way == "streaming_factors" else WANDA,
            calibration=tokens,
            output=output,
            checkpoint_format="compact" if way == "streaming_compact" else "auto",
            progress=SilentProgress(),
        )
        return
    compress_with_report(
        folder,
        WANDA,
        calibration=tokens,
        output=output,
        checkpoint_format="dense",
        progress=SilentProgress(),
    )


def measure(way: str, folder: Path, output: Path, tokens: torch.Tensor) -> dict[str, Any]:
    """What a run takes, in this process, which has done nothing else before."""
    # Sets the largest resident size back to what it is now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident()
    started = perf_counter()
    with _watched() as largest:
        compress(way, folder, output, tokens)
    return {
        "growth_bytes": _resident()["VmHWM"] - before["VmRSS"],
        "seconds": perf_counter() - started,
        "imports_bytes": before["VmRSS"],
        # Sampled, each at its own largest.
        "growth_by_kind": {kind: largest[kind] - before[kind] for kind in _KINDS},
    }


def _resident() -> dict[str, int]:
    """Bytes by name."""
    sizes = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in (*_KINDS, "VmRSS", "VmHWM"):
            sizes[name] = int(value.split()[0]) * 1024
    return sizes


@contextmanager
def _watched() -> Iterator[dict[str, int]]:
    """While this is open, the largest of each size that was seen."""
    largest = _resident()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for name, size in _resident().items():
                largest[name] = max(largest[name], size)
            sleep(_SECONDS_BETWEEN_LOOKS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield largest
    finally:
        done.set()
        watcher.join()


def run_apart(way: str, folder: Path, output: Path, **numbers: int) -> dict[str, Any]:
    """`measure` in a new process, with threads, samples and length by their options' names."""
    arguments = ["--way", way, "--folder", str(folder), "--output", str(output)]
    for name, number in numbers.items():
        arguments += [f"--{name}", str(number)]
    command = [sys.executable, "-m", "bench.streaming", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main(
    threads: Annotated[int, typer.Option(help="Threads of either process.")] = 1,
    samples: Annotated[int, typer.Option(help="Of calibration.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens of a sample.")] = 512,
    factors: Annotated[bool, typer.Option(help="Also make factors of it.")] = False,
    record: Annotated[bool, typer.Option(help="Append to bench/results.")] = True,
    way: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[str, typer.Option(hidden=True)] = "",
    output: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    silence_transformers()
    torch.set_num_threads(threads)
    if way:
        tokens = token_ids(samples, length)
        typer.echo(json.dumps(measure(way, Path(folder), Path(output), tokens)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        model_bytes = make_model(place / "model")
        result: dict[str, Any] = {
            "model": f"random Llama, {NUM_BLOCKS} blocks x {WIDTH}",
            "model_bytes": model_bytes,
            "shape": [samples, length],
            "goal": GOAL,
        }
        for name in (*WAYS, "streaming_factors") if factors else WAYS:
            numbers = {"threads": threads, "samples": samples, "length": length}
            found = run_apart(name, place / "model", place / name, **numbers)
            result[name] = found | {"of_model": found["growth_bytes"] / model_bytes}
        result["same_weights"] = _same_weights(place / WAYS[0], place / WAYS[1])
    typer.echo(json.dumps(result, indent=2))
    if record:
        append_record("streaming", result)


def _same_weights(left: Path, right: Path) -> bool:
    """Whether two folders hold the same tensors, in whichever files."""
    return _digests(left) == _digests(right)


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                bits = file.get_tensor(name).reshape(-1).view(torch.uint8)
                found[name] = hashlib.sha256(bits.numpy().tobytes()).hexdigest()
    return found


if __name__ == "__main__":
    typer.run(main)
