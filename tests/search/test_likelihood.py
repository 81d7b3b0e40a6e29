"""Scores from the middle of a model are those of the whole model, for every family."""

from typing import Any

import pytest
import torch
from families import tiny_model
from transformers import PreTrainedTokenizerFast
from words import choices, clozes, pairs

from secateur.errors import SecateurError
from secateur.evaluate.items import Item
from secateur.evaluate.tasks import evaluate_items
from secateur.models.blocks import find_blocks
from secateur.search import Metric
from secateur.search.likelihood import Likelihood

FAMILIES = ["llama", "gemma3", "qwen2", "gpt2", "opt", "gptj", "gpt_neox", "mixtral"]


def likelihood(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    items: list[Item],
    metric: Metric = "loss",
    batch_size: int = 7,
) -> Likelihood:
    return Likelihood(model, tokenizer, find_blocks(model), items, metric, batch_size)


@pytest.mark.parametrize("family", FAMILIES)
def test_suffix_runs_give_the_bits_of_whole_runs(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model(family, num_blocks=3)
    measure = likelihood(model, tokenizer, choices(9))
    assert measure.runs_suffixes
    blocks = find_blocks(model).modules
    dense = measure.values(0)
    # Upwards, and back to the beginning.
    for first in (1, 2, 1):
        assert measure.values(first) == dense
        parameter = next(p for p in blocks[first].parameters() if p.ndim > 1)
        saved = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(0.5)
        changed = measure.values(first)
        assert changed == measure.values(0)
        assert changed != dense
        with torch.no_grad():
            parameter.copy_(saved)
    assert not any("forward" in vars(block) for block in blocks)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt"])
@pytest.mark.parametrize(
    "items", [choices(9), pairs(9), clozes(9)], ids=["choice", "pair", "cloze"]
)
def test_agrees_with_evaluation(
    family: str, items: list[Item], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model(family)
    expected = evaluate_items(model, tokenizer, items, "words")
    assert likelihood(model, tokenizer, items, "accuracy").values(0) == expected.per_item["acc"]
    if "perplexity" in expected.per_item:
        # fp32 sums of another order: about 1e-6 a token.
        losses = likelihood(model, tokenizer, items).values(0)
        assert losses == pytest.approx(expected.per_item["perplexity"], abs=1e-4)


def test_loss_is_that_of_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    model, items = tiny_model("llama"), choices(5)
    losses = likelihood(model, tokenizer, items).values(0)
    for item, loss in zip(items, losses, strict=True):
        before = tokenizer.encode(item.context)
        after = tokenizer.encode(item.choices[item.answer])
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0].double()
        rows = logits[len(before) - 1 : -1].log_softmax(-1)
        assert loss == pytest.approx(-float(rows[range(len(after)), after].sum()), abs=1e-4)


def test_models_that_cannot_be_run_from_the_middle_run_whole(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, items = tiny_model("llama"), clozes(6)
    expected = likelihood(model, tokenizer, items).values(0)

    def refuses(*_: Any) -> None:
        raise SecateurError("hidden states change between blocks")

    monkeypatch.setattr("secateur.search.suffix.enterable_forms", refuses)
    measure = likelihood(model, tokenizer, items)
    assert not measure.runs_suffixes
    assert measure.values(1) == expected


def test_models_without_logits_to_keep(tokenizer: PreTrainedTokenizerFast) -> None:
    class Older(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model("llama")
            self.config = self.inner.config
            self.get_input_embeddings = self.inner.get_input_embeddings

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    items = clozes(6)
    expected = likelihood(tiny_model("llama"), tokenizer, items).values(0)
    # The head multiplies other shapes, whose sums may have another order.
    measured = likelihood(Older(), tokenizer, items).values(0)
    assert measured == pytest.approx(expected, abs=1e-4)


def test_batches_hold_whole_items_and_each_once(tokenizer: PreTrainedTokenizerFast) -> None:
    model, items = tiny_model("llama"), choices(10)
    alone = likelihood(model, tokenizer, items, batch_size=1).values(0)
    for batch_size in (2, 3, 8, 100):
        measured = likelihood(model, tokenizer, items, batch_size=batch_size).values(0)
        assert measured == pytest.approx(alone, abs=1e-4)


def test_losses_are_differentiable_and_sum_up(tokenizer: PreTrainedTokenizerFast) -> None:
    model, items = tiny_model("llama"), clozes(7)
    measure = likelihood(model, tokenizer, items, batch_size=3)
    parts = list(measure.losses())
    assert len(parts) == 3
    assert all(part.requires_grad for part in parts)
    total = sum(part.item() for part in parts)
    assert total == pytest.approx(sum(measure.values(0)), rel=1e-6)


def test_accuracy_has_the_cross_entropy_of_its_candidates(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model, items = tiny_model("llama"), pairs(4)
    good_and_bad = [
        [score.log_prob for score in scores]
        for scores in likelihood(model, tokenizer, items, "accuracy").scores(0)
    ]
    expected = -torch.tensor(good_and_bad, dtype=torch.float64).log_softmax(1)[:, 0].sum()
    total = sum(x.item() for x in likelihood(model, tokenizer, items, "accuracy").losses())
    assert total == pytest.approx(float(expected), rel=1e-6)


def test_scores_that_are_not_numbers_are_never_right(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    assert set(likelihood(model, tokenizer, choices(4), "accuracy").values(0)) == {0.0}
    assert set(likelihood(model, tokenizer, clozes(4), "loss").values(0)) == {torch.inf}


def test_refuses_tokens_of_another_model(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    model.resize_token_embeddings(50)
    with pytest.raises(SecateurError, match="expected token ids from 0 to 49"):
        likelihood(model, tokenizer, choices(20))
    with pytest.raises(SecateurError, match="expected a batch size of at least 1"):
        likelihood(tiny_model("llama"), tokenizer, choices(2), batch_size=0)
