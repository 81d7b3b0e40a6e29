"""Names from outside in the tables on the terminal: as they are, brackets included."""

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType
from search_builders import full_search, score

from secateur.cli.evaluate_table import evaluation_table
from secateur.cli.plan_table import plan_table
from secateur.cli.search_table import search_table
from secateur.evaluate.result import Estimate, TaskResult
from secateur.evaluate.suite import Evaluation
from secateur.plan.result import Plan

NAMES = ("facts[v2]", "facts[/v2]")


def printed(table: RenderableType) -> str:
    file = io.StringIO()
    Console(file=file, width=200, emoji=False).print(table)
    return file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_groups_of_a_search(name: str) -> None:
    record = full_search()
    states = tuple(replace(state, groups={name: score(0.5)}) for state in record.states)
    assert printed(search_table(replace(record, states=states))).count(f"  {name} ") == len(states)


@pytest.mark.parametrize("name", NAMES)
def test_tasks_of_an_evaluation(name: str) -> None:
    task = TaskResult(name, {"accuracy": Estimate(0.5, math.nan)}, 1)
    assert f" {name} accuracy " in printed(evaluation_table(Evaluation(None, (task,)), None, []))


@pytest.mark.parametrize("name", NAMES)
def test_the_model_of_a_plan(name: str) -> None:
    plan = Plan(
        model=name,
        device="cpu",
        workload="prefill",
        methods=(),
        limit="at most 1 byte",
        rows=(),
        layers=(),
        removed=(),
        recipe=None,
        time_scale=1.0,
        notes=(),
    )
    assert printed(plan_table(plan)).startswith(f"{name}: at most")
