"""What torch.compile makes of decode steps: how many programs, and what is in them."""

from functools import partial
from typing import Any

import pytest
import torch
from families import tiny_model
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from secateur import accelerate
from secateur.engine import Engine, GenerationOptions


@pytest.mark.slow
def test_all_lengths_and_batches_share_two_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[torch.fx.GraphModule] = []

    def keep(program: torch.fx.GraphModule, _: Any) -> Any:
        programs.append(program)
        return make_boxed_func(program)

    backend = aot_autograd(fw_compiler=keep, inference_compiler=keep)
    compiled = partial(torch.compile, backend=backend)
    monkeypatch.setattr("secateur.engine.decode.torch.compile", compiled)
    monkeypatch.setattr("secateur.engine.decode._SHORTEST", 32)
    torch.compiler.reset()
    model = tiny_model("llama", num_blocks=2)
    accelerate(model, force=True)
    engine = Engine(model, max_batch_size=16, max_length=64, compile=True)
    options = [GenerationOptions(5), GenerationOptions(5, temperature=1, top_k=3, logprobs=True)]
    engine.warm_up(options=options)
    # For a row alone and for several.
    assert len(programs) == 2
    for count in (1, 2, 3, 7):
        engine.generate([[5, 6, 7]] * count, options[count % 2])
    assert len(programs) == 2
    operations = [str(node.target) for program in programs for node in program.graph.nodes]
    # Masks come as numbers: none is made of True and False, layer after layer.
    assert not [one for one in operations if "where" in one or "scalar_tensor" in one]
