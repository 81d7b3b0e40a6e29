"""The whole search on tiny models: what it promises, and that a killed one goes on."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from transformers import PreTrainedTokenizerFast
from words import choices, clozes, pairs, task

from secateur.compress import compress
from secateur.errors import SecateurError
from secateur.evaluate.counterfact import Fact
from secateur.evaluate.items import Item
from secateur.evaluate.tasks import evaluate_items
from secateur.progress import SilentProgress
from secateur.report.search_record import SearchRecord, search_from_text
from secateur.search import (
    CallableTask,
    ItemTask,
    SearchOptions,
    questions_of_facts,
    search_laser,
    search_recipe,
)
from secateur.search.journal import JOURNAL_FILE

SMALL = SearchOptions(fractions=(0.6, 0.1), batch_size=32)
ITEMS = {"choices": choices(40), "pairs": pairs(40), "clozes": clozes(40)}


class Killed(KeyboardInterrupt):
    """What stops a search in these tests."""


class KillAfter(SilentProgress):
    """Stops the search after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, detail: str = "") -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def timeless(record: SearchRecord) -> SearchRecord:
    return replace(record, created="", seconds=0.0)


def gain(record: SearchRecord, name: str) -> float:
    value = record.state(name).validation.value
    return -value if record.task.lower_is_better else value


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
@pytest.mark.parametrize("kind", sorted(ITEMS))
def test_chooses_on_validation_and_reports_on_the_rest(
    kind: str, metric: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, items = tiny_model("llama"), ITEMS[kind]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    record = search_laser(model, tokenizer, task(items, metric), SMALL, source="tiny")
    assert len(record.trials) == 2 * 7 * 2
    assert (record.task.num_validation, record.task.num_test) == (20, 20)
    singles = [t.validation.value for t in record.trials]
    best = min(singles) if metric == "loss" else max(singles)
    assert record.state("single").validation.value == best
    assert gain(record, "composed") >= max(gain(record, "single"), gain(record, "dense"))
    steps = [step.validation.value for step in record.steps]
    assert steps == sorted(set(steps), reverse=metric == "loss")
    assert record.is_found == (len(record.steps) > 0)
    if record.steps:
        assert steps[-1] == record.state("composed").validation.value
    # The model is as it was.
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not model.training
    assert search_from_text(record.to_json()) == record


def test_the_recipe_makes_the_model_that_was_measured(tokenizer: PreTrainedTokenizerFast) -> None:
    model, items = tiny_model("gpt2"), clozes(30)
    record = search_laser(model, tokenizer, task(items, "loss"), SMALL)
    recipe = search_recipe(record)
    assert recipe is not None
    cut = compress(model, recipe, progress=SilentProgress())
    losses = evaluate_items(cut, tokenizer, items, "words").per_item["perplexity"]
    dense, composed = record.state("dense"), record.state("composed")
    expected = (composed.validation.value + composed.test.value) / 2
    assert sum(losses) / 30 == pytest.approx(expected, abs=1e-4)
    assert composed.validation.value < dense.validation.value
    assert composed.change is not None
    assert composed.change.improvement == pytest.approx(dense.test.value - composed.test.value)


def test_nothing_found_is_nothing_written(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    never = CallableTask("constant", 10, lambda _, items: [1.0] * len(items))
    record = search_laser(model, tokenizer, never, SMALL)
    assert not record.is_found
    assert search_recipe(record) is None
    assert record.state("composed").cuts == ()
    assert record.state("composed").change is not None
    assert record.state("single").cuts != ()


@pytest.mark.parametrize("steps", [0, 3, 17, 29, 31])
def test_a_killed_search_goes_on_to_the_same_result(
    steps: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    options = replace(SMALL, filter=9, blocks=None)
    asked = task(clozes(24), "loss")
    whole = search_laser(tiny_model("llama"), tokenizer, asked, options)
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(Killed):
        search_laser(model, tokenizer, asked, options, folder=tmp_path, progress=KillAfter(steps))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    journal = tmp_path / JOURNAL_FILE
    done = journal.read_bytes().splitlines()
    if len(done) > 1:
        # A crash in the middle of a line; the first one is renamed into place, whole.
        journal.write_bytes(journal.read_bytes()[:-7])
        done.pop()
    resumed = search_laser(
        tiny_model("llama"), tokenizer, asked, options, folder=tmp_path, resume=True
    )
    assert timeless(resumed) == timeless(whole)
    keys = [json.loads(line).get("key") for line in journal.read_bytes().splitlines()]
    assert len(keys) == len(set(keys))
    assert journal.read_bytes().splitlines()[: len(done)] == done


def test_a_finished_search_is_read_from_its_journal(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def function(model: torch.nn.Module, items: Sequence[int]) -> list[float]:
        calls.append(len(items))
        weight = next(p for n, p in model.named_parameters() if n.endswith("q_proj.weight"))
        return [float(weight.norm()) + item for item in items]

    asked = CallableTask("norm", 8, function, lower_is_better=True)
    first = search_laser(tiny_model("llama"), tokenizer, asked, SMALL, folder=tmp_path)
    assert len(calls) > 28
    calls.clear()
    again = search_laser(tiny_model("llama"), tokenizer, asked, SMALL, folder=tmp_path, resume=True)
    assert timeless(again) == timeless(first)
    assert calls == []
    assert first.state("single").cuts[0].matrix == "q"
    assert first.state("single").cuts[0].fraction == 0.1


def test_the_test_split_is_measured_when_all_is_chosen(tokenizer: PreTrainedTokenizerFast) -> None:
    asked: list[frozenset[int]] = []

    def function(model: torch.nn.Module, items: Sequence[int]) -> list[float]:
        asked.append(frozenset(items))
        weight = next(p for n, p in model.named_parameters() if n.endswith("q_proj.weight"))
        return [-float(weight.norm()) for _ in items]

    record = search_laser(tiny_model("llama"), tokenizer, CallableTask("n", 9, function), SMALL)
    validation, test = asked[0], asked[-1]
    assert validation | test == frozenset(range(9))
    assert not validation & test
    # The composition of one cut is the best single cut, and is not measured twice.
    assert record.state("composed").cuts == record.state("single").cuts
    assert asked == [validation] * (len(asked) - 2) + [test] * 2


def test_another_search_does_not_go_on(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    asked = task(clozes(8), "loss")
    options = replace(SMALL, types=("q",))
    search_laser(tiny_model("llama"), tokenizer, asked, options, folder=tmp_path)
    for model, other_task, other, message in (
        (tiny_model("llama", seed=1), asked, options, "the model's weights are others"),
        (tiny_model("llama"), task(clozes(9), "loss"), options, "the task is another"),
        (tiny_model("llama"), asked, replace(options, seed=4), "seed was 0 and is 4"),
    ):
        with pytest.raises(SecateurError, match=message):
            search_laser(model, tokenizer, other_task, other, folder=tmp_path, resume=True)
    # Without `resume` it begins again.
    record = search_laser(
        tiny_model("llama"), tokenizer, asked, replace(options, seed=4), folder=tmp_path
    )
    assert record.options["seed"] == 4


def test_the_filter_keeps_what_it_ranked_first(tokenizer: PreTrainedTokenizerFast) -> None:
    model, asked = tiny_model("llama"), task(clozes(24), "loss")
    record = search_laser(model, tokenizer, asked, replace(SMALL, filter=3))
    assert len(record.ranking) == 14
    changes = [ranked.predicted_change for ranked in record.ranking]
    assert changes == sorted(changes)
    kept = [(r.matrix, r.block) for r in record.ranking if r.is_kept]
    assert kept == [(r.matrix, r.block) for r in record.ranking[:3]]
    assert {(t.cut.matrix, t.cut.block) for t in record.trials} == set(kept)
    assert len(record.trials) == 6
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    everything = search_laser(model, tokenizer, asked, replace(SMALL, filter=99))
    assert len(everything.trials) == 28


def test_composing_all_tries_every_cut_and_none_keeps_the_best(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model, asked = tiny_model("llama"), task(clozes(24), "loss")
    every = search_laser(model, tokenizer, asked, replace(SMALL, compose="all"))
    assert every.num_composition_trials >= 28
    alone = search_laser(model, tokenizer, asked, replace(SMALL, compose="none"))
    assert alone.state("composed").cuts == alone.state("single").cuts
    assert gain(every, "composed") >= gain(alone, "composed")


def test_facts_and_their_paraphrases_are_scored_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    facts = [Fact(f"w{i} w{i + 1}", (f"w{i + 2} w5", f"w3 w{i}"), f"w{i + 7}") for i in range(20)]
    asked = ItemTask("facts", questions_of_facts(facts), "loss")
    record = search_laser(tiny_model("llama"), tokenizer, asked, replace(SMALL, types=("o",)))
    assert (record.task.kind, record.task.num_items, record.task.num_test) == ("facts", 60, 30)
    for state in record.states:
        groups = state.groups
        assert list(groups) == ["original", "paraphrase"]
        mean = (groups["original"].value + 2 * groups["paraphrase"].value) / 3
        assert mean == pytest.approx(state.test.value)
    change = record.state("single").change
    assert change is not None
    assert change.method == "paired differences"


def test_analysis_answers_with_what_was_discarded(tokenizer: PreTrainedTokenizerFast) -> None:
    options = replace(SMALL, analyse_items=3, prompts=("w1 w2", "w9"), max_new_tokens=2)
    for items in (choices(12), pairs(12), clozes(12)):
        record = search_laser(tiny_model("llama"), tokenizer, task(items), options)
        assert record.analysis is not None
        assert record.analysis.cuts == record.state("single").cuts
        answers = record.analysis.answers
        assert len(answers) == 5
        assert [answer.expected is None for answer in answers] == [False] * 3 + [True] * 2


def test_analysis_agrees_with_the_model_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    options = SearchOptions(types=("o",), blocks=(1,), fractions=(0.5,), prompts=("w1 w2 w3",))
    record = search_laser(model, tokenizer, task(clozes(6), "loss"), options)
    assert record.analysis is not None
    site = model.model.layers[1].self_attn.o_proj
    left, values, right = torch.linalg.svd(site.weight.detach(), full_matrices=False)
    prompt = torch.tensor([tokenizer.encode("w1 w2 w3")])

    def continued(weight: torch.Tensor) -> str:
        site.weight.data.copy_(weight)
        output = model.generate(prompt, max_new_tokens=10, do_sample=False, pad_token_id=2)
        return str(tokenizer.decode(output[0, 3:], skip_special_tokens=True))

    (answer,) = record.analysis.answers
    assert answer.dense == continued(left * values @ right)
    assert answer.kept == continued(left[:, :16] * values[:16] @ right[:16])
    assert answer.discarded == continued(left[:, 16:] * values[16:] @ right[16:])


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        (clozes(4), {"types": ("q",), "blocks": (9,)}, "expected blocks from 0 to 1, got 9"),
        (clozes(4), {"prompts": (" ",)}, "expected a prompt to continue, but got ' '"),
        (clozes(4), {"prompts": ("w1",), "max_new_tokens": 128}, "expected fewer new tokens than"),
        (None, {"filter": 2}, "expected items from a file for the filter"),
        (None, {"analyse_items": 2}, "expected items from a file to analyse"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    items: list[Item] | None,
    options: dict[str, Any],
    message: str,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("something was measured")

    asked = CallableTask("none", 4, fail) if items is None else task(items)
    folder = tmp_path / "out"
    with pytest.raises(SecateurError, match=message):
        search_laser(
            tiny_model("llama"),
            tokenizer,
            asked,
            replace(SMALL, **options),
            folder=folder,
            progress=KillAfter(0),
        )
    assert not folder.exists()


def test_weights_that_are_not_finite_are_named(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(SecateurError, match=r"layers\.1\.mlp\.up_proj: .* NaN or Inf in 1 places"):
        search_laser(model, tokenizer, task(clozes(4)), replace(SMALL, types=("mlp_up",)))


def test_a_function_that_forgets_items_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = CallableTask("short", 6, lambda _, items: [0.0] * (len(items) - 1))
    with pytest.raises(SecateurError, match="expected 3 values from the function of task short"):
        search_laser(tiny_model("llama"), tokenizer, asked, SMALL)
