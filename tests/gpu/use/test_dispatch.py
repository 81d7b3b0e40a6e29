"""What dispatch chooses on the device, and a compiled library that does not fit it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu.accuracy_checks import TOKENS
from gpu.launch_checks import inputs_for
from gpu.layers import BACKENDS, SPARSE, Size, random_layer

from secateur_kernels import SecateurError, sparse24_linear
from secateur_kernels.dispatch import problem
from secateur_kernels.dispatch.decide import forget
from secateur_kernels.library import LibraryStatus
from secateur_kernels.sparse24_linear.op import explain
from secateur_kernels.testing.tolerance import assert_within
from secateur_kernels.unpack24.op import unpack24

BF16 = torch.bfloat16
SIZE = Size(SPARSE, 1000, 384)


@pytest.mark.parametrize("n", [4096, 28672])
def test_a_choice_says_why_and_stays(n: int, device: torch.device) -> None:
    layer = random_layer(Size(SPARSE, n, 4096), BF16, device)
    assert layer.sparse is not None
    for m in TOKENS[1:]:
        x = torch.empty(m, 4096, dtype=BF16, device=device)
        choice = explain(x, layer.sparse)
        assert choice.backend in BACKENDS[SPARSE]
        assert choice.backend not in ("reference", "dense"), f"{m} tokens: {choice}"
        assert choice.reason
        assert explain(x, layer.sparse) is choice


@pytest.fixture
def _library_for_another_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def status() -> LibraryStatus:
        return LibraryStatus(True, Path("libsecateur_cuda.so"), ("sm_70",), "0")

    monkeypatch.setattr("secateur_kernels.library.library_status", status)
    monkeypatch.setattr(problem, "library_status", status)
    problem.device_facts.cache_clear()
    forget()
    yield
    monkeypatch.undo()
    problem.device_facts.cache_clear()
    forget()


@pytest.mark.usefixtures("_library_for_another_gpu")
def test_a_library_for_another_gpu_is_refused_and_not_chosen(device: torch.device) -> None:
    layer = random_layer(SIZE, BF16, device)
    assert layer.sparse is not None
    x = inputs_for(layer, 8, 1, BF16, device)[0]
    with pytest.raises(SecateurError, match=r"was built for sm_70, but .* is sm_\d+"):
        sparse24_linear(x, layer.sparse, backend="cuda")
    with pytest.raises(SecateurError, match=r"was built for sm_70, but .* is sm_\d+"):
        unpack24(layer.sparse, backend="cuda")
    assert explain(x, layer.sparse).backend != "cuda"
    expected = layer.expected(x, layer.resolved(x, "auto"))
    assert_within(layer(x), expected, "without a library that fits")


def test_too_many_tokens_for_the_compiled_kernel(device: torch.device) -> None:
    if not problem.device_facts(device).has_library:
        pytest.skip("the compiled library is not there")
    layer = random_layer(SIZE, BF16, device)
    assert layer.sparse is not None
    m = next((m for m in range(1, 1 << 15) if not layer.takes("cuda", m)), None)
    if m is not None:
        x = torch.zeros(m, 384, dtype=BF16, device=device)
        with pytest.raises(SecateurError, match=r"tokens"):
            sparse24_linear(x, layer.sparse, backend="cuda")
