"""Any task of EleutherAI's lm-eval on a model that is already loaded. Optional dependency."""

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import SecateurError
from secateur.evaluate.forward import check_batch_size, evaluating
from secateur.evaluate.result import Estimate, TaskResult
from secateur.evaluate.tokenizer import Tokenizer


def run_lm_eval(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    batch_size: int = 8,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
) -> tuple[TaskResult, ...]:
    """Run lm-eval tasks in this process.

    Args:
        model: a transformers model; it stays where it is.
        tasks: names of tasks, groups or tags of lm-eval.
        limit: items of each task, from its beginning.
        num_fewshot: examples before each item; as each task says if not given.
        include_path: folder with further task files in lm-eval's YAML.
        seed: of everything random; lm-eval seeds the global random states with it.

    Returns:
        One result for each task: groups come as the tasks in them. Metrics have lm-eval's names,
        with the filter after a comma unless it is `none`. Standard errors are lm-eval's.

    Raises:
        SecateurError: lm-eval is not installed, does not know a task, or cannot get its data.
    """
    check_batch_size(batch_size)
    manager = check_lm_eval_tasks(tasks, include_path)
    lm_eval, model_class, _ = _import_lm_eval(tasks)
    try:
        with evaluating(model):
            output = lm_eval.simple_evaluate(
                model=model_class(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=list(tasks),
                limit=limit,
                num_fewshot=num_fewshot,
                task_manager=manager,
                log_samples=True,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
    except OSError as error:
        # A data set that the Hub does not give, or a file of a task's own that is not there.
        raise SecateurError(
            f"lm-eval cannot get the data of {', '.join(tasks)}: {_first_line(error)}"
        ) from error
    return tuple(_task_result(name, output) for name in output["samples"])


def check_lm_eval_tasks(tasks: Sequence[str], include_path: str | Path | None = None) -> Any:
    """lm-eval's manager of tasks, which knows all of them.

    Raises:
        SecateurError: lm-eval is not installed, or does not know a task.
    """
    _, _, manager_class = _import_lm_eval(tasks)
    manager = _manager(manager_class, None if include_path is None else str(include_path))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown or not tasks:
        raise SecateurError(
            "expected names of lm-eval tasks, but "
            + (f"it does not know {', '.join(unknown)}" if unknown else "got none")
        )
    return manager


# Twenty seconds to read some ten thousand files, for a check and for each model.
@lru_cache(maxsize=1)
def _manager(manager_class: Any, include_path: str | None) -> Any:
    return manager_class(include_path=include_path)


def _import_lm_eval(tasks: Sequence[str]) -> tuple[Any, Any, Any]:
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise SecateurError(
            f"{', '.join(tasks)}: no such file here; for a task of that name in lm-eval, install "
            f"the extra: pip install 'secateur[lm-eval]' ({error})"
        ) from error
    return lm_eval, HFLM, TaskManager


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _task_result(name: str, output: Mapping[str, Any]) -> TaskResult:
    values, samples = output["results"][name], output["samples"][name]
    metrics = {_name(key): _estimate(values, key) for key in values if _is_metric(key, values)}
    directions = output.get("higher_is_better", {}).get(name, {})
    lower = frozenset(metric for metric in metrics if directions.get(_stem(metric)) is False)
    per_item = {
        metric: column
        for metric, estimate in metrics.items()
        if metric not in lower and (column := _column(samples, metric, estimate.value))
    }
    num_items = len({sample["doc_id"] for sample in samples})
    return TaskResult(name, metrics, num_items, per_item, lower_is_better=lower)


def _is_metric(key: str, values: Mapping[str, Any]) -> bool:
    """Keys are `metric,filter` and `metric_stderr,filter`, beside `alias` and the like."""
    is_number = isinstance(values[key], int | float)
    return "," in key and is_number and not _stem(key).endswith("_stderr")


def _name(key: str) -> str:
    return key.removesuffix(",none")


def _stem(metric: str) -> str:
    return metric.split(",")[0]


def _estimate(values: Mapping[str, Any], key: str) -> Estimate:
    metric, kept_by = key.split(",", 1)
    # lm-eval writes `N/A` where it cannot say.
    error = values.get(f"{metric}_stderr,{kept_by}")
    return Estimate(values[key], error if isinstance(error, int | float) else math.nan)


def _column(samples: list[Mapping[str, Any]], metric: str, mean: float) -> tuple[float, ...]:
    """Values by item, empty unless the metric is their mean: other metrics cannot be paired."""
    name, _, kept_by = metric.partition(",")
    chosen = [sample for sample in samples if sample.get("filter", "none") == (kept_by or "none")]
    column = [sample.get(name) for sample in sorted(chosen, key=lambda sample: sample["doc_id"])]
    if not column or not all(isinstance(value, int | float) for value in column):
        return ()
    values = tuple(float(value) for value in column if value is not None)
    return values if math.isclose(statistics.fmean(values), mean, abs_tol=1e-9) else ()
