"""Checks an installed kernel package, with nothing of the checkout on the path.

python -I check_installed.py pure|compiled
"""

import importlib.metadata
import importlib.util
import sys
from typing import Any

import torch

import secateur_kernels
from secateur_kernels import Fragment24, SecateurError, sparse24_linear
from secateur_kernels.library import check_capability, library_functions, library_status

FRONT_END = ["transformers", "typer", "yaml", "datasets", "matplotlib", "rich"]


def expect_error(text: str, kind: type[Exception], call: Any, *arguments: Any) -> None:
    """As pytest.raises, which is not there."""
    said = "nothing was raised"
    try:
        call(*arguments)
    except kind as error:
        said = str(error)
    assert text in said, f"expected {kind.__name__} with {text!r}: {said}"


def check_environment() -> None:
    present = [name for name in FRONT_END if importlib.util.find_spec(name)]
    assert not present, f"this environment is not bare: {present}"
    expect_error("transformers", ImportError, __import__, "transformers")
    version = importlib.metadata.version("secateur")
    assert version == secateur_kernels.__version__, version


def check_ops() -> None:
    """Registered, with fakes, right on a CPU, and clear about what is not there."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(96, 128, generator=generator).view(96, 32, 4)
    dense[..., 1], dense[..., 2] = 0, 0
    weight = dense.view(96, 128).to(torch.bfloat16)
    packed = Fragment24.from_dense(weight)
    x = torch.randn(3, 128, generator=generator).to(torch.bfloat16)
    y = sparse24_linear(x, packed)
    # One rounding to 8 bits of an fp32 sum.
    torch.testing.assert_close(y.double(), x.double() @ weight.double().T, rtol=2**-8, atol=2**-8)
    names = [name for name in dir(torch.ops.secateur) if "linear" in name]
    assert "secateur::sparse24_linear" in torch._C._dispatch_get_all_op_names(), names
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        fake = sparse24_linear(torch.empty(7, 128, dtype=torch.bfloat16), packed)
        assert fake.shape == (7, 96)
    expect_error("backend cuda", SecateurError, lambda: sparse24_linear(x, packed, backend="cuda"))


def check_library(compiled: bool) -> None:
    status = library_status()
    assert status.loaded == compiled, status
    if not compiled:
        assert "not built" in status.reason, status
        return
    assert status.version == secateur_kernels.__version__, status
    assert status.runs_on((9, 0)), status
    assert status.runs_on((8, 6)), status
    expect_error("is sm_75", SecateurError, check_capability, status, (7, 5), "a T4")
    text = library_functions().secateur_error_text
    assert text(-3) == b"expected 1 to 64 tokens", text(-3)
    assert text(1) == b"invalid argument", text(1)
    ops = torch.ops.secateur_cuda
    for name in ("unpack24", "sparse24_skinny"):
        assert "-> ()" in str(getattr(ops, name).default._schema)
    data = torch.zeros(1, 1, 4608, dtype=torch.uint8)
    dense = torch.zeros(64, 64, dtype=torch.float16)
    assert ops.unpack24(data.to("meta"), dense.to("meta"), False) is None
    expect_error("secateur_cuda::unpack24", NotImplementedError, ops.unpack24, data, dense, False)


def main() -> None:
    check_environment()
    check_ops()
    check_library(sys.argv[1] == "compiled")
    where = secateur_kernels.__path__[0]
    print(f"{sys.argv[1]} install in {where}: torch {torch.__version__}, {library_status()}")


main()
