import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import tiny_model
from word_tokenizer import WORDS, word_tokenizer
from words import choices, task

from secateur import compress
from secateur.errors import SecateurError
from secateur.progress import SilentProgress
from secateur.search import SearchOptions
from secateur.search.journal import JOURNAL_FILE, Fingerprint, Journal, fingerprint_of

TOKENIZER = word_tokenizer()
PRINT = Fingerprint("m", "t", {"seed": 0, "filter": None}, {"torch": "2.11"})


def test_what_is_noted_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / JOURNAL_FILE
    journal = Journal.start(path, PRINT)
    values = {"score": 0.1 + 0.2, "values": [1 / 3, -math.inf, 5e-324]}
    journal.put("a", values)
    journal.put("b", [1, "x", None])
    again = Journal.resume(path, PRINT)
    assert again.get("a") == values
    assert again.get("b") == [1, "x", None]
    assert again.get("c") is None
    assert len(again) == 2
    again.put("c", math.nan)
    assert math.isnan(Journal.resume(path, PRINT).get("c"))


def test_a_line_that_was_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_FILE
    journal = Journal.start(path, PRINT)
    journal.put("a", 1)
    whole = path.read_bytes()
    journal.put("b", 2)
    for end in range(len(whole), len(path.read_bytes())):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(path.read_bytes()[:end])
        resumed = Journal.resume(torn, PRINT)
        assert (resumed.get("a"), resumed.get("b")) == (1, None)
        resumed.put("b", 3)
        assert Journal.resume(torn, PRINT).get("b") == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, "the model's weights are others"),
        ({"task": "other"}, "the task is another"),
        ({"tokens": "other"}, "the tokenizer encodes the task otherwise"),
        ({"options": {"seed": 1, "filter": None}}, "seed was 0 and is 1"),
        ({"options": {"seed": 0, "filter": 5}}, "filter was None and is 5"),
        ({"versions": {"torch": "2.12"}}, "torch was '2.11' and is '2.12'"),
    ],
)
def test_another_search_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / JOURNAL_FILE
    Journal.start(path, PRINT)
    with pytest.raises(SecateurError, match=f"expected to go on .* but {message}: give the old"):
        Journal.resume(path, replace(PRINT, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "{}\n", "no JSON\n", "[1]\n", '{"format": "x"}\n', "\xff\n"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / JOURNAL_FILE
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SecateurError, match=r"expected the journal of a search, but .*; search"):
        Journal.resume(path, PRINT)


def test_a_line_that_is_no_measurement_is_refused(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_FILE
    Journal.start(path, PRINT)
    with path.open("a") as file:
        file.write('{"key": 3}\n')
    with pytest.raises(SecateurError, match=r"line 2: expected a measurement, got b'{.*; start"):
        Journal.resume(path, PRINT)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SecateurError, match="cannot be written"):
        Journal.start(tmp_path / "file" / JOURNAL_FILE, PRINT)
    journal = Journal.start(tmp_path / "folder" / JOURNAL_FILE, PRINT)
    (tmp_path / "folder" / JOURNAL_FILE).unlink()
    (tmp_path / "folder" / JOURNAL_FILE).mkdir()
    with pytest.raises(SecateurError, match="cannot be written"):
        journal.put("a", 1)
    with pytest.raises(SecateurError, match="cannot be read"):
        Journal.resume(tmp_path / "folder" / JOURNAL_FILE, PRINT)


def test_the_fingerprint_sees_weights_items_and_options() -> None:
    model, questions = tiny_model("llama"), task(choices(4))
    first = fingerprint_of(model, TOKENIZER, questions, SearchOptions())
    assert first == fingerprint_of(model, TOKENIZER, questions, SearchOptions())
    assert json.loads(json.dumps(first.options)) == first.options
    other_words = word_tokenizer()
    other_words.add_tokens([f"{word} " for word in WORDS])
    others = [
        fingerprint_of(model, other_words, questions, SearchOptions()),
        fingerprint_of(model, TOKENIZER, task(choices(4, seed=1)), SearchOptions()),
        fingerprint_of(model, TOKENIZER, task(choices(4), "loss"), SearchOptions()),
        fingerprint_of(model, TOKENIZER, questions, SearchOptions(seed=1)),
        fingerprint_of(model.to(torch.bfloat16), TOKENIZER, questions, SearchOptions()),
    ]
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    others.append(fingerprint_of(model, TOKENIZER, questions, SearchOptions()))
    assert all(other != first for other in others)


def test_the_fingerprint_sees_packed_weights() -> None:
    model, questions = tiny_model("llama").to(torch.bfloat16), task(choices(4))
    recipe = {"stages": [{"stage": "prune", "method": "magnitude", "pattern": "2:4"}]}
    compress(model, recipe, checkpoint_format="compact", progress=SilentProgress())
    first = fingerprint_of(model, TOKENIZER, questions, SearchOptions())
    layer = model.model.layers[0].mlp.up_proj
    state = layer.state_dict()
    layer.load_state_dict(state | {"weight": 2 * state["weight"]})
    assert layer.is_packed
    assert fingerprint_of(model, TOKENIZER, questions, SearchOptions()) != first
