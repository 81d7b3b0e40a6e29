"""Paths through a GPU, on a stand-in for one."""

import json
import re

import pytest
from stand_in_gpu.own_process import needs_stand_in, run
from thoroughness import is_thorough

_DEAR = ("admm", "wanda++")

pytestmark = [needs_stand_in, pytest.mark.slow, pytest.mark.compiled]


def test_it_behaves_like_a_gpu() -> None:
    found = json.loads(run("stand_in_gpu.behaves"))
    mixed, too_much, generator = (
        found.pop(name) for name in ("mixed", "too much", "generator of the host")
    )
    assert mixed.startswith("RuntimeError: Expected all tensors to be on the same device")
    assert too_much.startswith("OutOfMemoryError: CUDA out of memory. Tried to allocate 4194304")
    assert generator.startswith("RuntimeError: Expected a 'cuda' device type for generator")
    assert found == {
        "device": "cuda:0",
        "product": [[5.0, 14.0], [14.0, 50.0]],
        "view shares memory": True,
        "gradient": "cuda:0",
        "deepcopy": "cuda:0",
        "number of the host": True,
        "indices of the host": [[3.0, 4.0, 5.0]],
        "pinned": [True, False],
        "counted": 4096,
        "given back": 0,
        "not computed": [[[0.0] * 3] * 2, True, 1.0],
    }


def test_stages_on_it_make_what_the_cpu_makes() -> None:
    plugin = ("-p", "bench.stand_in_gpu.pytest_plugin", "-p", "no:cacheprovider", "-n", "0", "-q")
    file = "tests/gpu/use/test_stages_on_the_device.py"
    # Other methods take the same paths; these take half of the time.
    dear = () if is_thorough() else [f"--deselect={file}::test_prune[{m}]" for m in _DEAR]
    told = run("pytest", *plugin, file, *dear)
    assert re.search(rf"^\d+ passed(, {len(dear)} deselected)? in", told, re.MULTILINE), told
