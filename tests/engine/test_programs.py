"""What torch.compile makes of decode steps: how many programs, and what is in them."""

from functools import partial
from typing import Any

import pytest
import torch
from families import gemma4, model_from, tiny_model
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from secateur import SecateurError, accelerate
from secateur.engine import Engine, GenerationOptions
from secateur.engine.compiled_parts import CompiledParts
from secateur.engine.family import row_model
from secateur.modules import LowRankLinear, SparseLowRankLinear
from secateur.modules.removed_sublayer import RemovedSublayer
from secateur_kernels import Canonical24, LowRank

pytestmark = pytest.mark.compiled

COMPILER = "secateur.engine.fused_residuals.COMPILER"
PARTS = 3
"""Block, rotary positions, last norm."""


def test_all_lengths_batches_and_blocks_share_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[torch.fx.GraphModule] = []

    def keep(program: torch.fx.GraphModule, _: Any) -> Any:
        programs.append(program)
        return make_boxed_func(program)

    backend = aot_autograd(fw_compiler=keep, inference_compiler=keep)
    monkeypatch.setattr(COMPILER, backend)
    monkeypatch.setattr("secateur.engine.decode._SHORTEST", 32)
    torch.compiler.reset()
    model = tiny_model("llama", num_blocks=3)
    accelerate(model, force=True)
    engine = Engine(model, max_batch_size=16, max_length=64, compile=True)
    options = [GenerationOptions(5), GenerationOptions(5, temperature=1, top_k=3, logprobs=True)]
    engine.warm_up(options=options)
    # For a row alone and for several.
    assert len(programs) == 2 * PARTS
    for count in (1, 2, 3, 7):
        engine.generate([[5, 6, 7]] * count, options[count % 2])
    assert len(programs) == 2 * PARTS
    operations = [str(node.target) for program in programs for node in program.graph.nodes]
    # Masks come as numbers: none is made of True and False, layer after layer.
    assert not [one for one in operations if "where" in one or "scalar_tensor" in one]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """All that are compiled from now on, and run as they were traced."""
    kept: list[torch.fx.GraphModule] = []

    def keep(program: torch.fx.GraphModule, _: Any) -> Any:
        kept.append(program)
        return program.forward

    monkeypatch.setattr(COMPILER, keep)
    torch.compiler.reset()
    return kept


def test_blocks_of_another_kind_have_a_program_of_their_own(
    programs: list[torch.fx.GraphModule],
) -> None:
    model = tiny_model("llama", num_blocks=5)
    for index in (1, 3):
        model.model.layers[index].self_attn = RemovedSublayer(32, 2, layer_idx=index)
    Engine(model, max_batch_size=1, max_length=64, compile=True).warm_up()
    assert len(programs) == PARTS + 1


def test_blocks_that_share_keys_and_values_are_programs_for_all_lengths_and_batches(
    programs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.engine.decode._SHORTEST", 32)
    model = model_from(gemma4())
    prompts = [[5, 6, 7] * 10, [8, 9], [10], [11, 12] * 20]
    expected = Engine(model, max_length=64).generate(prompts, GenerationOptions(6))
    short = Engine(model, max_batch_size=2, max_length=32, compile=True)
    short.warm_up()
    count = len(programs)
    engine = Engine(model, max_batch_size=4, max_length=64, compile=True)
    for batch in (1, 2, 3, 4):
        results = engine.generate(prompts[:batch], GenerationOptions(6))
        assert [one.token_ids for one in results] == [one.token_ids for one in expected[:batch]]
    assert len(programs) == count


def with_ranks(form: str, dtype: torch.dtype) -> Any:
    """A model whose factors have other ranks in every block, some of them alike by chance."""
    torch.manual_seed(0)
    model = tiny_model("llama", num_blocks=4).to(dtype)
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    for index, (name, linear) in enumerate(layers[:-1]):
        rank = 16 * (1 + index % 5)
        up, down = torch.randn(linear.out_features, rank), torch.randn(rank, linear.in_features)
        factors = LowRank.from_factors(up.to(dtype) / rank, down.to(dtype) / 8)
        layer: nn.Module = LowRankLinear.from_factors(factors)
        if form == "2:4 plus low rank":
            weight = linear.weight.detach()
            groups = weight.view(-1, 4)
            groups.scatter_(1, groups.abs().topk(2, largest=False).indices, 0.0)
            layer = SparseLowRankLinear.from_parts(Canonical24.from_dense(weight), factors)
        model.set_submodule(name, layer)
    accelerate(model, force=True)
    ranks = {
        tuple(m.up.shape[1] for m in block.modules() if isinstance(m, type(layer)))
        for block in model.model.layers
    }
    assert len(ranks) == 4
    return model


@pytest.mark.parametrize("form", ["low rank", "2:4 plus low rank"])
def test_blocks_whose_factors_differ_in_rank_share_programs(
    form: str, programs: list[torch.fx.GraphModule]
) -> None:
    model = with_ranks(form, torch.float32 if form == "low rank" else torch.bfloat16)
    engine = Engine(model, max_batch_size=4, max_length=64, compile=True)
    engine.warm_up()
    # For a row alone and for several.
    assert len(programs) == 2 * PARTS
    if form == "low rank":
        # Sums that layers take over are rounded once instead of twice: told apart by no token here.
        plain = Engine(model, max_batch_size=4, max_length=64)
        for prompts in ([[5, 6, 7]], [[8, 9], [3, 4, 5], [6]]):
            expected, found = (
                [result.token_ids for result in each.generate(prompts, GenerationOptions(6))]
                for each in (plain, engine)
            )
            assert found == expected
        assert len(programs) == 2 * PARTS


def test_the_model_runs_as_before_once_a_step_is_over() -> None:
    model: Any = tiny_model("llama", num_blocks=2)
    own = model.model.layers[1].forward = partial(model.model.layers[1].forward)
    store = row_model(model).store(1, 8)
    window = store.window(0, torch.zeros(1, 1, dtype=torch.int64), 8)

    def stop() -> None:
        replaced = [block.forward for block in model.model.layers]
        assert own not in replaced
        raise ValueError("stop")

    with (
        pytest.raises(ValueError, match="stop"),
        CompiledParts(model).running(window, any_batch=True),
    ):
        stop()
    assert "forward" not in model.model.layers[0].__dict__
    assert model.model.layers[1].__dict__["forward"] is own


def test_a_model_without_blocks_is_not_compiled() -> None:
    with pytest.raises(SecateurError, match="expected a list of some decoder blocks"):
        CompiledParts(torch.nn.Linear(2, 2))
