import gc
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from transformers import PreTrainedModel

from secateur import Engine, GenerationOptions, SecateurError
from secateur.checkpoint.load import load_model
from secateur.engine import Piece, Result
from secateur.engine.decode import DecodeShape
from secateur.evaluate.generate import generate_text

BOOKS = Path(__file__).parents[2] / "examples" / "books-8m"
PROMPTS = ("once", "a", "In the beginning was the word, and", "upon a time")
GREEDY = GenerationOptions(max_new_tokens=12)
SAMPLED = GenerationOptions(max_new_tokens=12, temperature=1.1, top_p=0.9, seed=5)


def without_timing(result: Result) -> tuple[Any, ...]:
    return (
        result.text,
        result.token_ids,
        result.finish_reason,
        result.prompt_tokens,
    )


def test_text_of_a_real_model_is_what_its_own_generate_writes() -> None:
    loaded = load_model(BOOKS, dtype="float32")
    prompts = ["The door", "It was a dark night, and the", "She"]
    expected = [generate_text(loaded.model, loaded.tokenizer, one, 20) for one in prompts]
    engine = Engine(loaded.model, loaded.tokenizer, max_batch_size=4, max_length=128)
    results = engine.generate(prompts, GenerationOptions(max_new_tokens=20))
    assert [result.text for result in results] == expected
    assert all(result.text.isascii() and len(result.text) > 20 for result in results)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_batch_gives_what_its_members_give_alone(
    engine: Engine, options: GenerationOptions
) -> None:
    alone = [engine.generate([prompt], options)[0] for prompt in PROMPTS]
    together = engine.generate(PROMPTS, options)
    backwards = engine.generate(PROMPTS[::-1], options)[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert without_timing(one) == without_timing(two) == without_timing(three)


def test_samples_do_not_depend_on_chunks_or_on_the_kind_of_their_neighbours(
    byte_model: PreTrainedModel, engine: Engine
) -> None:
    plain = GenerationOptions(max_new_tokens=9, temperature=0.8, seed=3)
    other = Engine(byte_model, max_batch_size=2, max_length=80, prefill_chunk=3)
    prompt = list(PROMPTS[2].encode())
    neighbour = GenerationOptions(max_new_tokens=9, temperature=1, top_k=5, logprobs=True)
    alone = engine.generate([prompt], plain)[0]
    beside = other.generate([prompt, prompt[:5]], [plain, neighbour])[0]
    assert alone.token_ids == beside.token_ids


def test_seeds_matter(engine: Engine) -> None:
    results = engine.generate(
        ["once"] * 3,
        [GenerationOptions(max_new_tokens=12, temperature=1, seed=seed) for seed in (0, 1, 0)],
    )
    assert results[0].token_ids == results[2].token_ids != results[1].token_ids


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_a_choice_of_one_is_greedy_however_hot(engine: Engine, narrow: dict[str, Any]) -> None:
    wide = GenerationOptions(max_new_tokens=12, temperature=9.0)
    options = [replace(wide, **narrow), wide, replace(wide, **narrow)]
    found = engine.generate(PROMPTS[:3], options)
    expected = engine.generate(PROMPTS[:3], GREEDY)
    same = [one.token_ids == two.token_ids for one, two in zip(found, expected, strict=True)]
    assert same == [True, False, True]


@pytest.mark.parametrize("temperature", [1e-4, 1e-39, 1e-300])
def test_a_very_low_temperature_is_greedy(engine: Engine, temperature: float) -> None:
    cold = GenerationOptions(max_new_tokens=12, temperature=temperature, top_p=0.9)
    assert engine.generate(["once"], cold)[0].token_ids == (
        engine.generate(["once"], GREEDY)[0].token_ids
    )


def test_text_ends_before_a_stop_string_that_spans_tokens(engine: Engine) -> None:
    whole = engine.generate(["once"], GREEDY)[0]
    stop = whole.text[3:6]
    place = whole.text.index(stop)
    options = GenerationOptions(max_new_tokens=12, stop=("never there", stop))
    result = engine.generate(["once"], options)[0]
    assert result.finish_reason == "stop"
    assert result.text == whole.text[:place]
    assert len(stop) == 3
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]
    pieces = list(engine.stream("once", options))
    assert "".join(piece.text for piece in pieces) == result.text


@pytest.mark.parametrize("as_list", [False, True])
def test_the_models_end_of_text_ends_it(as_list: bool) -> None:
    model = tiny_model("llama")
    options = GenerationOptions(max_new_tokens=10)
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    whole = Engine(model, max_length=32).generate([[5, 6, 7]], options)[0]
    end = whole.token_ids[4]
    model.generation_config.eos_token_id = [end, 127] if as_list else end
    engine = Engine(model, max_length=32)
    result = engine.generate([[5, 6, 7]], options)[0]
    count = whole.token_ids.index(end) + 1
    assert (result.token_ids, result.finish_reason) == (whole.token_ids[:count], "eos")
    ignoring = GenerationOptions(max_new_tokens=10, ignore_eos=True)
    assert engine.generate([[5, 6, 7]], ignoring)[0].token_ids == whole.token_ids
    assert whole.finish_reason == "length"


def test_tokens_that_a_request_names_end_it_and_are_part_of_it(engine: Engine) -> None:
    whole = engine.generate(["once"], GenerationOptions(max_new_tokens=8))[0]
    end = whole.token_ids[3]
    # Whoever ignores the model's ends still means his own.
    options = GenerationOptions(max_new_tokens=8, stop_token_ids=(300, end), ignore_eos=True)
    result = engine.generate(["once"], options)[0]
    count = whole.token_ids.index(end) + 1
    assert (result.token_ids, result.finish_reason) == (whole.token_ids[:count], "stop")
    shorter = GenerationOptions(max_new_tokens=count)
    assert result.text == engine.generate(["once"], shorter)[0].text
    pieces = list(engine.stream("once", options))
    assert "".join(piece.text for piece in pieces) == result.text


def test_logprobs_are_those_of_the_model(byte_model: PreTrainedModel, engine: Engine) -> None:
    options = GenerationOptions(max_new_tokens=6, temperature=0.9, seed=2, logprobs=True)
    result = engine.generate(["once"], options)[0]
    token_ids = torch.tensor([[*b"once", *result.token_ids]])
    with torch.no_grad():
        logits = byte_model(token_ids).logits[0].double()
    expected = torch.log_softmax(logits, -1)[3:-1].gather(1, token_ids[0, 4:, None])[:, 0]
    assert result.logprobs is not None
    torch.testing.assert_close(torch.tensor(result.logprobs).double(), expected, rtol=0, atol=1e-4)
    assert engine.generate(["once"], GREEDY)[0].logprobs is None


def test_a_stream_is_the_result_in_pieces(engine: Engine) -> None:
    expected = engine.generate(["once"], SAMPLED)[0]
    pieces = list(engine.stream("once", SAMPLED))
    assert "".join(piece.text for piece in pieces) == expected.text
    assert sum((piece.token_ids for piece in pieces), ()) == expected.token_ids
    assert [piece.result is None for piece in pieces] == [True] * 11 + [False]
    assert pieces[-1].finish_reason == "length"
    assert pieces[0].finish_reason is None
    assert not engine.has_work


def test_streams_may_be_read_in_turns(engine: Engine) -> None:
    expected = engine.generate(PROMPTS, SAMPLED)
    streams = [engine.stream(prompt, SAMPLED) for prompt in PROMPTS]
    texts = [""] * len(streams)
    for pieces in zip(*streams, strict=True):
        for index, piece in enumerate(pieces):
            texts[index] += piece.text
    assert texts == [result.text for result in expected]


def test_closing_a_stream_cancels_it(engine: Engine) -> None:
    stream = engine.stream("once", GREEDY)
    next(stream)
    stream.close()
    while engine.has_work:
        engine.step()
    assert engine.num_running == engine.num_waiting == 0
    assert engine.generate(["once"], GREEDY)[0].finish_reason == "length"


def test_streams_that_are_over_leave_nothing_behind(engine: Engine) -> None:
    for _ in range(3):
        list(engine.stream("once", GREEDY))
        closed = engine.stream("once", GREEDY)
        next(closed)
        closed.close()
        engine.generate(PROMPTS, GREEDY)
    while engine.has_work:
        assert engine.step() == []
    assert not engine._boxes
    assert len(engine._decode._forwards) == 1


def test_times_are_one_a_token(engine: Engine) -> None:
    timing = engine.generate(["once"], GREEDY)[0].timing
    assert timing.ttft > 0
    assert len(timing.token_seconds) == 11
    assert all(seconds >= 0 for seconds in timing.token_seconds)


def test_a_request_that_is_cancelled_at_once_has_no_tokens(engine: Engine) -> None:
    request_id = engine.submit("once", GREEDY)
    engine.cancel(request_id)
    pieces = engine.step()
    assert [piece.request_id for piece in pieces] == [request_id]
    result = pieces[0].result
    assert result is not None
    assert (result.token_ids, result.text, result.finish_reason) == ((), "", "cancelled")
    assert math.isnan(result.timing.ttft)
    assert not engine.has_work


def test_requests_come_from_several_threads(engine: Engine) -> None:
    expected = engine.generate(PROMPTS, SAMPLED)
    ids: dict[int, int] = {}

    def ask(index: int) -> None:
        ids[engine.submit(PROMPTS[index % 4], SAMPLED)] = index % 4

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    pieces: list[Piece] = []
    while any(thread.is_alive() for thread in threads) or engine.has_work:
        pieces += engine.step()
    results = {piece.request_id: piece.result for piece in pieces if piece.result}
    assert sorted(results) == sorted(ids)
    for request_id, index in ids.items():
        assert results[request_id].text == expected[index].text


def test_warming_up_changes_nothing(byte_model: PreTrainedModel, engine: Engine) -> None:
    other = Engine(byte_model, max_batch_size=2, max_length=80)
    other.warm_up(batch_sizes=[2], lengths=[30], options=[SAMPLED])
    other.warm_up()
    assert not other.has_work
    token_ids = list(b"once")
    assert other.generate([token_ids], SAMPLED)[0].token_ids == (
        engine.generate([token_ids], SAMPLED)[0].token_ids
    )


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", GREEDY, "expected a prompt to continue, but got an empty one"),
        ([], GREEDY, "expected a prompt to continue, but got an empty one"),
        ([3, 260], GREEDY, "token ids from 0 to 259, but got 260"),
        ([-1], GREEDY, "token ids from 0 to 259, but got -1"),
        ("x" * 69, GREEDY, "at most 80 tokens, the engine's max_length, but the prompt has 69"),
        (7, GREEDY, "expected a prompt of text or token ids, but got int"),
        ([1, 2.5], GREEDY, "expected a prompt of text or token ids, but got list"),
        ({"input_ids": [1]}, GREEDY, "expected a prompt of text or token ids, but got dict"),
    ],
)
def test_requests_that_cannot_be_served_are_refused_at_once(
    engine: Engine, prompt: Any, options: GenerationOptions, message: str
) -> None:
    for ask in (engine.submit, engine.stream):
        with pytest.raises(SecateurError, match=message):
            ask(prompt, options)
    with pytest.raises(SecateurError, match=message):
        engine.generate(["fine", prompt], options)
    assert not engine.has_work


def test_the_longest_request_fits(engine: Engine) -> None:
    result = engine.generate(["x" * 68], GREEDY)[0]
    assert len(result.token_ids) == 12


def test_without_a_tokenizer_text_is_refused(byte_model: PreTrainedModel) -> None:
    engine = Engine(byte_model, max_length=80)
    with pytest.raises(SecateurError, match="expected token ids, as the engine has no tokenizer"):
        engine.submit("once")
    with pytest.raises(SecateurError, match="stop strings need a tokenizer"):
        engine.submit([1], GenerationOptions(max_new_tokens=2, stop=("a",)))
    assert engine.generate([[1]], GREEDY)[0].text == ""


def test_lists_of_prompts_and_options_must_match(engine: Engine) -> None:
    with pytest.raises(SecateurError, match="expected options for 2 prompts, got 1"):
        engine.generate(["a", "b"], [GREEDY])
    with pytest.raises(SecateurError, match="expected a list of prompts, got a string"):
        engine.generate("ab", GREEDY)
    with pytest.raises(SecateurError, match="expected a list of prompts, got a dict"):
        engine.generate({"input_ids": [[1]]})  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match="expected GenerationOptions, but got 'max_new_tokens'"):
        engine.generate(["a"], {"max_new_tokens": 3})  # type: ignore[arg-type]
    assert engine.generate([]) == []


@pytest.mark.parametrize("read", [0, 1])
def test_a_stream_that_is_closed_cancels_its_request(engine: Engine, read: int) -> None:
    stream = engine.stream("ab", GREEDY)
    for _ in range(read):
        next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    assert engine.step() == []
    assert not engine.has_work


def test_a_stream_that_is_let_go_of_cancels_its_request(engine: Engine) -> None:
    engine.stream("ab", GREEDY)
    gc.collect()
    assert engine.step() == []
    assert not engine.has_work


def test_a_folder_is_no_model() -> None:
    with pytest.raises(SecateurError, match="expected a model, but got 'folder'"):
        Engine("folder")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_batch_size": 0}, "expected max_batch_size of at least 1, but got 0"),
        ({"max_batch_size": 1.5}, "expected max_batch_size to be a whole number, but got 1.5"),
        ({"prefill_chunk": 0}, "expected prefill_chunk of at least 1, but got 0"),
        ({"max_length": 1}, "expected max_length of at least 2 and at most 128, the model's"),
        ({"max_length": 129}, "the model's context, but got 129"),
        ({"attention": "flash"}, "expected attention sdpa or flex, but got flash"),
        (
            {"attention": "flex", "compile": True},
            "compiled steps on a GPU, but the model is on cpu",
        ),
        ({"attention": "flex"}, "the model is on cpu and compile is False"),
        ({"cuda_graphs": True}, "CUDA graphs need a model on a GPU, but it is on cpu"),
    ],
)
def test_engines_that_cannot_be_are_refused(
    byte_model: PreTrainedModel, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SecateurError, match=message):
        Engine(byte_model, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": -1}, "expected 0 new tokens or more, but got -1"),
        ({"top_logprobs": 21, "logprobs": True}, "expected top_logprobs from 0 to 20, but got 21"),
        ({"top_logprobs": 1}, "expected logprobs with top_logprobs and with prompt_logprobs"),
        ({"prompt_logprobs": True}, "expected logprobs with top_logprobs and with prompt_log"),
        ({"max_new_tokens": 2.5}, "expected max_new_tokens to be a whole number, but got 2.5"),
        ({"max_new_tokens": True}, "expected max_new_tokens to be a whole number, but got True"),
        ({"seed": 1.5}, "expected seed to be a whole number, but got 1.5"),
        ({"temperature": "0.5"}, "expected temperature to be a number, but got '0.5'"),
        ({"top_p": None}, "expected top_p to be a number, but got None"),
        ({"stop": ("a", 1)}, "a tuple of stop strings, none of them empty, but got"),
        ({"temperature": -0.1}, "a temperature of 0 or more, but got -0.1"),
        ({"temperature": float("inf")}, "a temperature of 0 or more, but got inf"),
        ({"top_p": 0.0}, "top_p above 0 and at most 1, but got 0.0"),
        ({"top_p": 1.1}, "top_p above 0 and at most 1, but got 1.1"),
        ({"min_p": -0.1}, "expected min_p from 0 to 1, but got -0.1"),
        ({"min_p": 1.5}, "expected min_p from 0 to 1, but got 1.5"),
        ({"min_p": "0"}, "expected min_p to be a number, but got '0'"),
        ({"repetition_penalty": 0}, "expected repetition_penalty above 0, but got 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty above 0, but got inf"),
        ({"repetition_penalty": None}, "repetition_penalty to be a number, but got None"),
        ({"presence_penalty": 2.1}, "presence_penalty from -2 to 2, but got 2.1"),
        ({"frequency_penalty": -3}, "frequency_penalty from -2 to 2, but got -3"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty from -2 to 2, but got nan"),
        ({"top_k": -1}, "top_k of 0 .all tokens. or more, but got -1"),
        ({"seed": -1}, "a seed from 0 to 2..63 - 1, but got -1"),
        ({"stop": ("a", "")}, "none of them empty, but got"),
        ({"stop": "a"}, "a tuple of stop strings, none of them empty, but got 'a'"),
        ({"stop_token_ids": [2]}, "expected stop_token_ids to be a tuple, but got"),
        ({"stop_token_ids": (2.0,)}, "every one of stop_token_ids to be a whole number, but got"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        GenerationOptions(**changes)


def test_warming_up_looks_at_no_pairs_of_rows_and_lengths(
    byte_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With many rows and a long context there are millions.
    monkeypatch.setattr("secateur.engine.decode._SHORTEST", 32)
    engine = Engine(byte_model, max_batch_size=3, max_length=80)
    decode = engine._decode
    decode.few_shapes = True
    asked: list[tuple[int, int]] = []
    shape = decode.shape

    def note(batch: int, length: int) -> DecodeShape:
        asked.append((batch, length))
        return shape(batch, length)

    monkeypatch.setattr(decode, "shape", note)
    engine.warm_up()
    prepared = {(one.batch, one.length) for one in decode._forwards}
    assert prepared == {(batch, length) for batch in (1, 2, 3) for length in (32, 128)}
    assert len(asked) <= engine.max_batch_size + engine.max_length


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_sizes": [4]}, "expected a batch size from 1 to 3, but got 4"),
        ({"lengths": [0]}, "expected a length from 1 to 80, but got 0"),
    ],
)
def test_warming_up_out_of_range_is_refused(
    engine: Engine, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SecateurError, match=message):
        engine.warm_up(**arguments)
