import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from byte_tokenizers import CHATML, EOS, CountingTokenizer, byte_tokenizer, ids_of, text_of_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.texts.rows import Row
from secateur.training.data import TrainingText, load_training_data
from secateur.training.data.blocks import Tally
from secateur.training.data.conversations import render, resolve_format
from secateur.training.data.encode import make_encoder
from secateur.training.data.encode_chat import encoded_examples

LLAMA_LIKE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] | trim }} </s>{% endif %}"
    "{% endfor %}"
)
NO_END_OF_TURN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETS_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<think></think>{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m['content'] }}{% endfor %}"
)


def learned(row: Any, tokenizer: CountingTokenizer) -> list[str]:
    """The stretches of an example with loss, special tokens by name."""
    (example,) = encoded_examples([Row("rows", "text", 1, row)], tokenizer)
    stretches: list[list[int]] = []
    previous = False
    for token, has_loss in zip(example.tokens.tolist(), example.loss.tolist(), strict=True):
        if has_loss:
            stretches = stretches if previous else [*stretches, []]
            stretches[-1].append(token)
        previous = has_loss
    return [tokenizer.decode(stretch) for stretch in stretches]


def said(*turns: str) -> dict[str, Any]:
    """`u:hello` is a user's message, and so on."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    pairs = (turn.split(":", 1) for turn in turns)
    return {"messages": [{"role": roles[role], "content": text} for role, text in pairs]}


def test_loss_is_on_every_assistant_message_and_its_end() -> None:
    tokenizer = byte_tokenizer(template=CHATML)
    row = said("s:Be kind.", "u:Hi", "a:Hello!", "t:42", "u:Bye", "a: See you \n")
    assert learned(row, tokenizer) == ["Hello!<|im_end|>", " See you \n<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["one<|im_end|>", "three<|im_end|>"]),
        (LLAMA_LIKE, [" one </s>", " three </s>"]),
        (NO_END_OF_TURN, ["one\n", "three\n"]),
    ],
)
def test_templates(template: str, expected: list[str]) -> None:
    tokenizer = byte_tokenizer(template=template)
    assert learned(said("u:zero", "a:one", "u:two", "a:three"), tokenizer) == expected


@settings(deadline=None, max_examples=100)
@given(
    turns=st.lists(
        st.tuples(st.sampled_from("ua"), st.text("ab é\n<|im_end>", max_size=8)), max_size=6
    )
)
def test_spans_are_the_responses(turns: list[tuple[str, str]]) -> None:
    turns = [("u", "?"), *turns]
    tokenizer = byte_tokenizer(template=CHATML)
    rendered = render(Row("rows", "text", 1, said(*(f"{r}:{t}" for r, t in turns))), tokenizer)
    spans = [rendered.text[first:last] for first, last in rendered.spans]
    assert spans == [f"{text}<|im_end|>" for role, text in turns if role == "a"]
    assert all(
        rendered.text[:first].endswith("<|im_start|>assistant\n") for first, _ in rendered.spans
    )


@pytest.mark.parametrize("key", ["response", "completion"])
def test_prompt_and_response_without_template(key: str) -> None:
    row = {"prompt": "2 + 2 = ", key: "4</s>\n", "other": 1}
    (example,) = encoded_examples([Row("rows", "text", 1, row)], byte_tokenizer(adds_bos=True))
    # The name of a special token is text; the token itself follows.
    assert text_of_ids(example.tokens.tolist()) == "[0]2 + 2 = 4</s>\n[1]"
    assert example.loss.tolist() == [False] * (1 + len("2 + 2 = ")) + [True] * len("4</s>\n.")


def test_prompt_and_response_with_template() -> None:
    row = {"prompt": "Hi", "response": "Hello"}
    tokenizer = byte_tokenizer(template=CHATML)
    assert learned(row, tokenizer) == ["Hello<|im_end|>"]
    same = list(encoded_examples([Row("", "text", 1, said("u:Hi", "a:Hello"))], tokenizer))
    (example,) = encoded_examples([Row("", "text", 1, row)], tokenizer)
    assert example.tokens.tolist() == same[0].tokens.tolist()
    expected = tokenizer.apply_chat_template(said("u:Hi", "a:Hello")["messages"], tokenize=True)
    assert example.tokens.tolist() == list(expected["input_ids"])


def test_token_across_the_border_belongs_to_its_last_character() -> None:
    # `: h` would be one token: the response begins within it.
    merges = [(":", "Ġ"), (":Ġ", "h")]
    tokenizer = byte_tokenizer(merges=merges)
    row = {"prompt": "a: ", "response": "hi: h"}
    (example,) = encoded_examples([Row("rows", "text", 1, row)], tokenizer)
    assert len(example.tokens) == 5
    assert example.loss.tolist() == [False, True, True, True, True]
    # A token that is a space alone, at the end of the prompt, is the prompt's.
    row = {"prompt": "a ", "response": " b "}
    assert learned(row, byte_tokenizer()) == [" b </s>"]


def test_characters_of_several_tokens() -> None:
    row = {"prompt": "é", "response": "éa€"}
    assert learned(row, byte_tokenizer()) == ["éa€</s>"]


def test_message_that_calls_a_tool_may_say_nothing() -> None:
    template = "{% for m in messages %}{{ m['role'] }}:{{ m['tool_calls'] }};{% endfor %}"
    calls = [{"name": "f"}]
    row = said("u:Hi", "a:")
    row["messages"][1] |= {"content": None, "tool_calls": calls}
    assert learned(row, byte_tokenizer(template=template)) == ["assistant:[{'name': 'f'}];"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "a": 1}, r"line 2: expected a row with .*, got \['a', 'question'\]"),
        ({"prompt": "x"}, r"line 2: expected a row with `messages`, or .* got \['prompt'\]"),
        ([1], r"line 2: expected a row with `messages`.* got \[1\]"),
        ("text", "line 2: expected rows with `messages`, .* for the chat format, got plain text"),
        ({"prompt": 1, "response": "x"}, "line 2: expected the prompt as a string, got int"),
        ({"prompt": "x", "completion": None}, "line 2: expected the response as .* got NoneType"),
        ({"messages": []}, r"line 2: expected `messages` as a list .* got \[\]"),
        ({"messages": "x"}, "line 2: expected `messages` as a list .* got x"),
        ({"messages": ["x"]}, "line 2, message 1: expected an object with role .* got x"),
        ({"messages": [{"content": "x"}]}, "line 2, message 1: expected an object with role"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "gpt", "content": "x"}]},
            "line 2, message 2: expected a role out of system, developer, user, .*, got 'gpt'",
        ),
        (
            {"messages": [{"role": "user", "content": ["x"]}]},
            "line 2, message 1: expected content as a string, got list",
        ),
        (said("u:x", "a:y") | {"tools": [{"name": "add"}]}, "line 2: .* without `tools`"),
        (said("a:x", "u:y"), "line 2: expected `messages` to begin with another role than assis"),
        (said("u:x"), "line 2: the tokenizer has no chat template, .* give `prompt` and `respo"),
    ],
)
def test_row_that_is_no_example_is_refused(
    tokenizer: CountingTokenizer, tmp_path: Path, row: Any, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt": "a", "response": "b"}}\n{json.dumps(row)}\n')
    with pytest.raises(SecateurError, match=rf"a\.jsonl, {message}"):
        load_training_data(TrainingText(path, 8), tokenizer, tmp_path)


def test_template_that_is_not_prefix_stable_is_refused() -> None:
    tokenizer = byte_tokenizer(template=FORGETS_THOUGHTS)
    message = (
        r"rows, text 1: the chat template is not prefix-stable, .*: after character 52, the first "
        r"2 messages alone go on with '<think></think>Hello.*', the whole .* with 'Hello"
    )
    row = Row("rows", "text", 1, said("u:Hi", "a:Hello", "u:Bye", "a:Bye"))
    with pytest.raises(SecateurError, match=message):
        render(row, tokenizer)


def test_template_that_says_more_before_a_response_than_with_it_is_refused() -> None:
    prompt = "{% if add_generation_prompt %}Hello, then{% endif %}"
    tokenizer = byte_tokenizer(
        template="{% for m in messages %}{{ m.content }}{% endfor %}" + prompt
    )
    message = "after character 7, .* alone go on with ', then', the whole conversation with ''"
    with pytest.raises(SecateurError, match=message):
        render(Row("rows", "text", 1, said("u:Hi", "a:Hello")), tokenizer)


def test_template_that_refuses_a_conversation_is_named() -> None:
    tokenizer = byte_tokenizer(template=STRICT)
    message = "rows, text 3: the chat template refuses the first 2 messages: no system"
    with pytest.raises(SecateurError, match=message):
        render(Row("rows", "text", 3, said("s:Be kind.", "u:Hi")), tokenizer)


def test_chat_of_a_text_file_is_refused(tokenizer: CountingTokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    text = TrainingText(tmp_path / "a.txt", 8, format="chat")
    with pytest.raises(SecateurError, match=r"a\.txt: expected rows with `messages`.* plain text"):
        load_training_data(text, tokenizer, tmp_path)


def test_tokenizers_that_are_no_use_are_refused(tmp_path: Path) -> None:
    text = TrainingText([[{"prompt": "a", "response": "b"}]], 8)
    with pytest.raises(SecateurError, match=r"a chat template or an eos_token .* has neither"):
        load_training_data(text, byte_tokenizer(has_eos=False), tmp_path)

    class Slow(CountingTokenizer):
        is_fast = False

    tokenizer = byte_tokenizer()
    tokenizer.__class__ = Slow
    with pytest.raises(SecateurError, match=r"needs a fast tokenizer, .*; got Slow"):
        load_training_data(text, tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("text", "text"),
        ({"text": "x"}, "text"),
        ({"text": "x", "messages": []}, "chat"),
        ({"prompt": "x", "completion": "y"}, "chat"),
        ({"prompt": "x", "text": "y"}, "text"),
    ],
)
def test_format_by_the_first_row(tmp_path: Path, row: Any, expected: str) -> None:
    assert resolve_format(TrainingText([[row]])) == expected
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(row)}\nnot JSON, but not read\n")
    assert resolve_format(TrainingText(path)) == expected
    other: Any = "text" if expected == "chat" else "chat"
    assert resolve_format(TrainingText(path, format=other)) == other


def test_conversations_of_a_dataset(
    tokenizer: CountingTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = ModuleType("datasets")
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "c"}]
    fake.load_dataset = lambda *_, **__: rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    encoder = make_encoder(TrainingText("a/b", 3), tokenizer, None)
    assert encoder.format == "chat"
    with pytest.raises(SecateurError, match=r"dataset a/b, row 2: expected a row with"):
        list(encoder.windows(Tally()))
    del rows[1]
    (block,) = encoder.windows(Tally())
    assert block.tokens.tolist() == [[*ids_of("ab"), EOS]]


def test_chat_stops_after_max_tokens(tokenizer: CountingTokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "b"}] * 10
    text = TrainingText([rows], 3, max_tokens=7)
    assert load_training_data(text, tokenizer, tmp_path).num_documents == 3
