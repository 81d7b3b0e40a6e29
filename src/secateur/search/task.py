"""What a search is to improve: items of one kind, a task of lm-eval, or a function."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from secateur.errors import SecateurError
from secateur.evaluate.counterfact import Fact, is_counterfact, read_counterfact
from secateur.evaluate.items import (
    Item,
    MinimalPair,
    MultipleChoice,
    is_task_file,
    read_items,
)
from secateur.plain import to_plain

Metric = Literal["accuracy", "generation", "loss"]
"""`accuracy`: the answer is the likeliest candidate; without candidates, greedy decoding gives
exactly the answer. `generation`: the greedy continuation contains the answer, letters' case and
outer spaces aside, as published. `loss`: negative log-likelihood of the answer, in nats."""

MAX_NEW_TOKENS = 10
"""Of a generated answer: what was published for CounterFact."""


@dataclass(frozen=True)
class Question:
    """One item of a task."""

    item: Item
    unit: int
    """Questions of one unit (a fact and its paraphrases) never part between the splits."""
    group: str = ""
    """Scores of each group are reported apart."""


@dataclass(frozen=True)
class ItemTask:
    """Questions of one kind."""

    name: str
    questions: tuple[Question, ...]
    metric: Metric = "accuracy"
    max_new_tokens: int = MAX_NEW_TOKENS
    """Of `generation` alone."""

    def __post_init__(self) -> None:
        _check_metric(self.metric)
        _check_units(self.name, len({question.unit for question in self.questions}))
        kinds = sorted({type(question.item).__name__ for question in self.questions})
        if len(kinds) > 1:
            raise SecateurError(
                f"expected items of one kind in task {self.name}, but got {', '.join(kinds)}"
            )
        if self.max_new_tokens < 1:
            raise SecateurError(f"expected at least 1 new token, but got {self.max_new_tokens}")
        if self.metric == "generation":
            _check_generation(self.name, self.questions)

    @property
    def kind(self) -> str:
        """`multiple choice`, `minimal pairs`, `cloze` or `facts`."""
        if any(question.group for question in self.questions):
            return "facts"
        item = self.questions[0].item
        if isinstance(item, MultipleChoice):
            return "multiple choice"
        return "minimal pairs" if isinstance(item, MinimalPair) else "cloze"

    @property
    def lower_is_better(self) -> bool:
        """Whether less is better."""
        return self.metric == "loss"

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides a score."""
        values = [self.metric, self.max_new_tokens, to_plain(self.questions)]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@dataclass(frozen=True)
class LmEvalTask:
    """A task of lm-eval by its name; needs lm-eval.

    Every trial runs all items, and only those of the split in question count: lm-eval takes no
    choice of items from outside.
    """

    name: str
    limit: int | None = None
    seed: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of what is asked of lm-eval."""
        return hashlib.sha256(json.dumps([self.name, self.limit, self.seed]).encode()).hexdigest()


@dataclass(frozen=True)
class CallableTask:
    """A function that scores a model on items that only it knows."""

    name: str
    num_items: int
    function: Callable[[nn.Module, Sequence[int]], Sequence[float]]
    """Takes the model, which it must leave as it is, and numbers of items; returns a value for
    each. It has to give the same values for the same model."""
    lower_is_better: bool = False
    metric: str = "score"

    def __post_init__(self) -> None:
        _check_units(self.name, self.num_items)

    @property
    def digest(self) -> str:
        """SHA-256 of name and size: what the function does cannot be seen from here."""
        values = [self.name, self.num_items, self.lower_is_better, self.metric]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


SearchTask = ItemTask | LmEvalTask | CallableTask


def load_task(
    task: str,
    metric: Metric = "accuracy",
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
) -> ItemTask | LmEvalTask:
    """A task by the name of its file or its name in lm-eval.

    Args:
        task: JSON lines of multiple choice, minimal pairs, cloze or facts (see
            `evaluate.items` and `evaluate.counterfact`), or a name that lm-eval knows.
        metric: lm-eval's tasks have their own, and take `accuracy` only.
        limit: the first items, or facts, alone.
        max_new_tokens: of an answer, for `generation`.
        seed: of lm-eval.

    Raises:
        SecateurError: no such file, a record that is none, fewer than two items, or a metric that
            these items do not have.
    """
    _check_metric(metric)
    if not is_task_file(task):
        if metric != "accuracy":
            raise SecateurError(
                f"expected a file for the metric {metric}, or accuracy for a task of lm-eval, "
                f"but got {task}"
            )
        if limit is not None and limit < 2:
            raise SecateurError(f"expected a limit of at least 2 items, but got {limit}")
        return LmEvalTask(task, limit, seed)
    name = Path(task).stem
    if is_counterfact(task):
        facts = read_counterfact(task, limit)
        return ItemTask(name, questions_of_facts(facts), metric, max_new_tokens)
    return ItemTask(name, questions_of_items(read_items(task, limit)), metric, max_new_tokens)


def questions_of_items(items: Sequence[Item]) -> tuple[Question, ...]:
    """Items that stand for themselves."""
    return tuple(Question(item, unit) for unit, item in enumerate(items))


def questions_of_facts(facts: Sequence[Fact]) -> tuple[Question, ...]:
    """Each fact and its paraphrases, grouped as `original` and `paraphrase`."""
    return tuple(
        Question(item, unit, group)
        for unit, fact in enumerate(facts)
        for group, items in fact.items().items()
        for item in items
    )


def answer_of(item: Item) -> tuple[str, str]:
    """The prompt of an item that has one, and the answer that should follow."""
    if isinstance(item, MultipleChoice):
        return item.context, item.choices[item.answer].strip()
    if isinstance(item, MinimalPair):
        return "", item.good
    return item.context, item.target


def _check_metric(metric: str) -> None:
    if metric not in get_args(Metric):
        raise SecateurError(
            f"expected a metric out of {', '.join(get_args(Metric))}, but got {metric!r}"
        )


def _check_units(name: str, number: int) -> None:
    if number < 2:
        raise SecateurError(
            f"expected at least 2 items in task {name}, one to choose by and one to report on, "
            f"but got {number}"
        )


def _check_generation(name: str, questions: Sequence[Question]) -> None:
    for question in questions:
        if isinstance(question.item, MinimalPair) or not answer_of(question.item)[0].strip():
            raise SecateurError(
                f"expected prompts to continue for the metric generation, but task {name} has "
                "items without a context"
            )
