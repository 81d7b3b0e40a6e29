"""Two processes serve what one does: vLLM's real layers, its loaders and its sums over gloo."""

from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

from torch import Tensor
from vllm_plugin.served import inputs
from vllm_plugin.stored import DTYPE, Stored, expected
from vllm_plugin.two_ranks import ROW_COLUMNS, cases, work

from secateur.integrations.layer_specs import LayerSpec
from secateur_kernels.layouts import Canonical24
from secateur_kernels.testing.tolerance import (
    Bounded,
    add,
    assert_same_bits,
    assert_within,
    unit_of,
)

CASES = cases()
UNIT = unit_of(DTYPE)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def share(values: Tensor, rank: int, copies: int = 1) -> Tensor:
    """The rows of a rank; with `copies` ranks holding the same."""
    return values.chunk(2 // copies)[rank // copies]


def copies_of(name: str, rows: int) -> int:
    return 2 if name.endswith(("k_proj", "v_proj")) and rows == 16 else 1


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("row")])
def test_outputs_are_divided(case: str, results: list[dict[str, Any]]) -> None:
    _, layers = CASES[case]
    for rank in (0, 1):
        y = results[rank][case]["y"]
        start = 0
        for name, layer in layers.items():
            whole = expected(layer, inputs(36 if "qkv" in case else 20 if "gate" in case else 52))
            copies = copies_of(name, whole.value.shape[1])
            part = Bounded(
                share(whole.value.T, rank, copies).T, share(whole.error.T, rank, copies).T
            )
            stop = start + part.value.shape[1]
            # A dense layer's bias is added by torch, which may round in between.
            assert_within(y[:, start:stop], part.rounded(UNIT) if layer.spec is None else part)
            start = stop
        assert start == y.shape[1]


def halves(layer: Stored) -> list[Stored]:
    """A layer's shares by columns, cut here without the layout's own code."""
    found = []
    for rank in (0, 1):
        tensors = dict(layer.tensors)
        for leaf in ("weight", "indices", "down"):
            if leaf in tensors:
                tensors[leaf] = tensors[leaf].chunk(2, dim=1)[rank].contiguous()
        if rank > 0:
            tensors.pop("bias")
        found.append(Stored(layer.spec, tensors))
    return found


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("row")])
def test_inputs_are_divided(case: str, results: list[dict[str, Any]]) -> None:
    (layer,) = CASES[case][1].values()
    x = inputs(ROW_COLUMNS)
    # Each rank rounds its part, and their sum is rounded again.
    parts = [
        expected(half, columns.contiguous()).rounded(UNIT)
        for half, columns in zip(halves(layer), x.chunk(2, dim=1), strict=True)
    ]
    total = add(parts[0], parts[1], UNIT)
    whole = expected(layer, x)
    torch.testing.assert_close(total.value, whole.value, rtol=1e-12, atol=1e-12)
    assert_same_bits(results[0][case]["y"], results[1][case]["y"])
    extra = total.rounded(UNIT) if layer.spec is None else total
    assert_within(results[0][case]["y"], extra)


def dense(layer: Stored) -> Tensor | None:
    spec = layer.spec
    if spec is None:
        return layer.tensors["weight"]
    if spec.kind == "low_rank":
        return None
    return Canonical24(layer.tensors["weight"], layer.tensors["indices"]).to_dense()


@pytest.mark.parametrize("case", list(CASES))
def test_weights_are_shares_bit_for_bit(case: str, results: list[dict[str, Any]]) -> None:
    name, layers = CASES[case]
    for rank in (0, 1):
        shares = []
        for part, layer in layers.items():
            whole = dense(layer)
            if whole is None:
                continue
            by_columns = name.endswith("o_proj")
            share_of = whole.chunk(2, dim=1)[rank] if by_columns else None
            shares.append(
                share(whole, rank, copies_of(part, len(whole))) if share_of is None else share_of
            )
        held = results[rank][case].get("weights")
        # Layers that are all dense are vLLM's own, whose builds for CPUs put the weights away.
        put_away = held is None and all(layer.spec is None for layer in layers.values())
        if shares and not put_away:
            assert_same_bits(held, torch.cat(shares))
        else:
            assert held is None


def test_cases_cover_every_kind() -> None:
    specs = [layer.spec for _, layers in CASES.values() for layer in layers.values()]
    assert {spec.kind for spec in specs if isinstance(spec, LayerSpec)} == {
        "sparse24",
        "low_rank",
        "sparse24_low_rank",
    }
    assert None in specs
