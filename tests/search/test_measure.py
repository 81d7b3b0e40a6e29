"""Generated answers, tasks of lm-eval, functions; and the gradient behind the filter."""

import random
from typing import Any

import pytest
import torch
from families import tiny_model
from transformers import PreTrainedTokenizerFast
from words import choices, clozes, pairs, task, text

from secateur.errors import SecateurError
from secateur.evaluate.generate import generate_text
from secateur.evaluate.items import Cloze, Item
from secateur.evaluate.result import Estimate, TaskResult
from secateur.models.blocks import find_blocks
from secateur.models.inventory import take_inventory
from secateur.progress import SilentProgress
from secateur.search import LmEvalTask, SearchOptions, SearchTask, search_laser
from secateur.search import measure as measure_module
from secateur.search.generation import GreedyAnswers, contains
from secateur.search.likelihood import Likelihood
from secateur.search.measure import PreparedTask, prepare_task
from secateur.search.ranking import _loss_gradients, place_name, rank_places
from secateur.search.space import search_space


def prepare(model: Any, tokenizer: PreTrainedTokenizerFast, asked: SearchTask) -> PreparedTask:
    return prepare_task(asked, model, tokenizer, find_blocks(model), 4)


def test_greedy_answers_are_those_of_one_prompt_at_a_time(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model, rng = tiny_model("llama"), random.Random(3)
    prompts = [text(rng, 1, 6) + " " * (index % 2) for index in range(14)]
    answers = GreedyAnswers(model, tokenizer, prompts, 5, batch_size=3)
    expected = [generate_text(model, tokenizer, prompt.rstrip(), 5).strip() for prompt in prompts]
    assert answers.texts() == tuple(expected)
    assert answers.num_truncated == 0
    assert len(set(expected)) > 5


def test_long_prompts_lose_their_beginning(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    long = " ".join(f"w{index % 90}" for index in range(200))
    answers = GreedyAnswers(model, tokenizer, [long], 8, batch_size=1)
    assert answers.num_truncated == 1
    # The context of 128 has room for 120 tokens before 8 new ones.
    kept = " ".join(long.split()[-120:])
    assert answers.texts() == (generate_text(model, tokenizer, kept, 8).strip(),)


def test_generation_asks_whether_the_answer_is_in_the_continuation(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model, items = tiny_model("llama"), clozes(12)
    texts = GreedyAnswers(
        model, tokenizer, [i.context for i in items if isinstance(i, Cloze)], 10, 4
    ).texts()
    known: list[Item] = []
    for number, (item, said) in enumerate(zip(items, texts, strict=True)):
        assert isinstance(item, Cloze)
        answer = said.split()[-1].upper() if number % 2 and said else "absent"
        known.append(Cloze(item.context, answer))
    expected = tuple(float(isinstance(i, Cloze) and i.target != "absent") for i in known)
    assert 0 < sum(expected) < 12
    prepared = prepare(model, tokenizer, task(known, "generation"))
    assert prepared.measure(range(12))(0) == expected
    assert prepared.measure([3, 4])(1) == expected[3:5]
    assert (prepared.kind, prepared.lower_is_better) == ("cloze", False)


def test_contains_as_published() -> None:
    assert contains(" in Paris, France", "paris ")
    assert not contains("in Par is", "Paris")


def test_models_without_generate_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    class Mute(torch.nn.Module):
        config = None

    with pytest.raises(
        SecateurError, match="expected a model with a generate method, but got Mute"
    ):
        GreedyAnswers(Mute(), tokenizer, ["w1"], 2, 1)


def result(name: str, **per_item: tuple[float, ...]) -> TaskResult:
    metrics = {metric: Estimate(sum(v) / len(v), 0.1) for metric, v in per_item.items()}
    return TaskResult(name, metrics, 4, per_item)


def test_tasks_of_lm_eval_are_run_whole_and_split(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(model: Any, _: Any, tasks: list[str], *rest: Any, **more: Any) -> tuple[Any, ...]:
        asked.append((tasks, rest, more))
        weight = float(take_inventory(model).all_sites[0].weight[0, 0])
        values = tuple(weight + index for index in range(4))
        other = tuple(100 + value for value in values)
        return result("a", other=other, acc=values), result("b", acc=other, other=other)

    monkeypatch.setattr(measure_module, "run_lm_eval", run)
    model = tiny_model("llama")
    prepared = prepare(model, tokenizer, LmEvalTask("group", limit=4, seed=5))
    assert (prepared.kind, prepared.metric, len(prepared.units)) == ("lm-eval", "acc", 8)
    first = float(take_inventory(model).all_sites[0].weight[0, 0])
    assert prepared.measure([1, 6])(0) == (first + 1, 100 + first + 2)
    assert asked[-1] == (["group"], (4,), {"limit": 4, "seed": 5})
    options = SearchOptions(types=("q",), blocks=(0,), fractions=(0.5,))
    record = search_laser(model, tokenizer, LmEvalTask("group", limit=4), options)
    assert record.task.kind == "lm-eval"
    assert record.task.num_items == 8


def test_tasks_of_lm_eval_without_values_by_item_are_refused(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_mean = TaskResult("a", {"word_perplexity": Estimate(9.0, 0.1)}, 4)
    monkeypatch.setattr(measure_module, "run_lm_eval", lambda *_, **__: (only_mean,))
    with pytest.raises(SecateurError, match="a mean over its items, but it has word_perplexity"):
        prepare(tiny_model("llama"), tokenizer, LmEvalTask("a"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "items", [choices(6), pairs(6), clozes(6)], ids=["choice", "pair", "cloze"]
)
def test_gradients_are_those_of_the_mean_loss(
    family: str, items: list[Item], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Against central differences: their error is of order step^2, rounding 1e-6 / step."""
    model = tiny_model(family)
    measure = Likelihood(model, tokenizer, find_blocks(model), items, "accuracy", 5)
    sites = [s for s in take_inventory(model).all_sites if s.name.endswith(("o_proj", "c_proj"))]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    sites[0].parameter.requires_grad_(True)
    gradients = _loss_gradients(model, sites, measure, len(items))
    assert [p.requires_grad for p in model.parameters()].count(True) == 1
    assert sites[0].parameter.requires_grad

    def mean_loss() -> float:
        with torch.no_grad():
            return sum(part.item() for part in measure.losses()) / len(items)

    generator = torch.Generator().manual_seed(0)
    for site, gradient in zip(sites, gradients, strict=True):
        assert gradient.shape == site.shape
        direction = torch.randn(site.shape, generator=generator)
        slope = float((gradient * direction).sum())
        values = []
        for step in (1e-3, -2e-3):
            site.weight.add_(step * direction)
            values.append(mean_loss())
        site.weight.add_(1e-3 * direction)
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(slope, rel=1e-3, abs=1e-2)


def test_ranking_predicts_what_small_cuts_do(tokenizer: PreTrainedTokenizerFast) -> None:
    model, items = tiny_model("llama"), clozes(20)
    measure = Likelihood(model, tokenizer, find_blocks(model), items, "loss", 8)
    # Rank 31 of 32 (15 of 16): the smallest component alone goes.
    space = search_space(take_inventory(model), SearchOptions(fractions=(0.97,)))
    progress = SilentProgress()
    ranked = rank_places(model, space, measure, len(items), (0.97,), progress)
    assert {place for place, _ in ranked} == set(space.sites)
    assert [place_name(place) for place, _ in ranked] == [c.name for _, c in ranked]
    record = search_laser(
        model,
        tokenizer,
        task(items, "loss"),
        SearchOptions(fractions=(0.97,), filter=99, compose="none"),
    )
    dense = record.state("dense").validation.value
    measured = {(t.cut.matrix, t.cut.block): t.validation.value - dense for t in record.trials}
    predicted = {(r.matrix, r.block): r.predicted_change for r in record.ranking}
    pairs_of = torch.tensor([[predicted[place], measured[place]] for place in measured]).T
    assert float(torch.corrcoef(pairs_of)[0, 1]) > 0.9
