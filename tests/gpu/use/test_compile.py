"""The ops inside compiled graphs, and what torch checks about an op."""

import pytest
import torch
from gpu.backends_here import every_backend, skip_unless_there
from gpu.gradient_checks import check_compiled, check_op
from gpu.launch_checks import inputs_for
from gpu.layers import BOTH, LOW_RANK, SPARSE, Size, random_layer

BF16 = torch.bfloat16
CASES = pytest.mark.parametrize(("op", "backend"), every_backend(SPARSE, LOW_RANK, BOTH))


def size_of(op: str) -> Size:
    return Size(op, 1000, 384) if op == SPARSE else Size(op, 1000, 384, 96)


@CASES
@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "reduce-overhead"}, {"dynamic": True}, {"backend": "aot_eager"}],
    ids=["inductor", "graphs", "dynamic", "aot_eager"],
)
def test_one_graph_and_the_bits_of_eager(
    options: dict[str, object], op: str, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    layer = random_layer(size_of(op), BF16, device)
    xs = [inputs_for(layer, m, 1, BF16, device)[0] for m in (8, 8, 8, 33)]
    check_compiled(layer, xs, backend, options)


# The backend `dense` has the dense copy as an argument of its own.
@pytest.mark.parametrize(
    ("op", "backend"),
    [which for which in every_backend(SPARSE, LOW_RANK, BOTH) if "dense" not in which],
)
def test_opcheck(op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    layer = random_layer(size_of(op), BF16, device)
    check_op(layer, inputs_for(layer, 9, 1, BF16, device)[0], backend)
