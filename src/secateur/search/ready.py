"""Everything that a search needs, checked and encoded before anything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from secateur.errors import SecateurError
from secateur.evaluate.tokenizer import Tokenizer
from secateur.models.blocks import BlockList
from secateur.models.inventory import take_inventory
from secateur.search.analysis import Asked, ask_items, ask_prompts
from secateur.search.measure import PreparedTask, prepare_task
from secateur.search.options import SearchOptions
from secateur.search.space import SearchSpace, search_space
from secateur.search.split import Split, split_items
from secateur.search.task import ItemTask, SearchTask
from secateur.search.trials import SplitMeasure


@dataclass(frozen=True)
class Ready:
    """A search that can begin."""

    blocks: BlockList
    space: SearchSpace
    prepared: PreparedTask
    split: Split
    validation: SplitMeasure
    test: SplitMeasure
    asked: tuple[Asked, ...]
    """What is to be answered with the discarded components."""

    @property
    def test_groups(self) -> list[str]:
        """By item of the test split; blank where a task has no groups."""
        return [self.prepared.groups[item] for item in self.split.test]


def make_ready(
    model: nn.Module, tokenizer: Tokenizer, task: SearchTask, options: SearchOptions
) -> Ready:
    """Check and encode.

    Raises:
        SecateurError: what was expected and what came; nothing was measured. (A task of lm-eval
            is run once, to see its items.)
    """
    inventory = take_inventory(model)
    space = search_space(inventory, options)
    if not isinstance(task, ItemTask):
        _check_foreign(task, options)
    prepared = prepare_task(task, model, tokenizer, inventory.blocks, options.batch_size)
    split = split_items(prepared.units, options.validation_fraction, options.seed)
    return Ready(
        blocks=inventory.blocks,
        space=space,
        prepared=prepared,
        split=split,
        validation=_split_measure("validation", split.validation, prepared),
        test=_split_measure("test", split.test, prepared),
        asked=tuple(_asked(model, tokenizer, inventory.blocks, task, split, options)),
    )


def _check_foreign(task: SearchTask, options: SearchOptions) -> None:
    if options.filter is not None:
        raise SecateurError(
            "expected items from a file for the filter, which needs the gradient of their loss, "
            f"but got the task {task.name}"
        )
    if options.analyse_items:
        raise SecateurError(
            f"expected items from a file to analyse, but got the task {task.name}; "
            "give prompts instead"
        )


def _split_measure(name: str, items: Sequence[int], prepared: PreparedTask) -> SplitMeasure:
    units = [prepared.units[item] for item in items]
    return SplitMeasure(name, prepared.measure(items), units, keeps_values=name == "test")


def _asked(
    model: nn.Module,
    tokenizer: Tokenizer,
    blocks: BlockList,
    task: SearchTask,
    split: Split,
    options: SearchOptions,
) -> list[Asked]:
    asked = []
    limits = (options.max_new_tokens, options.batch_size)
    if options.analyse_items and isinstance(task, ItemTask):
        items = [task.questions[item].item for item in split.test[: options.analyse_items]]
        asked.append(ask_items(model, tokenizer, blocks, items, *limits))
    if options.prompts:
        asked.append(ask_prompts(model, tokenizer, options.prompts, *limits))
    return asked
