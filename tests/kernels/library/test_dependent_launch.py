"""When kernels are launched as programmatic dependents: the policy, and what a capture allows."""

import ctypes
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur_kernels.dependent_launch import dependent_launch, wants_dependent_launch
from secateur_kernels.layouts import Fragment24, LowRank
from secateur_kernels.low_rank_linear import cuda_kernel
from secateur_kernels.low_rank_linear import op as low_rank_op
from secateur_kernels.low_rank_linear.cuda_choice import default_config
from secateur_kernels.low_rank_linear.cuda_config import LowRankShape
from secateur_kernels.sparse24_linear import cuda_call, cuda_kernels
from secateur_kernels.sparse24_linear.cuda_skinny_config import SkinnyConfig

CPU = torch.device("cpu")
HERE = Path(__file__).parent
MayDepend = Callable[..., bool]


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the current stream is being captured: its last item."""
    state = [False]
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state[-1])
    return state


def test_on_in_captures_only(capturing: list[bool]) -> None:
    assert not wants_dependent_launch(CPU)
    capturing.append(True)
    assert wants_dependent_launch(CPU)


def test_forced_either_way_and_back(capturing: list[bool]) -> None:
    for captured in (False, True):
        capturing.append(captured)
        with dependent_launch(True):
            assert wants_dependent_launch(CPU)
            with dependent_launch(False):
                assert not wants_dependent_launch(CPU)
            assert wants_dependent_launch(CPU)
            with dependent_launch(None):
                assert wants_dependent_launch(CPU) == captured
        with pytest.raises(ValueError, match="within"), dependent_launch(not captured):
            raise ValueError("within")
        assert wants_dependent_launch(CPU) == captured


@pytest.mark.parametrize(
    ("factor", "bias", "wanted"),
    [
        (torch.bfloat16, None, True),
        (torch.float32, None, False),
        # The kernel waits before it reads a bias.
        (torch.bfloat16, torch.float32, True),
    ],
)
def test_off_where_autocast_has_cast_the_factors(
    factor: torch.dtype,
    bias: torch.dtype | None,
    wanted: bool,
    capturing: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capturing.append(True)
    seen: list[bool] = []

    def multiply(choice: Any, x: Tensor, *arguments: Any) -> Tensor:
        seen.append(wants_dependent_launch(CPU))
        return x

    monkeypatch.setattr(low_rank_op, "launch", multiply)
    factors = LowRank(*(torch.zeros(16, 16, dtype=factor) for _ in range(2)), (16,))
    added = None if bias is None else torch.zeros(16, dtype=bias)
    with torch.autocast("cpu", torch.bfloat16):
        low_rank_op.low_rank_linear(torch.zeros(1, 16), factors, bias=added)
    assert seen == [wanted]


def test_other_threads_are_not_forced(capturing: list[bool]) -> None:
    seen: list[bool] = []
    with dependent_launch(True):
        thread = threading.Thread(target=lambda: seen.append(wants_dependent_launch(CPU)))
        thread.start()
        thread.join()
    assert seen == [False]


def test_the_launch_passes_it_on(capturing: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cuda_call, "require_library", lambda device: None)
    op = lambda *arguments: calls.append(arguments)  # noqa: E731
    monkeypatch.setattr(torch.ops.secateur_cuda, "sparse24_skinny", op, raising=False)
    weight = Fragment24.from_dense(torch.zeros(64, 256, dtype=torch.bfloat16))
    x = torch.zeros(1, 256, dtype=torch.bfloat16)
    config = SkinnyConfig(warps=2, row_tiles=2, stages=3, blocks=4, cluster=4, lead=1, ahead=5)
    for captured in (False, True):
        capturing.append(captured)
        cuda_kernels.launch(x, weight.data, 64, 256, False, None, None, "none", config)
    gate_up, silu, dependent, *tiling = zip(*(call[8:] for call in calls), strict=True)
    assert gate_up == silu == (False, False)
    assert dependent == (False, True)
    assert [values[0] for values in tiling] == [2, 2, 3, 4, 4, 1, 5]


BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (torch.ones(32, 256, dtype=BF16), torch.ones(64, 32, dtype=BF16)),
        (torch.ones(256, 32, dtype=BF16).T, torch.ones(64, 32, dtype=BF16)),
        (torch.ones(32, 256, dtype=BF16), torch.ones(64, 48, dtype=BF16)[:, :32]),
        (torch.ones(32, 256, dtype=BF16), torch.ones(1 + 64 * 32, dtype=BF16)[1:].view(64, 32)),
    ],
    ids=["as they are", "down is copied", "up is copied", "up is moved"],
)
def test_factors_that_are_copied_are_not_read_early(
    down: Tensor, up: Tensor, capturing: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy would be the kernel in front."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cuda_kernel, "require_library", lambda device: None)
    op = lambda *arguments: calls.append(arguments)  # noqa: E731
    monkeypatch.setattr(torch.ops.secateur_cuda, "low_rank", op, raising=False)
    capturing.append(True)
    config = default_config(LowRankShape(1, 64, 256, 32), 132, (8, 0))
    x = torch.zeros(1, 256, dtype=BF16)
    cuda_kernel.launch(x, None, down, up, (64,), None, None, "none", config)
    ((_, _, down_as_read, up_as_read, *_, dependent, _, _),) = calls
    assert torch.equal(down_as_read, down)
    assert torch.equal(up_as_read, up)
    assert down_as_read.is_contiguous()
    assert up_as_read.is_contiguous()
    assert up_as_read.data_ptr() % 16 == 0
    assert dependent == (down_as_read is down and up_as_read is up)
    assert dependent == (down.is_contiguous() and up.is_contiguous() and up.data_ptr() % 16 == 0)


@pytest.fixture(scope="module")
def may_depend(tmp_path_factory: pytest.TempPathFactory) -> MayDepend:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("needs nvcc for the headers of CUDA")
    library = tmp_path_factory.mktemp("capture") / "libcapture.so"
    command = [compiler, "-std=c++17", "-shared", "-cudart", "none", "-Xcompiler", "-fPIC,-Wall"]
    # Its own stand-ins for CUDA's functions, also where torch brought CUDA's into the process.
    command += ["-Xlinker", "-Bsymbolic"]
    command += [f"-I{HERE.parents[2] / 'csrc'}", "-o", str(library)]
    command += [str(HERE / "capture" / "predecessor.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    function = ctypes.CDLL(str(library)).test_may_depend

    def call(
        status: int,
        predecessors: int = 1,
        node: bytes = b"kernel",
        programmatic: bool | None = None,
        error: int = 0,
    ) -> bool:
        has_edges = programmatic is not None
        return bool(function(error, status, predecessors, node, has_edges, bool(programmatic)))

    return call


def test_a_programmatic_edge_leads_from_one_kernel(may_depend: MayDepend) -> None:
    assert may_depend(0, 0)  # not capturing: the driver decides
    assert may_depend(1)
    assert may_depend(1, programmatic=False)
    assert not may_depend(1, 0)  # the start of a graph
    assert not may_depend(1, 2)  # a join
    assert not may_depend(1, node=b"memset")
    assert not may_depend(1, node=b"copy")
    assert not may_depend(1, programmatic=True)  # an event that was recorded that way
    assert not may_depend(2)  # a capture that failed already
    assert not may_depend(1, error=1)
