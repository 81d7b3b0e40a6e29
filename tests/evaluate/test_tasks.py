import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.errors import SecateurError
from secateur.evaluate.items import Cloze, Item, MinimalPair, MultipleChoice
from secateur.evaluate.tasks import evaluate_items, run_task

WORDS = "the cat sat on a mat and dog bird sang in tree there".split()


def sentence(seed: int, length: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))


CHOICES: list[Item] = [
    MultipleChoice(sentence(i, 3), (sentence(50 + i, 1 + i % 2), "zé", "xq"[: 1 + i % 2]), i % 3)
    for i in range(40)
]
PAIRS: list[Item] = [MinimalPair(sentence(i, 5), sentence(90 + i, 5)) for i in range(15)]
CLOZES: list[Item] = [Cloze(sentence(i, 4) + " ", WORDS[i % len(WORDS)]) for i in range(15)]


class Reference:
    """Log-probabilities from one forward pass a text, in float64, without batches."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model, tokenizer

    def __call__(self, context: str, continuation: str) -> tuple[float, bool]:
        before = self.tokenizer.encode(context) if context else [0]
        after = self.tokenizer.encode(continuation)
        with torch.no_grad():
            logits = self.model(torch.tensor([before + after])).logits[0].double()
        rows = logits[len(before) - 1 : -1]
        log_probs = rows.log_softmax(-1)[range(len(after)), after]
        return float(log_probs.sum()), rows.argmax(-1).tolist() == after


@pytest.fixture
def reference(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Reference:
    return Reference(model, tokenizer)


def test_multiple_choice_takes_the_likeliest(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, reference: Reference
) -> None:
    result = evaluate_items(model, tokenizer, CHOICES, "choices", batch_size=4)
    for number, item in enumerate(CHOICES):
        assert isinstance(item, MultipleChoice)
        sums = [reference(item.context, f" {choice}")[0] for choice in item.choices]
        sizes = {
            "acc": [1] * 3,
            "acc_norm": [len(choice) for choice in item.choices],
            "acc_bytes": [len(choice.encode()) for choice in item.choices],
        }
        for metric, lengths in sizes.items():
            scores = torch.tensor(sums) / torch.tensor(lengths)
            assert result.per_item[metric][number] == float(scores.argmax() == item.answer)
    # The three metrics must be able to differ here, or the comparison says nothing.
    assert len({result.per_item[metric] for metric in result.metrics}) == 3


def test_minimal_pair_takes_the_likelier_sentence(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, reference: Reference
) -> None:
    result = evaluate_items(model, tokenizer, PAIRS, "pairs", batch_size=4)
    pairs = [item for item in PAIRS if isinstance(item, MinimalPair)]
    expected = tuple(reference("", pair.good)[0] > reference("", pair.bad)[0] for pair in pairs)
    assert result.per_item["acc"] == expected
    assert 0 < sum(expected) < len(expected)
    assert result.metrics["acc"].value == pytest.approx(sum(expected) / 15)
    assert list(result.metrics) == ["acc"]


def test_cloze_is_exact_and_has_a_perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, reference: Reference
) -> None:
    items = [item for item in CLOZES if isinstance(item, Cloze)]
    items.append(Cloze("a bird", greedy_word(model, tokenizer, "a bird")))
    result = evaluate_items(model, tokenizer, items, "clozes", batch_size=4)
    losses = [-reference(item.context.rstrip(), f" {item.target}")[0] for item in items[:-1]]
    losses.append(-reference("a bird", items[-1].target)[0])
    assert result.per_item["perplexity"] == pytest.approx(losses, rel=1e-5)
    mean = sum(losses) / len(losses)
    assert result.metrics["perplexity"].value == pytest.approx(math.exp(mean), rel=1e-4)
    assert result.per_item["acc"][-1] == 1.0
    assert not all(result.per_item["acc"])


def greedy_word(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, context: str) -> str:
    """What the model says next; the test needs it to be text that is tokenised the same way."""
    token_ids = tokenizer.encode(context)
    with torch.no_grad():
        row = model(torch.tensor([token_ids])).logits[0, -1]
    for token in row.argsort(descending=True).tolist():
        word = tokenizer.decode([token])
        if tokenizer.encode(context + word) == [*token_ids, token]:
            assert token == int(row.argmax()), "choose another context for this model"
            return str(word)
    raise AssertionError


@pytest.mark.parametrize("items", [CHOICES, PAIRS, CLOZES])
def test_result_does_not_depend_on_the_batch_size(
    model: LlamaForCausalLM, bos_tokenizer: PreTrainedTokenizerFast, items: list[Item]
) -> None:
    alone, *others = (
        evaluate_items(model, bos_tokenizer, items, "t", batch_size=size) for size in (1, 4, 99)
    )
    for other in others:
        assert other.metrics.keys() == alone.metrics.keys()
        for metric, values in alone.per_item.items():
            assert other.per_item[metric] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("the cat", (" sat", " on")), ("the cat", ("sat", "on"))),
        (("the cat ", ("sat", "on")), ("the cat", ("sat", "on"))),
        (("the cat\n", ("sat", "on")), ("the cat", ("\nsat", "\non"))),
    ],
)
def test_choices_are_set_apart_by_one_space(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    left: tuple[str, tuple[str, str]],
    right: tuple[str, tuple[str, str]],
) -> None:
    results = [
        evaluate_items(model, tokenizer, [MultipleChoice(*texts, 0)], "t").per_item
        for texts in (left, right)
    ]
    assert results[0] == results[1]


def test_broken_model_gets_nothing_right(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    broken = LlamaForCausalLM(model.config)
    for value in (0.0, math.nan):
        torch.nn.init.constant_(broken.lm_head.weight, value)
        same_length = MultipleChoice("the cat", ("!", "?"), 0)
        pair = MinimalPair("the cat", "cat the")
        for item in (same_length, pair):
            result = evaluate_items(broken, tokenizer, [item], "t")
            assert all(estimate.value == 0 for estimate in result.metrics.values())


def test_long_texts_lose_their_beginning_and_are_counted(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    long = [Cloze(sentence(1, 60) + " ", "sat"), Cloze("the cat ", "sat")]
    result = evaluate_items(model, tokenizer, long, "t")
    assert result.num_truncated == 1
    token_ids = tokenizer.encode(sentence(1, 60) + " sat")
    assert tokenizer.decode(token_ids[-1]) == " sat"
    with torch.no_grad():
        logits = model(torch.tensor([token_ids[-49:-1]])).logits[0, -1].double()
    expected = -float(logits.log_softmax(-1)[token_ids[-1]])
    assert result.per_item["perplexity"][0] == pytest.approx(expected, rel=1e-5)


def test_task_is_read_from_a_file(
    tmp_path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = [item for item in PAIRS if isinstance(item, MinimalPair)]
    file = tmp_path / "island.jsonl"
    lines = ({"sentence_good": pair.good, "sentence_bad": pair.bad} for pair in pairs)
    file.write_text("\n".join(json.dumps(line) for line in lines))
    result = run_task(model, tokenizer, file, limit=6)
    assert result == evaluate_items(model, tokenizer, PAIRS[:6], "island")
    assert (result.name, result.num_items) == ("island", 6)
    assert run_task(model, tokenizer, file, name="other", limit=1).name == "other"


def test_no_items_are_refused(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(SecateurError, match="at least one item for task t, but got none"):
        evaluate_items(model, tokenizer, [], "t")
