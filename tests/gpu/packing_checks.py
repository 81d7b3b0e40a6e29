"""Scoring, selecting, packing and unpacking on a device: bit for bit what plain torch gives."""

from dataclasses import replace

import torch
from torch import Tensor

from secateur_kernels.layouts import Canonical24, Fragment24, kind_of
from secateur_kernels.layouts.fragment24 import UNIT, RowOrder
from secateur_kernels.pack24.op import Form, pack24
from secateur_kernels.pack24.pruned import Pruned24
from secateur_kernels.testing.buffers import Surroundings, poisoned_allocations
from secateur_kernels.threshold.op import keep_largest_per_row
from secateur_kernels.unpack24.op import unpack24

SOURCES = ("magnitude", "input_norm", "score", "keep_mask")
_SPECIAL = (0.0, -0.0, 1.0, -1.0, torch.nan, -torch.nan, torch.inf, -torch.inf, 1e-40, -1e-7)


def awkward_weight(
    n: int, k: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Tensor:
    """[N, K] with normal values, ties, zeros of both signs, and a row in four of special values."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator)
    weight[1::4] = torch.randint(-2, 3, weight[1::4].shape, generator=generator).float()
    special = torch.tensor(_SPECIAL)
    weight[2::4] = special[torch.randint(len(special), weight[2::4].shape, generator=generator)]
    weight[3::4] = torch.where(weight[3::4] > 0, weight[3::4], -0.0)
    return weight.to(dtype).to(device)


def arguments_of(source: str, weight: Tensor, seed: int = 1) -> dict[str, Tensor]:
    """What `pack24` takes for a source of scores, on the CPU."""
    n, k = weight.shape
    generator = torch.Generator().manual_seed(seed)
    if source == "input_norm":
        norm = torch.rand(k, generator=generator)
        norm[::7] = 0.0
        return {"input_norm": norm}
    if source == "score":
        score = torch.randn(n, k, generator=generator)
        return {"score": torch.where(score > 1, 1.0, score).to(weight.dtype)}
    if source == "keep_mask":
        ranks = torch.rand(n, k // 4, 4, generator=generator).argsort(2).argsort(2)
        most = torch.randint(3, (n, k // 4, 1), generator=generator)
        return {"keep_mask": (ranks < most).view(n, k)}
    return {}


def check_pack(
    weight: Tensor,
    source: str,
    row_order: RowOrder,
    backend: str,
    reference: Pruned24 | None = None,
) -> None:
    """Mask and both packed forms on the weight's device equal the reference's on the CPU."""
    want: tuple[Form, ...] = ("mask", "canonical", "fragment")
    if weight.dtype == torch.float32:
        want = ("mask",)
    on_cpu = arguments_of(source, weight.cpu())
    if reference is None:
        reference = pack24(
            weight.cpu().contiguous(),
            **on_cpu,
            row_order=row_order,
            want=want,
            backend="reference",
        )
    there = {name: tensor.to(weight.device) for name, tensor in on_cpu.items()}
    around = Surroundings()
    if weight.is_contiguous():
        weight = around.place("weight", weight)
    there = {name: around.place(name, tensor) for name, tensor in there.items()}
    with poisoned_allocations():
        packed = pack24(weight, **there, row_order=row_order, want=want, backend=backend)  # type: ignore[arg-type]
    around.check()
    assert_same_packing(packed, reference, f"{backend}, {source}, {row_order}")
    for form in want:
        alone = pack24(weight, **there, row_order=row_order, want=(form,), backend=backend)  # type: ignore[arg-type]
        assert_same_packing(alone, reference, f"{backend}, {source}, {row_order}, {form} alone")


def assert_same_packing(actual: Pruned24, expected: Pruned24, what: str) -> None:
    """Whatever `actual` holds has the bits of `expected`, and is a legal value."""
    if actual.keep_mask is not None:
        assert_same_bytes(actual.keep_mask, expected.keep_mask, f"{what}: mask")
    if actual.canonical is not None:
        assert expected.canonical is not None
        values, indices = expected.canonical.values, expected.canonical.indices
        assert_same_bytes(actual.canonical.values, values, f"{what}: canonical values")
        assert_same_bytes(actual.canonical.indices, indices, f"{what}: canonical indices")
        Canonical24(actual.canonical.values, actual.canonical.indices)
    if actual.fragment is not None:
        assert expected.fragment is not None
        assert_same_bytes(actual.fragment.data, expected.fragment.data, f"{what}: fragment data")
        made = actual.fragment
        Fragment24(made.data, made.shape, made.kind, made.row_order)


def assert_same_bytes(actual: Tensor, expected: Tensor | None, what: str) -> None:
    """NaN with the same bits is the same here, -0.0 and 0.0 are not."""
    assert expected is not None
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    ours = actual.contiguous().view(torch.uint8).cpu()
    theirs = expected.contiguous().view(torch.uint8).cpu()
    different = int((ours != theirs).sum())
    assert different == 0, f"{what}: {different} of {ours.numel()} bytes differ"


def check_pack_forms(weight: Tensor, backend: str) -> None:
    """Weights of any memory order and alignment; the numbers decide, not where they lie."""
    n, k = weight.shape
    expected = pack24(weight, want=("mask", "fragment"), backend="reference")
    flat = weight.new_full((weight.numel() + 1,), torch.nan)
    flat[1:] = weight.flatten()
    wide = weight.new_full((n, k + 3), torch.nan)
    wide[:, 2 : k + 2] = weight
    forms = {
        "transposed": weight.T.contiguous().T,
        "off alignment": flat[1:].view(n, k),
        "rows apart": wide[:, 2 : k + 2],
        "every second row": weight.repeat_interleave(2, dim=0)[::2],
    }
    for name, form in forms.items():
        packed = pack24(form, want=("mask", "fragment"), backend=backend)  # type: ignore[arg-type]
        assert_same_packing(packed, expected, f"{backend}, weight {name}")


def check_pack_beyond_32_bits(
    n: int, k: int, dtype: torch.dtype, device: torch.device, backend: str
) -> None:
    """Panels on both sides of 2**31 elements and bytes, first and last, each packed alone too."""
    weight = torch.empty(n, k, dtype=dtype, device=device)
    weight.normal_(generator=torch.Generator(device).manual_seed(0))
    packed = pack24(weight, want=("mask", "canonical", "fragment"), backend=backend)  # type: ignore[arg-type]
    assert packed.fragment is not None
    assert packed.canonical is not None
    assert packed.keep_mask is not None
    panels = {0, n // UNIT - 1}
    for elements in (2**31, 2**31 * 8 // 9, 2**32 * 8 // 9, 2**30, 2**32):
        middle = elements // (k * UNIT)
        panels |= {panel for panel in (middle - 1, middle, middle + 1) if 0 <= panel < n // UNIT}
    for panel in sorted(panels):
        rows = slice(panel * UNIT, (panel + 1) * UNIT)
        alone = pack24(
            weight[rows].clone(), want=("mask", "canonical", "fragment"), backend="reference"
        )
        canonical = packed.canonical
        part = Pruned24(
            packed.keep_mask[rows],
            Canonical24(canonical.values[rows], canonical.indices[rows]),
            Fragment24(packed.fragment.data[panel : panel + 1], (UNIT, k), kind_of(dtype)),
        )
        assert_same_packing(part, alone, f"{backend}, panel {panel} of {n} x {k}")


def check_unpack(weight: Tensor, row_order: RowOrder, backend: str) -> None:
    """The bytes of the kept weights, +0.0 elsewhere, nothing beyond rows and columns.

    Args:
        weight: [N, K], any numbers; the two largest of four are kept.
        row_order: to pack in.
        backend: of `unpack24`.
    """
    wanted: tuple[Form, ...] = ("mask", "fragment")
    packed = pack24(weight, row_order=row_order, want=wanted, backend="reference")
    assert packed.fragment is not None
    assert packed.keep_mask is not None
    bits = weight.contiguous().view(torch.int16).masked_fill(~packed.keep_mask, 0)
    around = Surroundings()
    fragment = replace(packed.fragment, data=around.place("packed weight", packed.fragment.data))
    with poisoned_allocations():
        dense = unpack24(fragment, backend=backend)  # type: ignore[arg-type]
    around.check()
    what = f"{backend}, unpacked {row_order} {list(weight.shape)}"
    assert_same_bytes(dense, bits.view(weight.dtype), what)


def check_keep_largest(score: Tensor, keep: int, backend: str) -> None:
    """Exactly `keep` a row, and those that a stable sort puts first, NaN last."""
    around = Surroundings()
    placed = around.place("score", score) if score.is_contiguous() else score
    with poisoned_allocations():
        mask = keep_largest_per_row(placed, keep, backend=backend)  # type: ignore[arg-type]
    around.check()
    # Doubles have room below minus infinity for NaN; adding zero makes both zeros one.
    wide = score.double().clamp(min=-1e300).masked_fill(score.isnan(), -torch.inf) + 0.0
    order = wide.argsort(dim=1, descending=True, stable=True)
    expected = torch.zeros_like(mask).scatter_(1, order[:, :keep], True)
    assert_same_bytes(mask, expected, f"{backend}, {keep} of {list(score.shape)}")
