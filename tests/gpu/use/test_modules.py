"""The layers of `secateur.modules` on the device."""

import pytest
import torch
from gpu.launch_checks import inputs_for
from gpu.layers import BOTH, LOW_RANK, SPARSE, Layer, Size, random_layer
from torch import nn

from secateur_kernels import Canonical24
from secateur_kernels.testing.tolerance import assert_same_bits, assert_within

modules = pytest.importorskip("secateur.modules")

BF16 = torch.bfloat16
SIZES = [Size(SPARSE, 1000, 384), Size(LOW_RANK, 1000, 384, 96), Size(BOTH, 1000, 384, 96)]


def module_of(layer: Layer) -> nn.Module:
    """A module around the layer's weight, packed."""
    if layer.op == LOW_RANK:
        made: nn.Module = modules.LowRankLinear.from_factors(layer.factors)
        return made
    assert layer.dense is not None
    weight = Canonical24.from_dense(layer.dense)
    if layer.op == SPARSE:
        made = modules.Sparse24Linear.from_weight(weight)
    else:
        made = modules.SparseLowRankLinear.from_parts(weight, layer.factors)
    return made


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size.op))
@pytest.mark.parametrize("m", [1, 16, 100])
def test_forward(m: int, size: Size, device: torch.device) -> None:
    layer = random_layer(size, BF16, device)
    x = inputs_for(layer, m, 1, BF16, device)[0]
    expected = layer.expected(x, layer.resolved(x, "auto"))
    assert_within(module_of(layer)(x), expected, f"{size.op}, {m} tokens")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size.op))
def test_made_on_the_cpu_and_moved(size: Size, device: torch.device) -> None:
    layer = random_layer(size, BF16, device)
    x = inputs_for(layer, 8, 1, BF16, device)[0]
    there = module_of(layer)
    moved = module_of(_on_cpu(layer)).to(device)
    assert_same_bits(moved(x), there(x), "a module moved from the CPU")
    back = moved.cpu().to(device)
    assert_same_bits(back(x), there(x), "a module moved there and back")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size.op))
def test_under_autocast_x_is_rounded_first(size: Size, device: torch.device) -> None:
    layer = random_layer(size, BF16, device)
    x = inputs_for(layer, 8, 1, BF16, device)[0]
    module = module_of(layer)
    with torch.autocast("cuda", BF16):
        y = module(x.float())
    assert_same_bits(y, module(x), "a packed layer under autocast")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size.op))
def test_cast_to_another_packed_dtype(size: Size, device: torch.device) -> None:
    layer = random_layer(size, BF16, device)
    x = inputs_for(layer, 8, 1, BF16, device)[0]
    module = module_of(layer)
    before = module(x).float()
    after = module.to(torch.float16)(x.half())
    assert after.dtype == torch.float16
    # All that differs are roundings to bf16: of the result, and of what is between two factors.
    near = 2**-6 * float(before.abs().max())
    torch.testing.assert_close(after.float(), before, rtol=0, atol=near)


def _on_cpu(layer: Layer) -> Layer:
    return Layer(
        layer.op,
        None if layer.sparse is None else layer.sparse.to("cpu"),
        None if layer.dense is None else layer.dense.cpu(),
        None if layer.factors is None else layer.factors.to("cpu"),
    )


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size.op))
def test_state_dict_between_devices(size: Size, device: torch.device) -> None:
    layer, other = random_layer(size, BF16, device), random_layer(size, BF16, device, seed=1)
    x = inputs_for(layer, 8, 1, BF16, device)[0]
    module, copy = module_of(layer), module_of(other)
    state = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    copy.load_state_dict(state)
    assert_same_bits(copy(x), module(x), "a module loaded from a state dict")


def test_a_dense_copy_can_be_kept(device: torch.device) -> None:
    layer = random_layer(SIZES[0], BF16, device)
    module = module_of(layer)
    x = inputs_for(layer, 300, 1, BF16, device)[0]
    num_bytes = module.keep_dense_copy()  # type: ignore[operator]
    assert num_bytes == 2 * 1000 * 384
    for backend in ("dense", "unpack"):
        assert_within(module(x), layer.expected(x, backend), "with a dense copy")
        module.drop_dense_copy()  # type: ignore[operator]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size.op))
def test_compiled_module(size: Size, device: torch.device) -> None:
    layer = random_layer(size, BF16, device)
    module = module_of(layer)
    x = inputs_for(layer, 8, 1, BF16, device)[0]
    compiled = torch.compile(module, fullgraph=True)
    assert_same_bits(compiled(x), module(x), "a compiled module")
    torch._dynamo.reset()
