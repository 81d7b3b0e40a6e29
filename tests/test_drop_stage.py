"""The drop_blocks stage against references that run the whole model anew for every question."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCAB_SIZE, tiny_model
from thoroughness import most_telling
from torch import Tensor, nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedModel

from secateur.compress import compress_with_report
from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks
from secateur.models.sublayers import removed_sublayers
from secateur.report.record import DropRecord

NUM_BLOCKS = 6
IDS = torch.randint(3, VOCAB_SIZE, (5, 12), generator=torch.Generator().manual_seed(1))
# fp32 forward passes whose sums are ordered otherwise, against fp64.
LOSS_ERROR = 2e-5


def model_of(family: str = "llama", num_blocks: int = NUM_BLOCKS) -> PreTrainedModel:
    return tiny_model(family, num_blocks)


def dropped_from(
    model: PreTrainedModel, calibration: Tensor | None = IDS, **stage: Any
) -> DropRecord:
    recipe = {"stages": [{"stage": "drop_blocks", **stage}]}
    _, report = compress_with_report(model, recipe, calibration=calibration)
    (record,) = report.stages
    assert isinstance(record, DropRecord)
    return record


def passing_on(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def adding_nothing(*args: Any, **kwargs: Any) -> Any:
    hidden = args[0] if args else kwargs["hidden_states"]
    return torch.zeros_like(hidden), None


@contextmanager
def without(model: nn.Module, gone: Sequence[int], part: str | None = None) -> Iterator[None]:
    """Whole blocks of a Llama pass hidden states on, or their attention or MLP adds zeros."""
    blocks = [find_blocks(model).modules[index] for index in gone]
    child = {"attention": "self_attn", "mlp": "mlp"}.get(part or "")
    modules = [block.get_submodule(child) if child else block for block in blocks]
    for module in modules:
        if part == "mlp":
            module.forward = lambda hidden: torch.zeros_like(hidden)
        else:
            module.forward = adding_nothing if part else passing_on
    yield
    for module in modules:
        del module.forward


@torch.no_grad()
def whole_loss(model: PreTrainedModel, ids: Tensor = IDS) -> float:
    log_probs = model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
    return -float(log_probs[:, :-1].gather(-1, ids[:, 1:, None]).mean())


@torch.no_grad()
def streams(model: PreTrainedModel, ids: Tensor = IDS) -> list[tuple[Tensor, Tensor, Tensor]]:
    """By block of a Llama: what enters it, what is between its parts, and what leaves it."""
    found: list[list[Tensor]] = []
    hooks = []
    for block in find_blocks(model).modules:
        entry: list[Tensor] = []
        found.append(entry)

        def note(entry: list[Tensor]) -> Callable[..., None]:
            return lambda _, args, kwargs: entry.append((args or tuple(kwargs.values()))[0].clone())

        norm = block.get_submodule("post_attention_layernorm")
        hooks += [
            block.register_forward_pre_hook(note(entry), with_kwargs=True),
            norm.register_forward_pre_hook(note(entry), with_kwargs=True),
            block.register_forward_hook(lambda _, __, out, entry=entry: entry.append(out.clone())),
        ]
    model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [(entry[0], entry[1], entry[2]) for entry in found]


def influence(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    return 1 - float(((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).mean())


def magnitude(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    return float(((y - x).norm(dim=-1) / y.norm(dim=-1)).mean())


BY_PAIRS = {"block_influence": influence, "relative_magnitude": magnitude}


def pair_scores(model: PreTrainedModel, criterion: str, part: str | None) -> list[float]:
    ends = {None: (0, 2), "attention": (0, 1), "mlp": (1, 2)}[part]
    return [BY_PAIRS[criterion](s[ends[0]], s[ends[1]]) for s in streams(model)]


def loss_scores(
    model: PreTrainedModel, part: str | None, gone: Sequence[int] = ()
) -> dict[int, float]:
    scores = {}
    for index in range(NUM_BLOCKS):
        if index not in gone:
            with without(model, [*gone, index], part):
                scores[index] = whole_loss(model)
    return scores


def lowest(scores: dict[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda i: (scores[i], -i))[:count]


# Scores.


@pytest.mark.parametrize("part", [None, "attention", "mlp"])
@pytest.mark.parametrize("criterion", sorted(BY_PAIRS))
def test_scores_of_inputs_and_outputs(criterion: str, part: str | None) -> None:
    expected = pair_scores(model_of(), criterion, part)
    record = dropped_from(model_of(), criterion=criterion, granularity=part or "block", count=2)
    assert record.rounds[0].scores == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert list(record.order) == lowest(dict(enumerate(expected)), 2)
    assert record.dropped == tuple(sorted(record.order))
    is_plain = criterion == "block_influence" and part is None
    assert record.block_influence == (record.rounds[0].scores if is_plain else ())


@pytest.mark.parametrize("part", [None, "attention", "mlp"])
def test_perplexity_scores_are_losses_without_the_block(part: str | None) -> None:
    expected = loss_scores(model_of(), part)
    record = dropped_from(model_of(), criterion="perplexity", granularity=part or "block", count=2)
    scores = dict(enumerate(record.rounds[0].scores))
    assert scores == pytest.approx(expected, abs=LOSS_ERROR)
    assert list(record.order) == lowest(expected, 2)
    first = expected[record.order[0]]
    assert record.losses == pytest.approx([whole_loss(model_of()), first], abs=LOSS_ERROR)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_angular_distance_drops_the_nearest_span(count: int) -> None:
    found = streams(model_of())
    states = [found[0][0], *(block[2] for block in found)]
    expected = []
    for start in range(NUM_BLOCKS - count + 1):
        x, y = states[start][:, -1].double(), states[start + count][:, -1].double()
        cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
        expected.append(float(torch.arccos(cosine).mean()) / math.pi)
    record = dropped_from(model_of(), criterion="angular_distance", count=count)
    start = lowest(dict(enumerate(expected)), 1)[0]
    assert record.rounds[0].scores[: len(expected)] == pytest.approx(expected, abs=1e-5)
    assert record.rounds[0].scores[len(expected) :] == (None,) * (count - 1)
    assert record.dropped == tuple(range(start, start + count))
    assert record.block_influence == ()


# Greedy removal.


@pytest.mark.parametrize("part", [None, "attention", "mlp"])
def test_greedy_perplexity_equals_brute_force(part: str | None) -> None:
    model, gone, losses = model_of(), [], [whole_loss(model_of())]
    for _ in range(3):
        scores = loss_scores(model, part, gone)
        gone += lowest(scores, 1)
        losses.append(scores[gone[-1]])
    record = dropped_from(
        model, criterion="perplexity", granularity=part or "block", count=3, remeasure=True
    )
    assert list(record.order) == gone
    assert record.losses == pytest.approx(losses, abs=LOSS_ERROR)
    assert [len(entry.chosen) for entry in record.rounds] == [1, 1, 1]
    # What is left in the model is what was measured.
    assert whole_loss(model) == pytest.approx(losses[-1], abs=LOSS_ERROR)


@pytest.mark.parametrize("part", [None, "attention", "mlp"])
@pytest.mark.parametrize("criterion", sorted(BY_PAIRS))
def test_scores_are_measured_anew_after_each_removal(criterion: str, part: str | None) -> None:
    model, gone, rounds = model_of(), [], []
    for _ in range(3):
        with without(model, gone, part):
            if part is None:
                # Blocks that pass hidden states on have no norm between their parts to look at.
                scores = dict(enumerate(_whole_block_scores(model, criterion)))
            else:
                scores = dict(enumerate(pair_scores(model, criterion, part)))
        scores = {index: score for index, score in scores.items() if index not in gone}
        rounds.append(scores)
        gone += lowest(scores, 1)
    record = dropped_from(
        model, criterion=criterion, granularity=part or "block", count=3, remeasure=True
    )
    assert list(record.order) == gone
    for entry, expected in zip(record.rounds, rounds, strict=True):
        known = {i: s for i, s in enumerate(entry.scores) if s is not None}
        assert known == pytest.approx(expected, rel=1e-4, abs=1e-6)


@torch.no_grad()
def _whole_block_scores(model: PreTrainedModel, criterion: str) -> list[float]:
    states = model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    states = list(states)
    last: list[Tensor] = []
    norm = model.get_submodule("model.norm")
    hook = norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    model(input_ids=IDS, use_cache=False)
    hook.remove()
    states[-1] = last[0]
    measure = BY_PAIRS[criterion]
    return [measure(x, y) for x, y in pairwise(states)]


# The loss after each removal.


@pytest.mark.parametrize(
    "stage",
    [
        {"criterion": "block_influence", "count": 3},
        {"criterion": "angular_distance", "count": 3},
        {"criterion": "relative_magnitude", "count": 2, "granularity": "mlp"},
        {"blocks": [4, 1], "granularity": "attention"},
        {"blocks": [4, 1]},
    ],
)
def test_traced_losses(stage: dict[str, Any]) -> None:
    record = dropped_from(model_of(), trace_loss=True, **stage)
    model, expected = model_of(), []
    part = stage.get("granularity")
    for count in range(len(record.order) + 1):
        with without(model, record.order[:count], part):
            expected.append(whole_loss(model))
    assert record.losses == pytest.approx(expected, abs=LOSS_ERROR)


# Protection.


@pytest.mark.parametrize("criterion", ["block_influence", "relative_magnitude", "perplexity"])
@pytest.mark.parametrize("remeasure", [False, True])
def test_protected_blocks_stay(criterion: str, remeasure: bool) -> None:
    record = dropped_from(
        model_of(),
        criterion=criterion,
        count=2,
        protect_first=3,
        protect_last=1,
        remeasure=remeasure,
    )
    assert record.dropped == (3, 4)
    assert record.protected == (0, 1, 2, 5)


def test_protected_blocks_are_in_no_span() -> None:
    record = dropped_from(
        model_of(), criterion="angular_distance", count=2, protect_first=2, protect_last=2
    )
    assert record.dropped == (2, 3)


# An identity.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("criterion", ["block_influence", "relative_magnitude"])
def test_a_block_that_does_nothing_goes_first_and_is_not_missed(
    family: str, criterion: str
) -> None:
    model = model_of(family, 4)
    silence(model, 2, ("attention", "mlp"))
    with torch.no_grad():
        before = model(input_ids=IDS).logits
    record = dropped_from(model, criterion=criterion, count=1)
    assert record.dropped == (2,)
    assert record.rounds[0].scores[2] == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, before)


OUTPUTS = {
    "attention": ("o_proj", "attn.c_proj", "out_proj", "attention.dense"),
    "mlp": ("down_proj", "mlp.c_proj", "mlp.fc_out", "fc2", "dense_4h_to_h"),
}


def silence(model: nn.Module, index: int, parts: Sequence[str]) -> None:
    """Zero the output projections of parts of a block, biases too."""
    block = find_blocks(model).modules[index]
    for part in parts:
        found = [p for name, p in block.named_parameters() if is_output(name, part)]
        assert found
        for parameter in found:
            with torch.no_grad():
                parameter.zero_()


def is_output(parameter_name: str, part: str) -> bool:
    return any(name in parameter_name for name in OUTPUTS[part])


# Parts of blocks.


def greedy(model: PreTrainedModel, use_cache: bool) -> list[list[int]]:
    prompt = IDS[:2]
    return model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        use_cache=use_cache,
    ).tolist()


@pytest.mark.parametrize("blocks", most_telling([[0], [0, 1, 2]], [[0, 1, 2]]))
@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_part_is_one_with_zero_outputs(family: str, part: str, blocks: list[int]) -> None:
    expected, model = model_of(family, 4), model_of(family, 4)
    for index in blocks:
        silence(expected, index, [part])
    record = dropped_from(model, None, blocks=blocks, granularity=part)
    assert len(record.removed) == (2 if (family, part) == ("opt", "mlp") else 1) * len(blocks)
    assert set(removed_sublayers(model)) == set(record.removed)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, expected(input_ids=IDS).logits)
    assert greedy(model, True) == greedy(model, False) == greedy(expected, True)
    kept = sum(p.numel() for p in model.parameters())
    assert kept < sum(p.numel() for p in expected.parameters())
    inside = tuple(f"{name}." for name in record.removed)
    assert not any(name.startswith(inside) for name, _ in model.named_parameters())


def test_what_is_gone_is_not_chosen_again() -> None:
    model = model_of()
    first = dropped_from(model, granularity="mlp", count=3)
    second = dropped_from(model, granularity="mlp", count=3)
    assert sorted(first.dropped + second.dropped) == list(range(NUM_BLOCKS))
    assert [second.rounds[0].scores[index] for index in first.dropped] == [None] * 3


def test_a_block_without_either_part_goes_whole() -> None:
    model, other = model_of(), model_of()
    dropped_from(model, None, blocks=[1, 4], granularity="attention")
    record = dropped_from(model, None, blocks=[3, 4], granularity="mlp")
    assert (record.emptied, record.removed) == ((4,), ("model.layers.3.mlp",))
    assert record.warnings[0].startswith("blocks [4] had neither attention nor MLP left")
    assert set(removed_sublayers(model)) == {"model.layers.1.self_attn", "model.layers.3.mlp"}
    assert len(find_blocks(model)) == NUM_BLOCKS - 1 == model.config.num_hidden_layers
    silence(other, 1, ["attention"])
    silence(other, 3, ["mlp"])
    dropped_from(other, None, blocks=[4])
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, other(input_ids=IDS).logits)
    assert greedy(model, True) == greedy(other, True)


def test_blocks_dropped_later_keep_the_cache_in_step() -> None:
    model = model_of()
    dropped_from(model, None, blocks=[3], granularity="attention")
    dropped_from(model, None, blocks=[0, 1])
    (stand_in,) = removed_sublayers(model).values()
    assert stand_in.layer_idx == 1
    assert greedy(model, True) == greedy(model, False)


def test_a_stand_in_moves_where_attention_kept_its_place_under_another_name() -> None:
    """GPT-Neo's is `layer_id`, which a model rebuilt from the configuration has: not its own."""
    config = GPTNeoConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_layers=NUM_BLOCKS,
        num_heads=4,
        attention_types=[[["global"], NUM_BLOCKS]],
        max_position_embeddings=64,
    )
    model = GPTNeoForCausalLM(config).eval()
    dropped_from(model, None, blocks=[3], granularity="attention")
    dropped_from(model, None, blocks=[0, 1])
    (stand_in,) = removed_sublayers(model).values()
    assert stand_in.layer_idx == 1


# Refusals: the model is as it was.


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"count": 3, "protect_first": 3, "protect_last": 1}, "protected only 2 may go"),
        ({"count": 3, "protect_first": 9}, "protected only 0 may go"),
        ({"count": 7, "granularity": "mlp"}, "the last 0 protected only 6 may go"),
        ({"blocks": [6], "granularity": "mlp"}, r"names the blocks \[6\]"),
        ({"count": 6}, "at least one must stay"),
    ],
)
def test_refuses_what_is_not_there(stage: dict[str, Any], message: str) -> None:
    model = model_of()
    before = model.state_dict().keys()
    with pytest.raises(SecateurError, match=message):
        dropped_from(model, **stage)
    assert model.state_dict().keys() == before


def test_refuses_a_part_that_was_removed_before() -> None:
    model = model_of()
    dropped_from(model, None, blocks=[2], granularity="mlp")
    with pytest.raises(SecateurError, match=r"the mlp of blocks \[2\] was removed before"):
        dropped_from(model, None, blocks=[1, 2], granularity="mlp")
    with pytest.raises(SecateurError, match="only 5 that may go still have one"):
        dropped_from(model, count=6, granularity="mlp")


def test_refuses_to_empty_every_block() -> None:
    model = model_of()
    dropped_from(model, None, blocks=list(range(NUM_BLOCKS)), granularity="mlp")
    with pytest.raises(SecateurError, match="expected to keep a block"):
        dropped_from(model, None, blocks=list(range(NUM_BLOCKS)), granularity="attention")
    assert len(removed_sublayers(model)) == NUM_BLOCKS


def test_refuses_a_loss_without_tokens() -> None:
    with pytest.raises(SecateurError, match="needs calibration"):
        dropped_from(model_of(), None, blocks=[1], trace_loss=True)


def test_refuses_a_dense_checkpoint_of_removed_parts() -> None:
    recipe = {"stages": [{"stage": "drop_blocks", "blocks": [1], "granularity": "mlp"}]}
    model = model_of()
    with pytest.raises(SecateurError, match="checkpoint_format dense cannot say that a block"):
        compress_with_report(model, recipe, checkpoint_format="dense")
    assert not removed_sublayers(model)
    dropped_from(model, None, blocks=[1], granularity="mlp")
    plain = {"stages": [{"stage": "drop_blocks", "blocks": [2]}]}
    with pytest.raises(SecateurError, match="plain model has both in every block"):
        compress_with_report(model, plain, checkpoint_format="dense")
