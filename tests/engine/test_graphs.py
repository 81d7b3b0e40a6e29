"""Steps replayed from graphs, emulated on the CPU, against steps that are launched one by one."""

import gc
from typing import Any

import pytest
import torch
from engine.emulated_graphs import EmulatedGraph, emulate_cuda_graphs
from families import tiny_model
from torch import Tensor, nn

from secateur import Engine, GenerationOptions, SecateurError, accelerate
from secateur.engine import Piece
from secateur.engine.graphs import GraphCapture

PROMPTS = [[5 + length * place % 90 for place in range(length)] for length in (3, 30, 1, 17, 9)]
GREEDY = GenerationOptions(max_new_tokens=7)
SAMPLED = GenerationOptions(max_new_tokens=6, temperature=0.9, top_p=0.9, seed=4, logprobs=True)
PENALIZED = GenerationOptions(max_new_tokens=9, repetition_penalty=1.3, frequency_penalty=0.3)
ASKED = [GREEDY, SAMPLED, PENALIZED, SAMPLED, GREEDY]


def with_graphs(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine as on a GPU, but for what computes."""
    emulate_cuda_graphs(monkeypatch)
    engine = Engine(model, max_batch_size=3, max_length=64, prefill_chunk=16)
    engine._decode._capture = GraphCapture(torch.device("cpu"))
    engine._decode.few_shapes = True
    engine._scheduler._steps_behind = 1
    return engine


def generated(engine: Engine) -> list[tuple[int, ...]]:
    results = engine.generate(PROMPTS, ASKED)
    # What nothing but a graph refers to would be gone now.
    gc.collect()
    return [result.token_ids for result in results]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gptj"])
def test_replayed_steps_give_the_same_tokens(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family)
    expected = generated(Engine(model, max_batch_size=3, max_length=64))
    engine = with_graphs(model, monkeypatch)
    assert generated(engine) == expected
    assert generated(engine) == expected


def test_accelerated_layers_can_be_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    expected = generated(Engine(model, max_batch_size=3, max_length=64))
    accelerate(model, force=True)
    engine = with_graphs(model, monkeypatch)
    assert generated(engine) == expected == generated(engine)


def test_a_new_kind_of_request_needs_no_new_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = with_graphs(tiny_model("llama"), monkeypatch)
    engine.warm_up()
    captured: list[Any] = []

    def note(_: GraphCapture, step: Any) -> Any:
        captured.append(step)
        return step

    monkeypatch.setattr(GraphCapture, "__call__", note)
    assert len(engine.generate(PROMPTS, GREEDY)) == 5
    assert not captured
    engine.generate(PROMPTS[:1], SAMPLED)
    assert [step.__qualname__.split(".")[1] for step in captured] == ["_choice_of"]


def test_a_step_is_captured_while_others_run_and_changes_nothing_of_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    expected = Engine(model, max_length=64).generate(PROMPTS[:1], SAMPLED)[0].token_ids
    engine = with_graphs(model, monkeypatch)
    engine.submit(PROMPTS[0], SAMPLED)
    pieces: list[Piece] = []
    for batch in (2, 3, 1):
        pieces += engine.step()
        engine.warm_up(batch_sizes=[batch], options=[GREEDY, SAMPLED])
    while engine.has_work:
        pieces += engine.step()
    assert sum((piece.token_ids for piece in pieces), ()) == expected


class Asks(nn.Module):
    """An MLP that lets the host look at a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) < 1e9 else -x


def test_a_model_that_waits_for_the_device_cannot_be_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = tiny_model("llama")
    model.model.layers[0].mlp = Asks()
    engine = with_graphs(model, monkeypatch)
    with pytest.raises(SecateurError, match="cannot be captured in a CUDA graph; with cuda_graphs"):
        engine.generate(PROMPTS[:1], GREEDY)


def test_the_emulation_finds_memory_that_was_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate_cuda_graphs(monkeypatch)
    graph, total, there = EmulatedGraph(), torch.zeros(3), torch.ones(3)
    with torch.cuda.graph(graph):
        total.add_(2 * there)
    graph.replay()
    assert total.tolist() == [4.0, 4.0, 4.0]
    del there
    with pytest.raises(AssertionError, match="memory that was given back"):
        graph.replay()
