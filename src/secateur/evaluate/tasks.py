"""Accuracy on task files: multiple choice, minimal pairs, and cloze.

An answer counts only if it is strictly more likely than every other one, so that a broken model,
whose outputs are all equal or not numbers, gets nothing right.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from secateur.errors import SecateurError
from secateur.evaluate.items import Cloze, Item, MinimalPair, MultipleChoice, read_items
from secateur.evaluate.result import Estimate, TaskResult, exp_estimate, mean_estimate
from secateur.evaluate.scoring import Request, Score, encode_request, score_requests, truncate
from secateur.evaluate.tokenizer import Tokenizer
from secateur.models.blocks import context_length
from secateur.progress import Progress, SilentProgress


def run_task(
    model: nn.Module,
    tokenizer: Tokenizer,
    path: str | Path,
    name: str | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Evaluate a model on a JSON lines file; see `items` for its formats.

    Args:
        name: of the result; the file's name without its ending if not given.
        batch_size: sequences in a forward pass. It changes the result by rounding only.
        limit: use the first items only.
        progress: is told of every batch; its owner closes it.

    Raises:
        SecateurError: a line that is not an item, or a tokenizer that does not fit.
    """
    items = read_items(path, limit)
    return evaluate_items(model, tokenizer, items, name or Path(path).stem, batch_size, progress)


def evaluate_items(
    model: nn.Module,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    name: str,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> TaskResult:
    """Evaluate a model on items of one kind.

    Metrics, named as in lm-eval:
        multiple choice: `acc` by the log-probability of each choice after the context, `acc_norm`
            by the same over the choice's characters, `acc_bytes` over its UTF-8 bytes.
        minimal pairs: `acc`, by the log-probability of each sentence.
        cloze: `acc`, whether greedy decoding gives exactly the target, and `perplexity` of the
            target as one word.

    A text longer than the model's context loses its beginning and is counted as truncated.
    """
    if not items:
        raise SecateurError(f"expected at least one item for task {name}, but got none")
    requests = [item_requests(tokenizer, item, context_length(model)) for item in items]
    flat = [request for group in requests for request in group]
    scores = iter(score_requests(model, flat, batch_size, progress or SilentProgress()))
    values = [
        item_values(item, [next(scores) for _ in group])
        for item, group in zip(items, requests, strict=True)
    ]
    num_truncated = sum(any(request.is_truncated for request in group) for group in requests)
    return _result(name, values, num_truncated)


def item_requests(tokenizer: Tokenizer, item: Item, max_length: int | None) -> list[Request]:
    """What has to be scored to decide an item: each choice, both sentences, or the target.

    Args:
        max_length: the model's context, if it has one; what does not fit loses its beginning.
    """
    pairs = [encode_request(tokenizer, *texts) for texts in _continuations(item)]
    return [truncate(request, max_length) for request in pairs]


def _continuations(item: Item) -> list[tuple[str, str]]:
    """Context and continuation of everything whose likelihood decides the item."""
    if isinstance(item, MultipleChoice):
        return [(item.context, _spaced(item.context, choice)) for choice in item.choices]
    if isinstance(item, MinimalPair):
        return [("", item.good), ("", item.bad)]
    return [(item.context, item.target)]


def _spaced(context: str, choice: str) -> str:
    """The choice with a space before it, unless there is whitespace or no context."""
    needs_space = context != "" and not context[-1].isspace() and not choice[0].isspace()
    return f" {choice}" if needs_space else choice


def item_values(item: Item, scores: list[Score]) -> dict[str, float]:
    """The metrics of one item from the scores of its requests, as `evaluate_items` averages them.

    1.0 or 0.0 for accuracies; `perplexity` is the negative log-likelihood of the target.
    """
    log_probs = [score.log_prob for score in scores]
    if isinstance(item, MultipleChoice):
        return _choice_values(item, log_probs)
    if isinstance(item, Cloze):
        return {"acc": float(scores[0].is_greedy), "perplexity": -log_probs[0]}
    return {"acc": _is_best(log_probs, 0)}


def _choice_values(item: MultipleChoice, log_probs: list[float]) -> dict[str, float]:
    choices = [choice.strip() for choice in item.choices]
    lengths = {
        "acc": [1] * len(choices),
        "acc_norm": [len(choice) for choice in choices],
        "acc_bytes": [len(choice.encode("utf-8")) for choice in choices],
    }
    return {
        metric: _is_best([a / b for a, b in zip(log_probs, sizes, strict=True)], item.answer)
        for metric, sizes in lengths.items()
    }


def _is_best(scores: list[float], answer: int) -> float:
    """1.0 if the answer is strictly ahead of every other choice, else 0.0."""
    others = scores[:answer] + scores[answer + 1 :]
    return float(scores[answer] > max(others))


def _result(name: str, values: list[dict[str, float]], num_truncated: int) -> TaskResult:
    per_item = {metric: tuple(value[metric] for value in values) for metric in values[0]}
    metrics = {metric: _estimate(metric, column) for metric, column in per_item.items()}
    return TaskResult(name, metrics, len(values), per_item, num_truncated)


def _estimate(metric: str, column: tuple[float, ...]) -> Estimate:
    return exp_estimate(column) if metric == "perplexity" else mean_estimate(column)
