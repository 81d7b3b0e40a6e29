"""A task made ready for one model: which items there are, and how a split of them is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from secateur.errors import SecateurError
from secateur.evaluate.forward import evaluating
from secateur.evaluate.lm_eval_tasks import run_lm_eval
from secateur.evaluate.result import TaskResult
from secateur.evaluate.tokenizer import Tokenizer
from secateur.models.blocks import BlockList
from secateur.search.generation import GreedyAnswers, contains
from secateur.search.likelihood import Likelihood
from secateur.search.task import (
    CallableTask,
    ItemTask,
    LmEvalTask,
    SearchTask,
    answer_of,
)

Measure = Callable[[int], tuple[float, ...]]
"""The metric of each item of a split, by the model as it is now. Takes the number of the first
block that is not dense: what does not depend on later blocks may be kept from call to call."""

_LM_EVAL_METRICS = ("acc", "exact_match")


@dataclass(frozen=True)
class PreparedTask:
    """What the search knows of a task."""

    kind: str
    metric: str
    lower_is_better: bool
    units: tuple[int, ...]
    """By item; see `Question.unit`."""
    groups: tuple[str, ...]
    """By item; blank where a task has no groups."""
    measure: Callable[[Sequence[int]], Measure]
    """Of the items with these numbers."""
    likelihood: Callable[[Sequence[int]], Likelihood] | None
    """The same items' losses with gradients; None where there are none."""


def prepare_task(
    task: SearchTask, model: nn.Module, tokenizer: Tokenizer, blocks: BlockList, batch_size: int
) -> PreparedTask:
    """Make a task ready.

    Raises:
        SecateurError: lm-eval is missing or does not know the task, or has no metric by item.
    """
    if isinstance(task, ItemTask):
        return _prepare_items(task, model, tokenizer, blocks, batch_size)
    if isinstance(task, LmEvalTask):
        return _prepare_lm_eval(task, model, tokenizer, batch_size)
    return _prepare_callable(task, model)


def _prepare_items(
    task: ItemTask, model: nn.Module, tokenizer: Tokenizer, blocks: BlockList, batch_size: int
) -> PreparedTask:
    items = [question.item for question in task.questions]

    def likelihood(indices: Sequence[int]) -> Likelihood:
        chosen = [items[index] for index in indices]
        return Likelihood(model, tokenizer, blocks, chosen, task.metric, batch_size)

    def generation(indices: Sequence[int]) -> Measure:
        pairs = [answer_of(items[index]) for index in indices]
        prompts = [prompt for prompt, _ in pairs]
        answers = GreedyAnswers(model, tokenizer, prompts, task.max_new_tokens, batch_size)

        def values(_: int) -> tuple[float, ...]:
            texts = zip(answers.texts(), pairs, strict=True)
            return tuple(float(contains(text, answer)) for text, (_, answer) in texts)

        return values

    return PreparedTask(
        kind=task.kind,
        metric=task.metric,
        lower_is_better=task.lower_is_better,
        units=tuple(question.unit for question in task.questions),
        groups=tuple(question.group for question in task.questions),
        measure=(
            generation
            if task.metric == "generation"
            else lambda indices: likelihood(indices).values
        ),
        likelihood=likelihood,
    )


def _prepare_lm_eval(
    task: LmEvalTask, model: nn.Module, tokenizer: Tokenizer, batch_size: int
) -> PreparedTask:
    def run() -> tuple[TaskResult, ...]:
        return run_lm_eval(
            model, tokenizer, [task.name], batch_size, limit=task.limit, seed=task.seed
        )

    first = run()
    metric = _common_metric(task.name, first)
    number = sum(len(result.per_item[metric]) for result in first)

    def measure(indices: Sequence[int]) -> Measure:
        def values(_: int) -> tuple[float, ...]:
            every = [value for result in run() for value in result.per_item[metric]]
            return tuple(every[index] for index in indices)

        return values

    return PreparedTask(
        "lm-eval", metric, False, tuple(range(number)), ("",) * number, measure, None
    )


def _common_metric(name: str, results: Sequence[TaskResult]) -> str:
    """The metric to search by: one that every task of a group has for each item."""
    common = [m for m in results[0].per_item if all(m in result.per_item for result in results)]
    preferred = [m for m in common if m.split(",")[0] in _LM_EVAL_METRICS]
    if not common:
        raise SecateurError(
            f"expected a metric of lm-eval's {name} that is a mean over its items, but it has "
            f"{', '.join(results[0].metrics) or 'none'}"
        )
    return (preferred or common)[0]


def _prepare_callable(task: CallableTask, model: nn.Module) -> PreparedTask:
    def measure(indices: Sequence[int]) -> Measure:
        def values(_: int) -> tuple[float, ...]:
            with evaluating(model):
                found = tuple(float(value) for value in task.function(model, tuple(indices)))
            if len(found) != len(indices):
                raise SecateurError(
                    f"expected {len(indices)} values from the function of task {task.name}, one "
                    f"an item, but got {len(found)}"
                )
            return found

        return values

    number = task.num_items
    return PreparedTask(
        kind="callable",
        metric=task.metric,
        lower_is_better=task.lower_is_better,
        units=tuple(range(number)),
        groups=("",) * number,
        measure=measure,
        likelihood=None,
    )
