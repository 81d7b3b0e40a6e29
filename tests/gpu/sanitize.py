"""A small launch of every kernel, for compute-sanitizer; results are compared as well.

    compute-sanitizer --tool memcheck --error-exitcode 9 python tests/gpu/sanitize.py --part 1/2

Tools: memcheck, racecheck, initcheck, synccheck. Weights, inputs and the truth are made on the
CPU, so that little but our own kernels runs under the tool, and every tensor is an allocation of
its own, so that a byte too far is seen. Run it once without the tool first: kernels that are
compiled at first use are then compiled already. Exit status: 0, or 1 and the first difference,
or what was not there; compute-sanitizer's own status where it found something.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# Before torch is imported: within the allocator's large blocks no tool sees an overrun.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "kernels"), str(ROOT / "tests")]

import torch  # noqa: E402
from gpu.backends_here import why_not  # noqa: E402
from gpu.forced_kernels import FORCED, configs, forced  # noqa: E402
from gpu.layers import BOTH, LOW_RANK, SPARSE, Layer, Size, random_layer  # noqa: E402
from gpu.layers import random_values as values  # noqa: E402
from gpu.packing_checks import (  # noqa: E402
    SOURCES,
    arguments_of,
    assert_same_bytes,
    assert_same_packing,
    awkward_weight,
)

from secateur_kernels.dispatch.problem import device_facts  # noqa: E402
from secateur_kernels.layouts.fragment24 import RowOrder  # noqa: E402
from secateur_kernels.low_rank_linear import cuda_kernel as low_rank_kernel  # noqa: E402
from secateur_kernels.low_rank_linear.cuda_boxes import box_variants  # noqa: E402
from secateur_kernels.low_rank_linear.cuda_kernel import LowRankShape  # noqa: E402
from secateur_kernels.pack24.op import Form, pack24  # noqa: E402
from secateur_kernels.sparse24_linear.packed import Packed24  # noqa: E402
from secateur_kernels.testing.tolerance import assert_within  # noqa: E402
from secateur_kernels.threshold.op import keep_largest_per_row  # noqa: E402
from secateur_kernels.unpack24.op import unpack24  # noqa: E402

CPU = torch.device("cpu")
BF16, FP16 = torch.bfloat16, torch.float16
# Tails along N and K; K split over blocks; gate and up.
SIZES = (
    Size(SPARSE, 130, 68),
    Size(SPARSE, 72, 1160),
    Size(SPARSE, 208, 200, row_order="gate_up"),
    Size(LOW_RANK, 130, 68, 17, (100, 30)),
    Size(LOW_RANK, 72, 1160, 48),
    Size(BOTH, 130, 200, 17),
    Size(BOTH, 208, 200, 140, (104, 104), row_order="gate_up"),
)
TOKENS = (1, 9, 17, 33, 65, 129)
COMPILED = ("triton", "cuda")
Launch = tuple[str, Callable[[torch.device], None]]


def launches(device: torch.device) -> Iterator[Launch]:
    """Name and work of everything that is run."""
    for backend in COMPILED:
        if why_not(backend, device) is None:
            yield from _linears(backend)
            yield from _packing(backend)
    if why_not("cuda", device) is None:
        yield from _configs()


def _linears(backend: str) -> Iterator[Launch]:
    for size in SIZES:
        for dtype in (BF16, FP16):
            name = f"{size.op} {size} {dtype} {backend}"
            yield name, partial(_run_linear, size, dtype, backend)


def _run_linear(size: Size, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    layer = random_layer(size, dtype, CPU)
    there = _moved(layer, device)
    generator = torch.Generator().manual_seed(1)
    bias = values((size.n,), dtype, generator)
    halves = size.row_order == "gate_up"
    for m in TOKENS:
        if not there.takes(backend, m):
            continue
        x = values((m, size.k), dtype, generator)
        # Both with and without an epilogue, for they are different kernels.
        assert_within(there(x.to(device), backend).cpu(), layer.expected(x, backend))
        activation = "silu_and_mul" if halves else "none"
        residual = values((m, size.n // 2 if halves else size.n), dtype, generator)
        rest = (bias.to(device), residual.to(device), activation)
        y = there(x.to(device), backend, *rest).cpu()
        assert_within(y, layer.expected(x, backend, bias, residual, activation))


def _moved(layer: Layer, device: torch.device) -> Layer:
    sparse = None if layer.sparse is None else layer.sparse.to(str(device))
    factors = None if layer.factors is None else layer.factors.to(str(device))
    return Layer(layer.op, sparse, layer.dense, factors)


def _configs() -> Iterator[Launch]:
    """Every way to divide the work that tuning would try, in each compiled kernel."""
    for m in (1, 9, 17, 33, 129):
        for backend in FORCED:
            yield f"configs of {backend}, {m} tokens", partial(_run_configs, backend, m)
        for op in (LOW_RANK, BOTH) if m <= 33 else ():
            yield f"compiled configs of {op}, {m} tokens", partial(_run_low_rank_configs, op, m)


def _run_configs(backend: str, m: int, device: torch.device) -> None:
    size = Size(SPARSE, 520, 584)
    layer = random_layer(size, BF16, CPU)
    there = _moved(layer, device)
    if not there.takes(backend, m):
        return
    x = values((m, size.k), BF16, torch.Generator().manual_seed(2))
    expected = layer.expected(x, backend)
    for config in configs(backend, m, size.n, size.k, device):
        with forced(backend, config):
            y = there(x.to(device), "cuda")
        assert_within(y.cpu(), expected, str(config))


def _run_low_rank_configs(op: str, m: int, device: torch.device) -> None:
    size = Size(op, 520, 584, 272)
    layer = random_layer(size, BF16, CPU)
    there = _moved(layer, device)
    assert there.factors is not None
    x = values((m, size.k), BF16, torch.Generator().manual_seed(2))
    expected = layer.expected(x, "cuda")
    facts = device_facts(device)
    shape = LowRankShape(m, size.n, size.k, size.rank, sparse=op == BOTH)
    packed = None if there.sparse is None else Packed24.of(there.sparse)
    rest = (there.factors.down, there.factors.up, (size.n,), None, None, "none")
    candidates = low_rank_kernel.candidate_configs(shape, facts.num_sms, facts.capability)
    for config in (*candidates, *box_variants(candidates[0], shape, facts.num_sms)):
        y = low_rank_kernel.launch(x.to(device), packed, *rest, config)
        assert_within(y.cpu(), expected, str(config))


def _packing(backend: str) -> Iterator[Launch]:
    yield f"unpack24 {backend}", partial(_run_unpack, backend)
    if backend == "triton":
        yield "pack24 triton", _run_pack
        yield "keep_largest_per_row triton", _run_keep_largest


def _run_unpack(backend: str, device: torch.device) -> None:
    orders: tuple[RowOrder, ...] = ("natural", "gate_up")
    for order in orders:
        packed = pack24(awkward_weight(80, 68, BF16, CPU), row_order=order, want=("fragment",))
        assert packed.fragment is not None
        dense = unpack24(packed.fragment.to(str(device)), backend=backend)  # type: ignore[arg-type]
        assert_same_bytes(dense, unpack24(packed.fragment), f"unpack24 {order}")


def _run_pack(device: torch.device) -> None:
    want: tuple[Form, ...] = ("mask", "canonical", "fragment")
    for dtype in (BF16, FP16):
        weight = awkward_weight(80, 200, dtype, CPU)
        for source in SOURCES:
            arguments: dict[str, Any] = arguments_of(source, weight)
            expected = pack24(weight, **arguments, want=want)
            there: dict[str, Any] = {n: tensor.to(device) for n, tensor in arguments.items()}
            packed = pack24(weight.to(device), **there, want=want, backend="triton")
            assert_same_packing(packed, expected, f"pack24 {source}")


def _run_keep_largest(device: torch.device) -> None:
    for columns in (5, 384, 1000):
        score = awkward_weight(9, columns, torch.float32, CPU)
        mask = keep_largest_per_row(score.to(device), columns // 2, backend="triton")
        assert_same_bytes(mask, keep_largest_per_row(score, columns // 2), f"{columns} columns")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", default="1/1", help="k/n: every n-th launch from the k-th on")
    part, parts = (int(number) for number in parser.parse_args().part.split("/"))
    if not torch.cuda.is_available():
        # A failure: whoever asked would take it for a clean run.
        raise SystemExit("needs an NVIDIA GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    everything = list(launches(device))
    chosen = everything[part - 1 :: parts]
    for name, work in chosen:
        try:
            work(device)
            torch.cuda.synchronize(device)
        except AssertionError as error:
            print(f"{name}: {error}")
            raise SystemExit(1) from error
        print(f"ok  {name}", flush=True)
    print(f"{len(chosen)} of {len(everything)} groups of launches")
    missing = [reason for backend in COMPILED if (reason := why_not(backend, device))]
    if missing:
        raise SystemExit(f"left out: {'; '.join(missing)}")


if __name__ == "__main__":
    main()
