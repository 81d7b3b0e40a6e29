"""Results against float64: bounds for every element, exact integers, one-hot probes, epilogues.

Each check runs on any device, so that the suite without a GPU can prove the checks themselves.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product as combinations

import torch
from gpu.layers import (
    ROUND_ONCE,
    Layer,
    Size,
    check_integers_fit,
    finished,
    random_layer,
    random_values,
)
from torch import Tensor

from secateur_kernels.testing.tolerance import (
    Bounded,
    assert_same_bits,
    assert_typical,
    assert_within,
)

TOKENS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 128, 129, 255, 256, 1000, 4096)
# Enough elements for a root mean square to mean something: its own error is then some 2%.
_MANY = 1000


@dataclass(frozen=True, eq=False)
class Case:
    """A layer with tokens for it, and its product for all of them, computed once."""

    layer: Layer
    x: Tensor
    truncates: bool
    _products: dict[tuple[str, bool], Bounded] = field(default_factory=dict)

    def tokens(self, backend: str, wanted: tuple[int, ...]) -> list[int]:
        """Those numbers of tokens that the backend takes."""
        return [m for m in wanted if self.layer.takes(backend, m)]

    def product(self, backend: str, plain: bool = True) -> Bounded:
        """Of all tokens; a call with fewer takes the first rows."""
        # Backends that round alike share one truth, and only the last is kept: it is large.
        key = ("once", True) if backend in ROUND_ONCE else (backend, plain)
        if key not in self._products:
            self._products.clear()
            self._products[key] = self.layer.product(self.x, backend, plain)
        return self._products[key]


@lru_cache(maxsize=1)
def case_of(
    size: Size,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    integers: bool = False,
    truncates: bool = False,
) -> Case:
    """The case, made once for tests that follow each other."""
    layer = random_layer(size, dtype, device, integers)
    generator = torch.Generator(device).manual_seed(1)
    x = random_values((tokens, size.k), dtype, generator, integers)
    return Case(layer, x, truncates)


def check_token_counts(case: Case, backend: str, tokens: tuple[int, ...] = TOKENS) -> None:
    """Every number of tokens, elementwise within the bound; and no second rounding hidden."""
    for m in case.tokens(backend, tokens):
        x = case.x[:m]
        y = case.layer(x, backend)
        resolved = case.layer.resolved(x, backend)
        expected = case.product(resolved)[slice(0, m)]
        assert_within(y, expected, case.layer.described(backend, m), case.truncates)
        if resolved in ROUND_ONCE and y.numel() >= _MANY and not case.truncates:
            assert_typical(y, expected, x.shape[1], case.layer.described(backend, m))


def check_integers(case: Case, backend: str, tokens: tuple[int, ...] = TOKENS) -> None:
    """Where every sum is exact, a lost, doubled or misplaced product changes the result.

    Only for backends that round once. Bias and residual are integers too.
    """
    layer, dtype = case.layer, case.x.dtype
    check_integers_fit(layer, case.x)
    rows, _ = layer.shape
    generator = torch.Generator(case.x.device).manual_seed(2)
    bias = random_values((rows,), dtype, generator, integers=True)
    residual = random_values((len(case.x), rows), dtype, generator, integers=True)
    for m in case.tokens(backend, tokens):
        product = case.product(backend).value[:m]
        what = layer.described(backend, m)
        assert_same_bits(layer(case.x[:m], backend), product.to(dtype), what)
        expected = (product + bias.double() + residual[:m].double()).to(dtype)
        actual = layer(case.x[:m], backend, bias, residual[:m])
        assert_same_bits(actual, expected, f"{what}, bias and residual")


def check_one_hot(layer: Layer, backend: str, tokens: tuple[int, ...]) -> None:
    """x of one-hot rows reads the weight column by column: it must come back bit for bit."""
    assert layer.dense is not None
    _, columns = layer.shape
    eye = torch.eye(columns, dtype=layer.dense.dtype, device=layer.dense.device)
    for m in (m for m in tokens if layer.takes(backend, m)):
        parts = [layer(eye[start : start + m], backend) for start in range(0, columns, m)]
        assert_same_bits(torch.cat(parts).T, layer.dense, f"one-hot, {layer.described(backend, m)}")


def check_epilogues(case: Case, backend: str, tokens: tuple[int, ...]) -> None:
    """Bias, residual and SiLU-and-multiply in all combinations that the layer's rows allow."""
    dtype, device = case.x.dtype, case.x.device
    generator = torch.Generator(device).manual_seed(3)
    rows, _ = case.layer.shape
    bias = random_values((rows,), dtype, generator)
    sparse = case.layer.sparse
    halves = rows % 2 == 0 and (sparse is None or sparse.row_order == "gate_up")
    factors = case.layer.factors
    if factors is not None and len(factors.group_rows) > 2:
        halves = False
    activations = ("none", "silu_and_mul") if halves else ("none",)
    choices = combinations(activations, (None, bias), (False, True))
    for activation, some_bias, with_residual in choices:
        out = rows if activation == "none" else rows // 2
        residuals = random_values((len(case.x), out), dtype, generator)
        for m in case.tokens(backend, tokens):
            x, residual = case.x[:m], residuals[:m] if with_residual else None
            y = case.layer(x, backend, some_bias, residual, activation)
            resolved = case.layer.resolved(x, backend)
            plain = activation == "none" and residual is None
            product = case.product(resolved, plain)[slice(0, m)]
            expected = finished(product, dtype, resolved, some_bias, residual, activation)
            what = (
                f"{case.layer.described(backend, m)}, {activation}, bias "
                f"{some_bias is not None}, residual {with_residual}"
            )
            assert_within(y, expected, what, case.truncates)


def forms_of(matrix: Tensor) -> dict[str, Tensor]:
    """The same numbers [M, K] in every memory order and alignment that a caller may have."""
    rows, columns = matrix.shape
    wide = matrix.new_full((rows, columns + 3), torch.nan)
    wide[:, 1 : columns + 1] = matrix
    flat = matrix.new_full((matrix.numel() + 1,), torch.nan)
    flat[1:] = matrix.flatten()
    spread = matrix.new_full((rows, 2 * columns), torch.nan)
    spread[:, ::2] = matrix
    apart = matrix.new_full((2 * rows, columns), torch.nan)
    apart[::2] = matrix
    return {
        "rows apart, not aligned": wide[:, 1 : columns + 1],
        "one element after an aligned address": flat[1:].view(rows, columns),
        "columns apart": spread[:, ::2],
        "every second row": apart[::2],
        "transposed": matrix.T.contiguous().T,
    }


def check_input_forms(case: Case, backend: str, m: int) -> None:
    """x of any memory order, alignment and number of dimensions; m even."""
    layer, x = case.layer, case.x[:m]
    expected = case.product(layer.resolved(x, backend))[slice(0, m)]
    for name, form in forms_of(x).items():
        assert_within(layer(form, backend), expected, f"{backend}, x {name}", case.truncates)
    out, columns = layer.shape
    shapes = {
        "3-D x": x.view(2, m // 2, columns),
        "3-D x, first dimensions swapped": x.view(m // 2, 2, columns).transpose(0, 1),
        "4-D x": x.view(1, 2, m // 2, columns),
    }
    for name, form in shapes.items():
        y = layer(form, backend)
        assert y.shape == (*form.shape[:-1], out), name
        swapped = y.transpose(0, 1) if "swapped" in name else y
        assert_within(swapped.reshape(m, out), expected, f"{backend}, {name}", case.truncates)
    first = case.product(layer.resolved(x[:1], backend))[slice(0, 1)]
    assert_within(layer(x[0], backend)[None], first, f"{backend}, 1-D x", case.truncates)
    repeated = Bounded(first.value.expand(m, -1), first.error.expand(m, -1))
    y = layer(x[:1].expand(m, columns), backend)
    assert_within(y, repeated, f"{backend}, one row repeated by stride 0", case.truncates)


def check_epilogue_forms(case: Case, backend: str, m: int) -> None:
    """Bias and residual of any memory order."""
    layer, x = case.layer, case.x[:m]
    generator = torch.Generator(x.device).manual_seed(4)
    resolved = layer.resolved(x, backend)
    product = case.product(resolved, plain=False)[slice(0, m)]
    bias = random_values((product.value.shape[1],), x.dtype, generator)
    residual = random_values(tuple(product.value.shape), x.dtype, generator)
    expected = finished(product, x.dtype, resolved, bias, residual)
    apart = bias.new_full((2 * len(bias),), torch.nan)
    apart[::2] = bias
    y = layer(x, backend, apart[::2], residual)
    assert_within(y, expected, f"{backend}, bias with a stride", case.truncates)
    for name, form in forms_of(residual).items():
        y = layer(x, backend, bias, form)
        assert_within(y, expected, f"{backend}, residual {name}", case.truncates)


def check_empty(layer: Layer, dtype: torch.dtype, device: torch.device) -> None:
    """No tokens in any number of dimensions; no launch may fail on it."""
    for backend in ("auto", "reference"):
        for shape in ((0,), (2, 0), (0, 3)):
            x = torch.empty(*shape, layer.shape[1], dtype=dtype, device=device)
            y = layer(x, backend)
            assert (y.shape, y.dtype) == ((*shape, layer.shape[0]), dtype)
