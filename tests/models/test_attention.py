import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, SLIDING_WINDOW, VOCAB_SIZE, model_from, tiny_model
from torch import Tensor, nn
from transformers import FalconConfig, GptOssConfig, MambaConfig, PreTrainedModel

from secateur.errors import SecateurError
from secateur.models.attention import eager_attention, visit_attention

NUM_BLOCKS = {"gemma3": 6}
IDS = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def some_samples(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator) for length in lengths]


def visited(model: nn.Module, samples: list[Tensor]) -> list[tuple[int, Tensor]]:
    seen: list[tuple[int, Tensor]] = []
    visit_attention(
        model, samples, lambda block, probabilities: seen.append((block, probabilities))
    )
    return seen


def causal_softmax(queries: Tensor, keys: Tensor) -> Tensor:
    """fp64 [heads, T, T] from [heads, T, width]."""
    scores = queries.double() @ keys.double().mT / math.sqrt(queries.shape[-1])
    weights = torch.exp(scores - scores.amax(-1, keepdim=True)).tril()
    return weights / weights.sum(-1, keepdim=True)


def as_heads(projected: Tensor, count: int) -> Tensor:
    """[heads, T, width] from [1, T, heads * width]."""
    return projected[0].unflatten(-1, (count, -1)).transpose(0, 1)


def hooked(model: nn.Module, names: list[str], samples: Tensor) -> list[Tensor]:
    """Outputs of modules by name, in the model's own run."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.update({name: output})
        )
        for name in names
    ]
    with torch.no_grad():
        model(input_ids=samples[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


def rotated(states: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding of [heads, T, width], halves as Llama has them."""
    half = states.shape[-1] // 2
    speed = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(states.shape[1], dtype=torch.float64)[:, None] * speed
    first, second = states.double().split(half, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


# fp32 products of a few dozen terms in scores of order one, against fp64.
TOLERANCE = 2e-5


@pytest.mark.parametrize("length", [1, 2, 19])
def test_gpt2_against_a_softmax_by_hand(length: int) -> None:
    model, (sample,) = tiny_model("gpt2"), some_samples(length)
    names = [f"transformer.h.{block}.attn.c_attn" for block in range(2)]
    seen = visited(model, [sample])
    assert [block for block, _ in seen] == [0, 1]
    for (_, found), projected in zip(seen, hooked(model, names, sample), strict=True):
        queries, keys, _ = (as_heads(part, 4) for part in projected.split(32, dim=-1))
        assert (found - causal_softmax(queries, keys)).abs().max() < TOLERANCE


def test_grouped_queries_with_rotation_against_a_softmax_by_hand() -> None:
    model, (sample,) = tiny_model("llama"), some_samples(23)
    names = [f"model.layers.{b}.self_attn.{m}_proj" for b in range(2) for m in ("q", "k")]
    outputs = hooked(model, names, sample)
    for block, found in visited(model, [sample]):
        queries = rotated(as_heads(outputs[2 * block], 4))
        keys = rotated(as_heads(outputs[2 * block + 1], 2))
        by_hand = causal_softmax(queries, keys.repeat_interleave(2, dim=0))
        assert found.shape == (4, 23, 23)
        assert (found - by_hand).abs().max() < TOLERANCE


def with_eager(model: PreTrainedModel, sample: Tensor) -> tuple[Tensor, ...]:
    """What the family itself calls its attention."""
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        output = model(input_ids=sample[None], output_attentions=True, use_cache=False)
    found: tuple[Tensor, ...] = output.attentions
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_gives_its_own_probabilities(family: str) -> None:
    model, samples = tiny_model(family, NUM_BLOCKS.get(family, 2)), some_samples(17, 17, 5)
    before, state = model.config._attn_implementation, model.state_dict()
    seen = visited(model, samples)
    assert model.config._attn_implementation == before
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    num_blocks = NUM_BLOCKS.get(family, 2)
    assert [block for block, _ in seen] == [b for b in range(num_blocks) for _ in samples]
    for number, sample in enumerate(samples):
        for block, own in enumerate(with_eager(model, sample)):
            assert torch.equal(seen[3 * block + number][1], own[0])


def falcon() -> PreTrainedModel:
    config = FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **IDS)
    return model_from(config)


def test_a_family_whose_setter_does_nothing() -> None:
    model, (sample,) = falcon(), some_samples(9)
    assert model.config._attn_implementation == "sdpa"
    seen = visited(model, [sample])
    for (_, found), own in zip(seen, with_eager(model, sample), strict=True):
        assert torch.equal(found, own[0])


def test_modules_that_must_be_asked_are_asked() -> None:
    model, samples = falcon(), some_samples(9)
    wanted = visited(model, samples)
    for block in model.transformer.h:
        block.self_attention.forward = only_when_asked(block.self_attention.forward)
    for (_, found), (_, before) in zip(visited(model, samples), wanted, strict=True):
        assert torch.equal(found, before)


def only_when_asked(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, output_attentions: bool = False, **more: Any) -> Any:
        output, probabilities = forward(*args, output_attentions=output_attentions, **more)
        return output, probabilities if output_attentions else None

    return wrapped


def test_sliding_windows_stay_closed() -> None:
    for _, found in visited(tiny_model("mistral"), some_samples(SLIDING_WINDOW + 5)):
        assert not bool(found.tril(-SLIDING_WINDOW).any())
        assert bool((found.diagonal(-(SLIDING_WINDOW - 1), -2, -1) > 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_rows_still_pass(dtype: torch.dtype) -> None:
    for _, found in visited(tiny_model("llama").to(dtype), some_samples(64)):
        assert found.dtype == dtype


def test_tells_when_a_block_is_done() -> None:
    told: list[Any] = []
    visit_attention(
        tiny_model("gpt2"),
        some_samples(4, 3),
        lambda block, found: told.append((block, found.shape[-1])),
        told.append,
    )
    assert told == [(0, 4), (0, 3), 0, (1, 4), (1, 3), 1]


def num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class _StopError(Exception):
    pass


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_everything_is_as_it_was_after_an_exception(implementation: str) -> None:
    model = tiny_model("llama")
    model.set_attn_implementation(implementation)
    asked: list[str] = []

    def visit(block: int, _: Tensor) -> None:
        asked.append(model.config._attn_implementation)
        if block == 1:
            raise _StopError

    with pytest.raises(_StopError):
        visit_attention(model, some_samples(6), visit)
    assert asked == ["eager", "eager"]
    assert model.config._attn_implementation == implementation
    assert num_hooks(model) == 0
    assert all("forward" not in vars(module) for module in model.modules())


def test_nested_configurations_get_back_their_own() -> None:
    inner = SimpleNamespace(_attn_implementation="sdpa")

    class Outer:
        sub_configs = {"text_config": object}  # noqa: RUF012
        text_config = inner

        def __init__(self) -> None:
            self.own = "flash"

        @property
        def _attn_implementation(self) -> str:
            return self.own

        @_attn_implementation.setter
        def _attn_implementation(self, value: str) -> None:
            self.own = inner._attn_implementation = value

    model = nn.Linear(1, 1)
    model.config = Outer()  # type: ignore[assignment]
    with eager_attention(model):
        assert (model.config.own, inner._attn_implementation) == ("eager", "eager")
    assert (model.config.own, inner._attn_implementation) == ("flash", "sdpa")


def test_refuses_what_is_no_model_of_transformers() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(2, 2)])
    message = "Module cannot give attention probabilities: it has no configuration that names"
    with pytest.raises(SecateurError, match=message):
        visited(model.eval(), some_samples(3))


def test_refuses_blocks_without_probabilities() -> None:
    config = MambaConfig(hidden_size=32, state_size=4, num_hidden_layers=2, **IDS)
    message = r"expected one module of backbone\.layers\.0 to return .* \[1, heads, 9, 9\] .* none"
    with pytest.raises(SecateurError, match=message):
        visited(model_from(config), some_samples(9))


def test_refuses_two_attentions_in_a_block() -> None:
    model = tiny_model("gpt2")

    def also(_: nn.Module, __: Any, output: Tensor) -> Any:
        return output, torch.eye(5)[None, None]

    class Second(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden

    block = model.transformer.h[1]
    block.mlp.dropout = nn.Sequential(Second()).eval()
    block.mlp.dropout[0].register_forward_hook(also)
    block.mlp.dropout.register_forward_hook(lambda _, __, output: output[0])
    with pytest.raises(SecateurError, match=r"one module of transformer\.h\.1 .* but 2 did"):
        visited(model, some_samples(5))


def test_refuses_attention_with_a_sink() -> None:
    config = GptOssConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        **IDS,
    )
    message = r"attention of model\.layers\.0 to sum to 1 for every token, but .* sink"
    with pytest.raises(SecateurError, match=message):
        visited(model_from(config), some_samples(7))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda p: p.mT.contiguous(), "sum to 1"),
        (lambda p: torch.full_like(p, math.nan), "but it sums to nan"),
        (lambda p: torch.full_like(p, 1 / p.shape[-1]), "tokens of .*h.0 attend to later ones"),
    ],
)
def test_refuses_what_is_no_causal_softmax(broken: Any, message: str) -> None:
    model = tiny_model("gpt2")
    attention = model.transformer.h[0].attn
    attention.register_forward_hook(lambda _, __, output: (output[0], broken(output[1])))
    with pytest.raises(SecateurError, match=message):
        visited(model, some_samples(6))
    assert model.config._attn_implementation == "sdpa"


def test_refuses_training_mode_and_bad_samples() -> None:
    model = tiny_model("gpt2")
    for samples in ([torch.zeros(2, 3).long()], [torch.zeros(3)], [torch.zeros(0).long()]):
        with pytest.raises(SecateurError, match=r"samples of token ids int64 \[T\] .* got torch"):
            visited(model, samples)
    with pytest.raises(SecateurError, match="at least one sample of token ids, got none"):
        visited(model, [])
    model.transformer.h[1].attn.train()
    with pytest.raises(SecateurError, match=r"evaluation mode \(model\.eval\(\)\)"):
        visited(model, some_samples(3))
