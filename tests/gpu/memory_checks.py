"""What a kernel reads and writes: poison around and between its arguments, NaN where it must not
look, sizes beyond 32-bit offsets.
"""

from dataclasses import replace

import torch
from gpu.accuracy_checks import Case
from gpu.forced_kernels import is_forced
from gpu.layers import ROUND_ONCE, SPARSE, Layer, Size, finished, random_layer, random_values
from torch import Tensor

from secateur_kernels.layouts import Fragment24
from secateur_kernels.layouts.fragment24 import UNIT
from secateur_kernels.testing.buffers import (
    Surroundings,
    poison_free_memory,
    poisoned_allocations,
)
from secateur_kernels.testing.tolerance import assert_same_bits, assert_within

# Offsets and sizes beyond this do not fit 32 bits with a sign.
BEYOND = 2**31


def check_canaries(case: Case, backend: str, tokens: tuple[int, ...]) -> None:
    """Arguments lie in poisoned surroundings: results stay right, no byte around them changes.

    x and the residual come with gaps of poison between their rows and begin off alignment.
    """
    dtype = case.x.dtype
    rows, _ = case.layer.shape
    generator = torch.Generator(case.x.device).manual_seed(5)
    for m in case.tokens(backend, tokens):
        around = Surroundings()
        x = around.place("x", case.x[:m], gap=5, offset=3)
        bias = around.place("bias", random_values((rows,), dtype, generator), offset=1)
        residual = random_values((m, rows), dtype, generator)
        residual = around.place("residual", residual, gap=7, offset=1)
        layer = _surrounded(case.layer, around)
        y = layer(x, backend, bias, residual)
        resolved = layer.resolved(x, backend)
        product = case.product(resolved, plain=False)[slice(0, m)]
        expected = finished(product, dtype, resolved, bias, residual)
        assert_within(y, expected, f"{backend}, {m} tokens in poison", case.truncates)
        around.check()


def _surrounded(layer: Layer, around: Surroundings) -> Layer:
    """The same layer, its tensors copied into poisoned surroundings."""
    sparse, factors = layer.sparse, layer.factors
    if sparse is not None:
        sparse = replace(sparse, data=around.place("packed weight", sparse.data))
    if factors is not None:
        down, up = around.place("down", factors.down), around.place("up", factors.up)
        factors = replace(factors, down=down, up=up)
    dense = None if layer.dense is None else around.place("dense copy", layer.dense)
    return replace(layer, sparse=sparse, dense=dense, factors=factors)


def check_unwritten_memory(case: Case, backend: str, tokens: tuple[int, ...]) -> None:
    """Outputs and workspaces that begin as NaN leave no trace, however they came to be NaN."""
    for m in case.tokens(backend, tokens):
        x = case.x[:m]
        clean = case.layer(x, backend)
        with poisoned_allocations():
            poisoned = case.layer(x, backend)
        assert_same_bits(poisoned, clean, f"{backend}, {m} tokens, outputs poisoned")
        poison_free_memory(x.device, largest=1 << 24)
        again = case.layer(x, backend)
        assert_same_bits(again, clean, f"{backend}, {m} tokens, free memory poisoned")


def check_rows_are_apart(case: Case, backend: str, tokens: tuple[int, ...]) -> None:
    """NaN and Inf in some rows of x change no other row by a bit, and do reach their own."""
    for m in case.tokens(backend, tokens):
        x = case.x[:m].clone()
        bad = sorted({m // 2, m - 1})
        good = [row for row in range(m) if row not in bad]
        x[bad] = 0
        clean = case.layer(x, backend)
        for poison in (torch.nan, torch.inf):
            x[bad] = poison
            y = case.layer(x, backend)
            assert_same_bits(y[good], clean[good], f"{backend}, {m} tokens, {poison} elsewhere")
            assert not bool(y[bad].isfinite().any()), f"{backend}: {poison} was lost"


def check_poison_at_one_column(case: Case, backend: str, m: int) -> None:
    """NaN at one column reaches the features that keep it; in the CUDA backend only those.

    Sparse instructions do not read a dropped column; whoever multiplies by zero makes it NaN.
    """
    dense = case.layer.dense
    assert dense is not None
    assert case.layer.op == SPARSE
    for column in (0, 1, case.x.shape[1] - 1):
        x = case.x[:m].clone()
        x[0, column] = torch.nan
        y = case.layer(x, backend)
        kept = dense[:, column] != 0
        assert bool(y[0][kept].isnan().all()), f"{backend}: NaN at column {column} was lost"
        if backend == "cuda" or is_forced(backend):
            assert not bool(y[0][~kept].isnan().any()), f"{backend}: read a dropped column"
        elif backend in ROUND_ONCE:
            assert bool(y[0].isnan().all()), f"{backend}: a zero hid NaN at column {column}"
        assert not bool(y[1:].isnan().any())


def check_many_elements(
    size: Size, m: int, backend: str, dtype: torch.dtype, device: torch.device
) -> None:
    """x or y of more than 2**31 elements: rows on both sides of the limit, first and last."""
    layer = random_layer(size, dtype, device)
    x = torch.empty(m, size.k, dtype=dtype, device=device)
    x.normal_(generator=torch.Generator(device).manual_seed(1))
    y = layer(x, backend)
    rows = torch.tensor(_telling_rows(m, (size.k, size.n)), device=device)
    resolved = layer.resolved(x, backend)
    expected = layer.expected(x[rows], resolved)
    assert_within(y[rows], expected, f"{backend}, {m} tokens of {size}")
    del x
    # What was never written, or written elsewhere, is hardly ever a finite number of this size.
    assert float(y.abs().amax()) < 100


def _telling_rows(m: int, widths: tuple[int, ...]) -> list[int]:
    rows = {0, 1, m // 2, m - 2, m - 1}
    for width in widths:
        for limit in (BEYOND // 2, BEYOND, 2 * BEYOND):
            middle = limit // width
            rows |= {row for row in range(middle - 2, middle + 3) if 0 <= row < m}
    return sorted(row for row in rows if 0 <= row < m)


def repeated_layer(rows: int, size: Size, dtype: torch.dtype, device: torch.device) -> Layer:
    """A weight [size.n, K] whose rows repeat with a period of `rows`, packed without a dense copy.

    Args:
        rows: distinct rows, a multiple of 64, so that whole panels repeat.
        size: of the layer, 2:4; N a multiple of `rows`.
        dtype: of the weight.
        device: where.

    Returns:
        the layer, whose `dense` holds the distinct rows only.
    """
    assert rows % UNIT == 0
    assert size.n % rows == 0
    part = random_layer(replace(size, n=rows), dtype, device)
    assert part.sparse is not None
    data = part.sparse.data.repeat(size.n // rows, 1, 1)
    # Not validated: that would take a multiple of the weight's own memory.
    sparse = object.__new__(Fragment24)
    fields = {
        "data": data,
        "shape": (size.n, size.k),
        "kind": part.sparse.kind,
        "row_order": part.sparse.row_order,
        "version": part.sparse.version,
    }
    for name, field in fields.items():
        object.__setattr__(sparse, name, field)
    return Layer(SPARSE, sparse, part.dense, None)


def check_large_weight(
    size: Size, m: int, backend: str, dtype: torch.dtype, device: torch.device, rows: int = 1024
) -> None:
    """A weight of more than 2**31 elements: every part of y against the rows that repeat."""
    layer = repeated_layer(rows, size, dtype, device)
    x = random_values((m, size.k), dtype, torch.Generator(device).manual_seed(1))
    y = layer(x, backend)
    expected = layer.product(x, layer.resolved(x, backend))
    for start in range(0, size.n, rows):
        part: Tensor = y[:, start : start + rows]
        assert_within(part, expected, f"{backend}, features from {start} of {size}")
