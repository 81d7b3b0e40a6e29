"""Times of one layer in every form that it may take, on this machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor, nn

from secateur.mask.grouped import select_grouped
from secateur.modules import LowRankLinear, Sparse24Linear
from secateur.plan.table import DENSE, SPARSE24
from secateur.plan.turns import Variant, milliseconds_in_turns
from secateur_kernels.layouts import LowRank
from secateur_kernels.timing import copies_to_rotate, time_in_turns

# On a CPU as many copies as the model has layers of the shape, but no more bytes than this.
_MOST_BYTES = 256_000_000


@dataclass(frozen=True)
class LayerKind:
    """Layers that take the same time."""

    rows: int
    columns: int
    has_bias: bool


def form_name(rank: int) -> str:
    """As choices of factors are called."""
    return f"rank {rank}"


def factored_layer(
    kind: LayerKind, rank: int, dtype: torch.dtype, device: torch.device
) -> LowRankLinear:
    """A low-rank layer with random factors, for its time alone."""
    up = torch.randn(kind.rows, rank, device=device) * (rank * kind.columns) ** -0.5
    down = torch.randn(rank, kind.columns, device=device)
    bias = torch.zeros(kind.rows, dtype=dtype, device=device) if kind.has_bias else None
    return LowRankLinear.from_factors(LowRank.from_factors(up.to(dtype), down.to(dtype)), bias)


@torch.no_grad()
def layer_milliseconds(
    kind: LayerKind,
    ranks: Sequence[int],
    with_sparse24: bool,
    num_layers: int,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
) -> dict[str, float]:
    """Time of a layer, all forms in turns, each call on another copy of the weights.

    The median on a GPU, on a CPU the lower quartile (see `milliseconds_in_turns`).

    Weights are random. A model reads each layer's weights once a step and other layers' in
    between: one copy would be found in the cache each time.

    Args:
        kind: of the layer.
        ranks: of factors to time.
        with_sparse24: whether to time 2:4 too (bf16 and fp16).
        num_layers: of this kind in the model.
        tokens: rows of the input.
        dtype: of weights and inputs.
        device: where it runs.
        rounds: that are timed.

    Returns:
        by form: `dense`, `rank 64`, `2:4`.
    """
    num_bytes = kind.rows * kind.columns * dtype.itemsize
    copies = copies_to_rotate(num_bytes, device)
    if device.type != "cuda":
        copies = max(1, min(num_layers, _MOST_BYTES // num_bytes))
    dense = [_dense_layer(kind, dtype, device) for _ in range(copies)]
    layers: dict[str, Sequence[nn.Module]] = {DENSE: dense}
    for rank in ranks:
        layers[form_name(rank)] = [factored_layer(kind, rank, dtype, device) for _ in range(copies)]
    if with_sparse24:
        layers[SPARSE24] = [_sparse_layer(layer) for layer in dense]
    x = torch.randn(1, tokens, kind.columns, device=device).to(dtype)
    calls = {form: _rotating(found, x) for form, found in layers.items()}
    # On a CPU one round is one call.
    if device.type == "cuda":
        timed = time_in_turns(calls, device, copies, rounds)
        return {form: timing.median / 1e3 for form, timing in timed.items()}
    variants = {form: Variant.plain(_counting(call, copies)) for form, call in calls.items()}
    return milliseconds_in_turns(variants, device, max(rounds, 4 * copies))


def _dense_layer(kind: LayerKind, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    layer = nn.Linear(kind.columns, kind.rows, kind.has_bias, device=device)
    return layer.to(dtype)


def _sparse_layer(dense: nn.Linear) -> nn.Module:
    return Sparse24Linear.from_linear(dense, select_grouped(dense.weight.abs(), 2, 4))


def _counting(call: Callable[[int], object], copies: int) -> Callable[[], object]:
    """The call with the index of the next copy, over and over."""
    indices = cycle(range(copies))
    return lambda: call(next(indices))


def _rotating(layers: Sequence[nn.Module], x: Tensor) -> Callable[[int], object]:
    return lambda index: layers[index](x)
