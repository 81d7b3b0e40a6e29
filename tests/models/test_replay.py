from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, SLIDING_WINDOW, VOCAB_SIZE, model_from, tiny_model
from torch import Tensor, nn
from transformers import BloomConfig, MptConfig, PreTrainedModel

from secateur.errors import SecateurError
from secateur.models.blocks import BlockList, find_blocks
from secateur.models.inventory import take_inventory
from secateur.models.replay import BlockCall, CapturedBatch, capture_batch, joined
from secateur.models.trace import Trace, shared_inputs_of, trace_blocks, trace_without_weights

NUM_BLOCKS = {"gemma3": 6}
"""So many that one of them sees everything; the others have two."""


def some_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (rows, length), generator=generator)


def loaded(family: str) -> tuple[PreTrainedModel, BlockList, Trace]:
    model = tiny_model(family, num_blocks=NUM_BLOCKS.get(family, 2))
    blocks = find_blocks(model)
    linears = {
        site.name: site.module for site in take_inventory(model).all_sites if site.expert is None
    }
    return model, blocks, trace_blocks(model, blocks, linears, some_ids(1, 5))


def own_outputs(model: nn.Module, blocks: BlockList, ids: Tensor) -> list[Tensor]:
    """What each block returns in the model's own run."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(keep) for block in blocks.modules]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return outputs


def own_forms(model: nn.Module, blocks: BlockList) -> tuple[int | None, ...]:
    """Lengths of the tuples that blocks return; None where it is a tensor alone."""
    forms: list[int | None] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        forms.append(len(output) if isinstance(output, tuple) else None)

    hooks = [block.register_forward_hook(note) for block in blocks.modules]
    with torch.no_grad():
        model(input_ids=some_ids(2, 6))
    for hook in hooks:
        hook.remove()
    return tuple(forms)


def replayed(batch: CapturedBatch, blocks: BlockList) -> list[Tensor]:
    hidden, outputs = batch.hidden, []
    for call, block in zip(batch.calls, blocks.modules, strict=True):
        with torch.no_grad():
            hidden = call(block, hidden)
        outputs.append(hidden)
    return outputs


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_blocks_one_at_a_time_give_the_models_own_states(family: str) -> None:
    model, blocks, trace = loaded(family)
    ids = some_ids(3, 2 * SLIDING_WINDOW + 3)
    batch = capture_batch(model, blocks, trace.output_forms, ids)
    outputs = replayed(batch, blocks)
    with torch.no_grad():
        states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    assert torch.equal(batch.hidden, states[0])
    # The last of the model's states is after the final norm.
    for output, state in zip(outputs[:-1], states[1:-1], strict=True):
        assert torch.equal(output, state)
    for output, expected in zip(outputs, own_outputs(model, blocks, ids), strict=True):
        assert torch.equal(output, expected)
        assert not output.requires_grad


def test_gemma3_blocks_differ_in_their_masks() -> None:
    model, blocks, trace = loaded("gemma3")
    ids = some_ids(1, 3 * SLIDING_WINDOW)
    calls = capture_batch(model, blocks, trace.output_forms, ids).calls
    outputs = own_outputs(model, blocks, ids)
    with torch.no_grad():
        right = calls[5](blocks.modules[5], outputs[4])
        wrong = calls[4](blocks.modules[5], outputs[4])
    assert torch.equal(right, outputs[5])
    assert not torch.equal(wrong, outputs[5])


def test_output_forms() -> None:
    for family in ("llama", "gpt2", "opt", "gptj"):  # gptj: a tuple of two before 5.24
        model, blocks, trace = loaded(family)
        assert trace.output_forms == own_forms(model, blocks)


def test_no_block_and_no_head_is_computed() -> None:
    model, blocks, trace = loaded("llama")
    computed: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: computed.append(name))
        for name, module in model.named_modules()
        if "proj" in name or name in ("lm_head", "model.norm", "model.embed_tokens")
    ]
    capture_batch(model, blocks, trace.output_forms, some_ids(2, 6))
    for hook in hooks:
        hook.remove()
    # Once for the batch, and twice to see which arguments grow with the number of samples.
    assert computed == ["model.embed_tokens"] * 3


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def arguments(call: BlockCall) -> list[Tensor]:
    return tensors_in(call.args) + tensors_in(call.kwargs)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gptj", "opt"])
def test_equal_arguments_are_stored_once(family: str) -> None:
    model, blocks, trace = loaded(family)
    batches: list[CapturedBatch] = []
    for seed in range(3):
        previous = batches[-1] if batches else None
        ids = some_ids(2, 19, seed)
        batches.append(capture_batch(model, blocks, trace.output_forms, ids, previous))
        for output, expected in zip(
            replayed(batches[-1], blocks), own_outputs(model, blocks, ids), strict=True
        ):
            assert torch.equal(output, expected)
    stored = [[id(t) for call in batch.calls for t in arguments(call)] for batch in batches]
    assert stored[0]
    assert stored[0] == stored[1] == stored[2]
    assert not torch.equal(batches[0].hidden, batches[1].hidden)


SIZES = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2}
ALIBI = {
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4, **SIZES),
    "mpt": MptConfig(d_model=32, n_layers=2, n_heads=4, expansion_ratio=2, **SIZES),
}


@pytest.mark.parametrize("family", [*ALIBI, "llama", "gemma3"])
def test_samples_are_told_from_heads(family: str) -> None:
    """There are as many samples as heads; Bloom has biases by sample and head."""
    model = model_from(ALIBI[family]) if family in ALIBI else tiny_model(family)
    blocks, ids = find_blocks(model), some_ids(4, 12)
    forms = trace_blocks(model, blocks, {}, ids[:1]).output_forms
    batch = capture_batch(model, blocks, forms, ids)
    block, call = blocks.modules[0], batch.calls[0]
    with torch.no_grad():
        whole = call(block, batch.hidden)
        alone = [call.rows(row, row + 1) for row in range(4)]
        by_row = [own(block, batch.hidden[i : i + 1]) for i, own in enumerate(alone)]
        torch.testing.assert_close(torch.cat(by_row), whole)
        pair = joined([alone[3], alone[1]])
        torch.testing.assert_close(pair(block, batch.hidden[[3, 1]]), whole[[3, 1]])


def test_batches_of_other_lengths_keep_their_own_arguments() -> None:
    model, blocks, trace = loaded("llama")
    previous = None
    for rows, length in ((2, 9), (2, 5), (1, 5), (3, 9)):
        ids = some_ids(rows, length, seed=length)
        previous = capture_batch(model, blocks, trace.output_forms, ids, previous)
        expected = own_outputs(model, blocks, ids)
        assert torch.equal(replayed(previous, blocks)[-1], expected[-1])


def own_forwards(blocks: BlockList) -> list[Any]:
    return [vars(block).get("forward") for block in blocks.modules]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_forwards_are_put_back(wrapped: bool, fails: bool) -> None:
    model, blocks, trace = loaded("llama")
    original = model(input_ids=some_ids(1, 5)).logits
    if wrapped:

        def noted(forward: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: forward(*args, **kwargs)

        for block in blocks.modules:
            block.forward = noted(block.forward)
    before = own_forwards(blocks)
    assert (before == [None, None]) != wrapped
    ids = some_ids(1, 5)
    if fails:
        with pytest.raises(IndexError):
            capture_batch(model, blocks, trace.output_forms, ids + VOCAB_SIZE)
    else:
        capture_batch(model, blocks, trace.output_forms, ids)
    assert own_forwards(blocks) == before
    assert torch.equal(model(input_ids=ids).logits, original)


@pytest.mark.parametrize("fails", [False, True])
def test_tracing_leaves_no_hooks(fails: bool) -> None:
    model, blocks, _ = loaded("llama")
    linears = {"q": blocks.modules[0].self_attn.q_proj}
    if fails:
        blocks.modules[1].mlp.down_proj = None
        with pytest.raises(TypeError):
            trace_blocks(model, blocks, linears, some_ids(1, 5))
    else:
        trace_blocks(model, blocks, linears, some_ids(1, 5))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("family", "groups"),
    [
        (
            "llama",
            [
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                ("mlp.gate_proj", "mlp.up_proj"),
            ],
        ),
        ("gpt2", []),
        ("phi3", []),
        ("opt", [("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")]),
        # Attention and MLP are parallel, after one norm.
        ("gptj", [("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in")]),
    ],
)
def test_shared_inputs(family: str, groups: list[tuple[str, ...]]) -> None:
    _, blocks, trace = loaded(family)
    found: dict[str, set[str]] = {}
    for name, first in trace.shared_inputs.items():
        assert first not in trace.shared_inputs
        found.setdefault(first, {first}).add(name)
    expected = [
        {f"{blocks.block_name(index)}.{name}" for name in group}
        for index in range(len(blocks))
        for group in groups
    ]
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, expected))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> Any:
        return hidden_states + scale * self.proj(hidden_states)


class Model(nn.Module):
    """Embeds, then leaves the way through the blocks to `run`."""

    def __init__(self, run: Callable[["Model", Tensor], Any], num_blocks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCAB_SIZE, 4)
        self.layers = nn.ModuleList(Block() for _ in range(num_blocks))
        self.config = SimpleNamespace(num_hidden_layers=num_blocks)
        self._run = run

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        assert not use_cache
        return self._run(self, self.embed(input_ids))


def traced(run: Callable[[Model, Tensor], Any]) -> Trace:
    model = Model(run)
    return trace_blocks(model, find_blocks(model), {}, some_ids(1, 5))


def by_position(model: Model, hidden: Tensor) -> Tensor:
    for block in model.layers:
        hidden = block(hidden)
    return hidden


def by_keyword(model: Model, hidden: Tensor) -> Tensor:
    for index, block in enumerate(model.layers):
        hidden = block(scale=0.5 + index, hidden_states=hidden)
    return hidden


def through_a_view(model: Model, hidden: Tensor) -> Tensor:
    for block in model.layers:
        hidden = block(hidden.view(hidden.shape))
    return hidden


@pytest.mark.parametrize("run", [by_position, by_keyword, through_a_view])
def test_hidden_states_by_position_and_by_keyword(run: Callable[[Model, Tensor], Any]) -> None:
    model = Model(run)
    blocks = find_blocks(model)
    assert traced(run) == Trace((None, None, None), {})
    ids = some_ids(2, 5)
    batch = capture_batch(model, blocks, (None, None, None), ids)
    assert batch.calls[0].hidden_keyword == ("hidden_states" if run is by_keyword else None)
    assert torch.equal(replayed(batch, blocks)[-1], model(ids, use_cache=False))


class WithContext(Block):
    """Adds what the model made of the ids, which is another tensor for every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)

    def forward(self, hidden_states: Tensor, context: Any = None) -> Tensor:
        seen = self.context(context["made"][0]) + self.other(context["made"][0])
        return hidden_states + self.proj(hidden_states) + seen


def test_arguments_that_depend_on_the_batch_are_not_shared() -> None:
    def run(model: Model, hidden: Tensor) -> Tensor:
        context = {"made": (hidden.cos(), torch.ones(3))}
        for block in model.layers:
            hidden = block(hidden, context=context)
        return hidden

    model = Model(run, num_blocks=2)
    for index in range(2):
        model.layers[index] = WithContext()
    blocks = find_blocks(model)
    previous = None
    for seed in range(3):
        ids = some_ids(2, 5, seed)
        batch = capture_batch(model, blocks, (None, None), ids, previous)
        assert torch.equal(replayed(batch, blocks)[-1], model(ids, use_cache=False))
        if previous is not None:
            for index in range(2):
                old, new = (b.calls[index].kwargs["context"]["made"] for b in (previous, batch))
                assert (old[0] is new[0], old[1] is new[1]) == (False, True)
        previous = batch
    # Inputs are shared within a block, and not with another block, where the tensor is the same.
    linears = {
        f"{index}.{name}": block.get_submodule(name)
        for index, block in enumerate(blocks.modules)
        for name in ("context", "other", "proj")
    }
    trace = trace_blocks(model, blocks, linears, some_ids(1, 5))
    assert trace.shared_inputs == {"0.other": "0.context", "1.other": "1.context"}


def scaled_between(model: Model, hidden: Tensor) -> Tensor:
    for index, block in enumerate(model.layers):
        hidden = block(hidden * 2 if index == 2 else hidden)
    return hidden


def scaled_in_place(model: Model, hidden: Tensor) -> Tensor:
    for index, block in enumerate(model.layers):
        hidden = block(hidden.mul_(2) if index == 2 else hidden)
    return hidden


def copied_between(model: Model, hidden: Tensor) -> Tensor:
    return model.layers[2](model.layers[1](model.layers[0](hidden).clone()))


def test_states_that_change_between_blocks_are_refused() -> None:
    message = (
        "the model changes hidden states between layers.1 and layers.2; "
        "blocks cannot be worked on one by one"
    )
    with pytest.raises(SecateurError, match=message):
        traced(scaled_between)
    with pytest.raises(SecateurError, match=r"between layers\.0 and layers\.1"):
        traced(copied_between)


def test_states_that_change_in_place_between_blocks_are_refused() -> None:
    with pytest.raises(SecateurError, match=r"between layers\.1 and layers\.2"):
        traced(scaled_in_place)


def in_other_order(order: list[int]) -> Callable[[Model, Tensor], Tensor]:
    def run(model: Model, hidden: Tensor) -> Tensor:
        for index in order:
            hidden = model.layers[index](hidden)
        return hidden

    return run


@pytest.mark.parametrize("order", [[0, 1], [0, 2], [2, 1, 0], [0, 1, 2, 2], [0, 1, 2, 0, 1, 2], []])
def test_blocks_that_are_not_called_once_in_order_are_refused(order: list[int]) -> None:
    message = (
        "expected each of the 3 blocks at layers to be called once, in order; "
        rf"they were called in the order \[{str(order)[1:-1]}\]"
    )
    with pytest.raises(SecateurError, match=message):
        traced(in_other_order(order))


def test_hidden_states_under_another_keyword_are_refused() -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor, scale: float) -> Tensor:
            return x * scale

    model = Model(lambda model, hidden: model.layers[0](x=hidden, scale=1.0), num_blocks=1)
    model.layers[0] = Other()
    blocks = find_blocks(model)
    message = r"hidden states first or as `hidden_states`; .* keywords \['scale', 'x'\]"
    with pytest.raises(SecateurError, match=message):
        trace_blocks(model, blocks, {}, some_ids(1, 5))
    with pytest.raises(SecateurError, match=message):
        capture_batch(model, blocks, (None,), some_ids(1, 5))
    assert own_forwards(blocks) == [None]


def test_output_that_is_neither_tensor_nor_tuple_is_refused() -> None:
    class Listing(Block):
        def forward(self, hidden_states: Tensor, scale: float = 1.0) -> list[Tensor]:
            return [hidden_states]

    model = Model(lambda model, hidden: model.layers[0](hidden), num_blocks=1)
    model.layers[0] = Listing()
    with pytest.raises(SecateurError):
        trace_blocks(model, find_blocks(model), {}, some_ids(1, 5))


def test_tuple_outputs_are_taken_apart_and_put_together() -> None:
    class Paired(Block):
        def forward(self, hidden_states: Tensor, scale: float = 1.0) -> Any:
            return hidden_states + self.proj(hidden_states), None, "weights"

    def run(model: Model, hidden: Tensor) -> Tensor:
        for block in model.layers:
            hidden, _, _ = block(hidden)
        return hidden

    model = Model(run)
    for index in range(3):
        model.layers[index] = Paired()
    blocks = find_blocks(model)
    trace = trace_blocks(model, blocks, {}, some_ids(1, 5))
    assert trace.output_forms == (3, 3, 3)
    ids = some_ids(2, 5)
    batch = capture_batch(model, blocks, trace.output_forms, ids)
    assert torch.equal(replayed(batch, blocks)[-1], model(ids, use_cache=False))


def test_call_moves_with_its_tensors() -> None:
    pair = (torch.zeros(2), torch.ones(3))
    call = BlockCall((pair[0], None), {"pair": pair, "deep": {"mask": pair[1]}, "flag": True}, None)
    moved = call.to(torch.device("meta"))
    assert {tensor.device.type for tensor in arguments(moved)} == {"meta"}
    assert len(arguments(moved)) == 4
    assert (moved.kwargs["flag"], moved.args[1], moved.hidden_keyword) == (True, None, None)
    assert {tensor.device.type for tensor in arguments(call)} == {"cpu"}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_without_weights_as_much_is_learnt(family: str) -> None:
    model, blocks, trace = loaded(family)
    inventory = take_inventory(model)
    batch = capture_batch(model, blocks, trace.output_forms, some_ids(1, 5))
    states = [batch.hidden, *replayed(batch, blocks)]
    found: dict[str, str] = {}
    for index, block in enumerate(blocks.modules):
        linears = {s.name: s.module for s in inventory.sites[index] if s.expert is None}
        found |= shared_inputs_of(block, batch.calls[index], states[index], linears)
        assert not any(module._forward_pre_hooks for module in block.modules())
    assert found == trace.shared_inputs
    assert bool(found) == (family not in {"gpt2", "gpt_neox", "phi3"}), "these fuse what shares"
    # Every block but the first is without weights now.
    for block in blocks.modules[1:]:
        block.to("meta")
    assert trace_without_weights(model, blocks, some_ids(1, 5)) == Trace(trace.output_forms, {})
    assert own_forwards(blocks) == [None] * len(blocks)


@pytest.mark.parametrize(
    ("run", "place"),
    [
        (scaled_between, r"layers\.1 and layers\.2"),
        (scaled_in_place, r"layers\.1 and layers\.2"),
        (copied_between, r"layers\.0 and layers\.1"),
    ],
)
def test_without_weights_changed_states_are_refused(
    run: Callable[[Model, Tensor], Any], place: str
) -> None:
    model = Model(run)
    blocks = find_blocks(model)
    with pytest.raises(SecateurError, match=f"changes hidden states between {place}"):
        trace_without_weights(model, blocks, some_ids(1, 5))
    assert own_forwards(blocks) == [None] * 3


@pytest.mark.parametrize("order", [[0, 1], [0, 2], [0, 2, 1], [0, 1, 2, 2], [0, 1, 2, 0, 1, 2]])
def test_without_weights_other_orders_are_refused(order: list[int]) -> None:
    model = Model(in_other_order(order))
    message = rf"called once, in order; they were called in the order \[{str(order)[1:-1]}\]"
    with pytest.raises(SecateurError, match=message):
        trace_without_weights(model, find_blocks(model), some_ids(1, 5))


def test_a_model_that_never_calls_its_first_block_is_refused() -> None:
    model = Model(in_other_order([]))
    with pytest.raises(
        SecateurError, match=r"expected the model to call layers\.0, but it did not"
    ):
        trace_without_weights(model, find_blocks(model), some_ids(1, 5))
