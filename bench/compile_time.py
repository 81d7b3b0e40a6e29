"""Seconds until a decode step of one row is compiled: block by block, and as one program.

    python -m bench.compile_time

A Llama of width 64 with random weights in bfloat16, nothing cached. Seconds are CPU time of one
thread, so that other work on the machine hardly counts, and of tracing and writing code alone: what
inductor writes in C++ is not compiled. (On a GPU that is Triton's work; equal kernels are compiled
once either way.) `ranks`: every matrix has factors, of other ranks in every block.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import process_time
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._inductor.async_compile import AsyncCompile
from transformers import LlamaConfig, LlamaForCausalLM

from bench.records import RESULTS, append_record
from secateur import Engine, accelerate
from secateur.engine import compiled_parts, fused_residuals
from secateur.modules import LowRankLinear

WIDTH = 64
RANKS = tuple(range(4, 48, 4))
"""In turns: with seven matrices a block, eleven blocks differ."""

Form = Literal["dense", "ranks"]
Way = Literal["by block", "one program", "by block and rank"]

CASES: tuple[tuple[Form, Way, int], ...] = (
    ("dense", "by block", 2),
    ("dense", "by block", 8),
    ("dense", "by block", 32),
    ("dense", "one program", 2),
    ("dense", "one program", 8),
    ("ranks", "by block", 8),
    ("ranks", "by block and rank", 8),
)


def small_llama(form: Form, num_blocks: int) -> Any:
    """In bfloat16, as the engine gets it: layers of one input are multiplied together."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    if form == "ranks":
        linears = [(n, m) for n, m in model.model.named_modules() if isinstance(m, nn.Linear)]
        for index, (name, linear) in enumerate(linears):
            rank, (rows, columns) = RANKS[index % len(RANKS)], linear.weight.shape
            layer = LowRankLinear(columns, rows, rank, bias=False, dtype=torch.bfloat16)
            model.model.set_submodule(name, layer)
    accelerate(model, force=True)
    return model


def seconds_to_compile(
    form: Form, way: Way, num_blocks: int, compiler: str = "inductor"
) -> tuple[float, int]:
    """CPU seconds until the step is ready, and the number of programs."""
    programs = 0

    def count(graph: torch.fx.GraphModule, examples: Sequence[Tensor]) -> Callable[..., Any]:
        nonlocal programs
        programs += 1
        compiled: Callable[..., Any] = torch._dynamo.lookup_backend(compiler)(graph, examples)
        return compiled

    torch.compiler.reset()
    model = small_llama(form, num_blocks)
    with (
        _parts(way, model),
        patch.object(fused_residuals, "COMPILER", count),
        patch.object(AsyncCompile, "cpp_pybinding", lambda *_, **__: lambda *_: None),
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        engine = Engine(model, max_batch_size=1, max_length=64, compile=True)
        before = process_time()
        engine.warm_up()
        return process_time() - before, programs


def _parts(way: Way, model: Any) -> AbstractContextManager[object]:
    if way == "one program":
        return patch.object(compiled_parts, "_find_parts", lambda _: [model.model])
    if way == "by block and rank":
        return patch.object(compiled_parts, "_mark_ranks", lambda _: False)
    return nullcontext()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case, and print and record it."""
    parser = argparse.ArgumentParser(prog="python -m bench.compile_time")
    parser.add_argument("--most-blocks", type=int, default=32)
    parser.add_argument("--compiler", default="inductor", help="a backend of torch.compile")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # What torch sets up once is no part of it.
    seconds_to_compile("dense", "by block", 1, options.compiler)
    for form, way, num_blocks in CASES:
        if num_blocks > options.most_blocks:
            continue
        seconds, programs = seconds_to_compile(form, way, num_blocks, options.compiler)
        print(f"{form:6} {num_blocks:3} blocks, {way}: {seconds:.1f} s, {programs} programs")
        case = {"form": form, "way": way, "num_blocks": num_blocks, "width": WIDTH}
        how = {"dtype": "bfloat16", "compiler": options.compiler}
        found = {"cpu_seconds": round(seconds, 2), "programs": programs}
        append_record("compile_time", {**case, **how, **found}, options.results)


if __name__ == "__main__":
    main()
