"""The GPU suite's way to force one kernel: the op runs it, with a config of its own."""

from typing import Any

import pytest
import torch
from gpu import forced_kernels, layers
from gpu.forced_kernels import FORCED, configs, forced, supported
from gpu.gradient_checks import check_compiled, check_op
from gpu.layers import SPARSE, Layer, Size, random_layer
from torch import Tensor

from secateur_kernels import SecateurError
from secateur_kernels.dispatch.problem import DeviceFacts
from secateur_kernels.sparse24_linear import cuda_kernels

FACTS = DeviceFacts("a GPU", (9, 0), 132, has_library=True)
SIZE = Size(SPARSE, 72, 136)


def layer_and_x() -> tuple[Layer, Tensor]:
    layer = random_layer(SIZE, torch.float16, torch.device("cpu"))
    return layer, torch.ones(3, 136, dtype=torch.float16)


@pytest.mark.parametrize("backend", FORCED)
def test_the_op_calls_the_kernel_with_its_config(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []

    def launch(x: Tensor, *arguments: Any) -> Tensor:
        called.append(arguments[-1])
        return torch.zeros(len(x), 72, dtype=x.dtype)

    name = backend.removeprefix("cuda-")
    monkeypatch.setattr(cuda_kernels, "launch", launch)
    monkeypatch.setattr(forced_kernels, "device_facts", lambda device: FACTS)
    layer, x = layer_and_x()
    assert supported(backend, 3, *layer.shape, x.device)
    assert layer.takes(backend, 3)
    y = layer(x, backend)
    assert (y.shape, float(y.abs().max())) == ((3, 72), 0.0)
    timed = configs(backend, 3, 72, 136, x.device)
    with forced(backend, timed[-1]):
        layer(x, "cuda")
        with pytest.raises(AssertionError, match="expected backend cuda"):
            layer(x, "auto")
    assert [config.kernel for config in called] == [name, name]
    assert called == [timed[0], timed[-1]]


@pytest.mark.parametrize("backend", FORCED)
def test_compiled_and_checked_calls_run_it_too(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[int] = []

    def launch(x: Tensor, *arguments: Any) -> Tensor:
        called.append(len(x))
        return torch.zeros(len(x), 72, dtype=x.dtype)

    monkeypatch.setattr(cuda_kernels, "launch", launch)
    monkeypatch.setattr(forced_kernels, "device_facts", lambda device: FACTS)
    layer, x = layer_and_x()
    check_compiled(layer, [x, x[:2]], backend, {"backend": "aot_eager"})
    # Compiled, eager; compiled, eager.
    assert called == [3, 3, 2, 2]
    check_op(layer, x, backend)
    assert len(called) > 4


@pytest.mark.parametrize("backend", FORCED)
def test_every_number_of_tokens_is_described(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "device_facts", lambda device: FACTS)
    layer, _ = layer_and_x()
    assert "config" not in layer.described(backend, 0).lower()
    assert f"kernel='{backend.removeprefix('cuda-')}'" in layer.described(backend, 1)


@pytest.mark.parametrize("backend", FORCED)
def test_without_a_gpu_it_is_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forced_kernels, "device_facts", lambda device: FACTS)
    layer, x = layer_and_x()
    with pytest.raises(SecateurError, match="the compiled library"):
        layer(x, backend)
    # And nothing stays replaced.
    assert layer(x, "reference").isfinite().all()
