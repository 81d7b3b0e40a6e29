"""Requests that come and go at any step get what they would get alone, each exactly once."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from secateur import Engine, GenerationOptions
from secateur.engine import Piece, Result
from secateur.engine.decode import DecodeShape
from secateur.engine.prefill import next_chunk
from secateur.engine.sampling import SamplingKind
from secateur.engine.sequence import Sequence

REQUESTS = st.tuples(
    st.integers(1, 40),  # tokens of the prompt
    st.integers(1, 12),  # new tokens
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 3),  # steps before the next request
    st.one_of(st.none(), st.integers(0, 6)),  # steps until it is cancelled
)


class Alone:
    """What each request gives on an engine of its own row; remembered."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.engine = Engine(model, max_batch_size=1, max_length=80)
        self.results: dict[Any, Result] = {}

    def __call__(self, prompt: tuple[int, ...], options: GenerationOptions) -> Result:
        key = (prompt, options)
        if key not in self.results:
            self.results[key] = self.engine.generate([prompt], options)[0]
        return self.results[key]


@pytest.fixture(scope="module")
def alone(byte_model: PreTrainedModel) -> Alone:
    return Alone(byte_model)


@pytest.fixture(scope="module", params=["plain", "a step behind", "few shapes"])
def any_engine(request: pytest.FixtureRequest, byte_model: PreTrainedModel) -> Engine:
    """As on a CPU; reading tokens a step late, as on a GPU; with the shapes of compiled steps."""
    engine = Engine(byte_model, max_batch_size=3, max_length=80, prefill_chunk=16)
    if request.param != "plain":
        engine._scheduler._steps_behind = 1
    if request.param == "few shapes":
        engine._decode.few_shapes = True
    return engine


def request(length: int, count: int, temperature: float) -> tuple[Any, GenerationOptions]:
    prompt = tuple((37 * place + length) % 250 for place in range(length))
    penalties = ({}, {"repetition_penalty": 1.5}, {"frequency_penalty": 0.5, "min_p": 0.02})
    asked: dict[str, Any] = penalties[length % 3]
    return prompt, GenerationOptions(count, temperature=temperature, seed=length, **asked)


@settings(max_examples=12, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=8))
def test_nothing_is_lost_or_mixed_up(any_engine: Engine, alone: Alone, wanted: list[Any]) -> None:
    engine = any_engine
    asked, pieces, cancel_at, step = {}, [], {}, 0
    arrivals = list(wanted)
    wait = 0
    while arrivals or engine.has_work:
        while arrivals and wait == 0:
            length, count, temperature, wait, cancelled = arrivals.pop(0)
            prompt, options = request(length, count, temperature)
            request_id = engine.submit(prompt, options)
            asked[request_id] = (prompt, options)
            if cancelled is not None:
                cancel_at.setdefault(step + cancelled, []).append(request_id)
        wait = max(0, wait - 1)
        for request_id in cancel_at.get(step, []):
            engine.cancel(request_id)
        pieces += engine.step()
        assert engine.num_running <= engine.max_batch_size
        step += 1
    check(asked, pieces, alone)


def check(asked: dict[int, Any], pieces: list[Piece], alone: Alone) -> None:
    assert {piece.request_id for piece in pieces} == set(asked)
    for request_id, (prompt, options) in asked.items():
        own = [piece for piece in pieces if piece.request_id == request_id]
        assert [piece.result is not None for piece in own] == [False] * (len(own) - 1) + [True]
        result, expected = own[-1].result, alone(prompt, options)
        assert result is not None
        assert "".join(piece.text for piece in own) == result.text
        assert sum((piece.token_ids for piece in own), ()) == result.token_ids
        if result.finish_reason == "cancelled":
            assert result.token_ids == expected.token_ids[: len(result.token_ids)]
        else:
            assert result.token_ids == expected.token_ids


def test_first_come_first_served(engine: Engine) -> None:
    ids = [engine.submit("x" * length, GenerationOptions(4)) for length in (30, 2, 2, 2, 2)]
    first: list[int] = []
    while engine.has_work:
        for piece in engine.step():
            if piece.request_id not in first:
                first.append(piece.request_id)
    assert first == ids


def test_long_prompts_do_not_hold_up_those_that_run(engine: Engine) -> None:
    early = engine.submit("a", GenerationOptions(20))
    engine.step()
    late = engine.submit("x" * 64, GenerationOptions(2))
    steps = [{piece.request_id for piece in engine.step()} for _ in range(5)]
    # The token that follows the first one; then four chunks of 16 tokens, and a token of the first
    # request beside each but the last, whose own token is not held up.
    assert [late in step for step in steps] == [False, False, False, False, True]
    assert [early in step for step in steps] == [True, True, True, True, False]
    engine.cancel(early)
    rest(engine)


def test_a_step_behind_first_tokens_do_not_wait_for_the_second_ones(
    byte_model: PreTrainedModel,
) -> None:
    engine = Engine(byte_model, max_batch_size=3, max_length=80)
    engine._scheduler._steps_behind = 1
    early = engine.submit([7, 8], GenerationOptions(9))
    assert [len(engine.step()) for _ in range(4)] == [0, 1, 1, 1]
    late = engine.submit([9], GenerationOptions(9))
    handed_out = [[piece.request_id for piece in engine.step()] for _ in range(4)]
    # What was on its way; its first token alone; what was launched with that; and so on.
    assert handed_out == [[early], [late], [early, late], [early, late]]
    assert len(rest(engine)) == 2 * 9 - 9


def test_the_last_row_takes_the_place_of_one_that_is_done(
    byte_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that steps have no more rows than there are requests."""
    engine = Engine(byte_model, max_batch_size=3, max_length=80)
    batches: list[int] = []
    run = engine._decode.run

    def noted(shape: DecodeShape, kind: SamplingKind) -> None:
        batches.append(shape.batch)
        run(shape, kind)

    monkeypatch.setattr(engine._decode, "run", noted)
    for count in (3, 9, 9):
        engine.submit([7], GenerationOptions(count))
    rest(engine)
    assert max(batches) == 3
    assert batches[-1] == 2


def rest(engine: Engine) -> list[Piece]:
    """Run until nothing is left."""
    pieces: list[Piece] = []
    while engine.has_work:
        pieces += engine.step()
    return pieces


def test_many_prompts_do_not_hold_up_those_that_run(engine: Engine) -> None:
    early = engine.submit("a", GenerationOptions(20))
    engine.step()
    for _ in range(3):
        engine.submit("x", GenerationOptions(1))
        engine.step()
    left = [piece for piece in rest(engine) if piece.request_id == early]
    # The first token, and another in every second step at least.
    assert len(left) <= 20 - 2


def prefilling(*lengths: tuple[int, int]) -> dict[int, Sequence]:
    """Rows 0 and following; (tokens of the prompt, tokens computed)."""
    members = {}
    for row, (length, computed) in enumerate(lengths):
        member = Sequence(row, tuple(range(length)), GenerationOptions(), None, frozenset())
        member.row, member.computed = row, computed
        members[row] = member
    return members


@pytest.mark.parametrize(
    ("lengths", "budget", "rows", "width"),
    [
        ([(10, 0)], 16, 1, 10),
        ([(40, 0)], 16, 1, 16),
        ([(40, 32)], 16, 1, 8),
        ([(8, 0), (5, 0)], 16, 2, 8),
        ([(8, 0), (3, 0)], 16, 1, 8),
        ([(8, 0), (9, 0)], 16, 1, 8),
        ([(4, 0), (6, 2), (3, 0), (4, 0), (4, 0)], 16, 4, 4),
        ([(2, 0)] * 20, 512, 16, 2),
    ],
)
def test_a_chunk_takes_neighbours_that_fit(
    lengths: list[tuple[int, int]], budget: int, rows: int, width: int
) -> None:
    chunk = next_chunk(prefilling(*lengths), budget)
    assert (len(chunk.members), chunk.width, chunk.first_row) == (rows, width, 0)


def test_a_chunk_begins_with_the_oldest_request() -> None:
    members = prefilling((4, 0), (4, 0), (4, 0))
    members[1].request_id = -1
    assert [member.row for member in next_chunk(members, 16).members] == [1, 2]


def test_prompts_of_any_length_are_computed_without_plans_of_cudnn(
    byte_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(byte_model, max_batch_size=2, max_length=80, prefill_chunk=16)
    allowed: list[bool] = []

    def note(*_: Any) -> None:
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())

    hook = byte_model.model.layers[0].self_attn.register_forward_pre_hook(note)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    engine.submit([5] * 30, GenerationOptions(2))
    rest(engine)
    hook.remove()
    # Two chunks, and a token more, whose shapes are few.
    assert allowed == [False, False, before]
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
