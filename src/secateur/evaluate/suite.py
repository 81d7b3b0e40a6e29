"""A text and tasks measured on one model, and on two for comparison."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.evaluate.compare import Drop, compare_perplexity, compare_task
from secateur.evaluate.forward import check_batch_size
from secateur.evaluate.items import check_limit, is_task_file, read_items
from secateur.evaluate.lm_eval_tasks import check_lm_eval_tasks, run_lm_eval
from secateur.evaluate.perplexity import (
    PerplexityResult,
    check_window_length,
    encode_text,
    perplexity,
)
from secateur.evaluate.result import Estimate, TaskResult
from secateur.evaluate.tasks import run_task
from secateur.evaluate.tokenizer import Tokenizer
from secateur.models.blocks import context_length
from secateur.progress import Progress
from secateur.seeds import require_seed

DEFAULT_SEQ_LENGTH = 2048


@dataclass(frozen=True)
class EvaluationChoice:
    """What to measure, the same for every model."""

    text: Path | None
    max_seq_length: int | None = None
    """None: 2048, or the model's context if that is shorter."""
    tasks: tuple[str, ...] = ()
    """JSON-lines files, or names of lm-eval tasks."""
    batch_size: int = 8
    limit: int | None = None
    seed: int = 0
    num_fewshot: int | None = None
    """Examples before each item of lm-eval tasks; None: as each task says."""
    include_path: Path | None = None
    """Folder with further tasks for lm-eval."""

    @property
    def task_files(self) -> list[str]:
        """Those of the tasks that are JSON-lines files."""
        return [task for task in self.tasks if is_task_file(task)]

    @property
    def lm_eval_tasks(self) -> list[str]:
        """Those that lm-eval knows by name."""
        return [task for task in self.tasks if not is_task_file(task)]


@dataclass(frozen=True)
class Evaluation:
    """One model's results."""

    perplexity: PerplexityResult | None
    tasks: tuple[TaskResult, ...] = field(default=())

    def estimates(self) -> dict[str, Estimate]:
        """Every metric by the name that `Drop` has for it: `perplexity` or `task metric`."""
        found = {}
        if self.perplexity is not None:
            result = self.perplexity
            found["perplexity"] = Estimate(result.perplexity, result.standard_error)
        for task in self.tasks:
            for metric, estimate in task.metrics.items():
                found[f"{task.name} {metric}"] = estimate
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite become None, which JSON can hold."""
        values: dict[str, Any] = {}
        if self.perplexity is not None:
            values = {
                "perplexity": finite(self.perplexity.perplexity),
                "num_tokens": self.perplexity.num_tokens,
                "max_seq_length": self.perplexity.max_seq_length,
            }
        if self.tasks:
            values["tasks"] = {task.name: _task_values(task) for task in self.tasks}
        return values


def _task_values(task: TaskResult) -> dict[str, Any]:
    values: dict[str, Any] = {"num_items": task.num_items, "num_truncated": task.num_truncated}
    for metric, estimate in task.metrics.items():
        values[metric] = finite(estimate.value)
        values[f"{metric}_standard_error"] = finite(estimate.standard_error)
    return values


def finite(value: float) -> float | None:
    """A number as JSON can hold it: None in the place of NaN and of what is infinite."""
    return value if math.isfinite(value) else None


def check_choice(choice: EvaluationChoice) -> None:
    """Find out before a model is loaded and measured that a part of the choice cannot be.

    Raises:
        SecateurError: the text or a task cannot be read, lm-eval is missing or does not know a
            task, or a number is out of range.
    """
    require_seed(choice.seed)
    check_batch_size(choice.batch_size)
    if choice.text is not None:
        read_text(choice.text)
    if choice.max_seq_length is not None:
        check_window_length(choice.max_seq_length)
    check_limit(choice.limit)
    for file in choice.task_files:
        read_items(file, choice.limit)
    if choice.lm_eval_tasks:
        check_lm_eval_tasks(choice.lm_eval_tasks, choice.include_path)


def run_evaluation(
    model: nn.Module, tokenizer: Tokenizer, choice: EvaluationChoice, progress: Progress
) -> Evaluation:
    """Measure everything chosen on one model.

    Raises:
        SecateurError: the text or a task cannot be read, or does not fit the model.
    """
    require_seed(choice.seed)
    torch.manual_seed(choice.seed)
    measured = None
    if choice.text is not None:
        token_ids = encode_text(tokenizer, read_text(choice.text))
        length = window_length(model, choice.max_seq_length)
        measured = perplexity(model, token_ids, length, choice.batch_size, progress)
    names = task_file_names(choice.task_files, choice.lm_eval_tasks)
    results = [
        run_task(model, tokenizer, file, name, choice.batch_size, choice.limit, progress)
        for file, name in zip(choice.task_files, names, strict=True)
    ]
    if choice.lm_eval_tasks:
        results += run_lm_eval(
            model,
            tokenizer,
            choice.lm_eval_tasks,
            choice.batch_size,
            choice.limit,
            choice.num_fewshot,
            choice.include_path,
            choice.seed,
        )
    return Evaluation(measured, tuple(results))


def task_file_names(files: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """What the results of task files are called: as much of their paths as tells them apart.

    Args:
        files: paths.
        taken: names that others have.

    Returns:
        their names without ending, with the folders above them where these are needed; the
        paths as they are where nothing less will do.
    """
    paths = [Path(file).with_suffix("").parts for file in files]
    for length in range(1, max(map(len, paths), default=0) + 1):
        names = [Path(*parts[-length:]).as_posix() for parts in paths]
        if len({*names, *taken}) == len(names) + len(set(taken)):
            return names
    return list(files)


def window_length(model: nn.Module, asked: int | None) -> int:
    """Tokens in a window: as asked, else 2048, or the model's context if that is shorter."""
    if asked is not None:
        return asked
    return min(DEFAULT_SEQ_LENGTH, context_length(model) or DEFAULT_SEQ_LENGTH)


def read_text(path: Path) -> str:
    """A UTF-8 file.

    Raises:
        SecateurError: there is none, or it is something else.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SecateurError(f"expected a UTF-8 text file, but {path}: {error}") from None


def compare(baseline: Evaluation, other: Evaluation) -> list[Drop]:
    """How much worse `other` is, metric by metric, from pairs of windows and items."""
    drops = []
    if baseline.perplexity is not None and other.perplexity is not None:
        drops.append(compare_perplexity(baseline.perplexity, other.perplexity))
    for before, after in zip(baseline.tasks, other.tasks, strict=True):
        drops += [compare_task(before, after, metric) for metric in before.metrics]
    return drops
