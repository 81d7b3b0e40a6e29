"""LASER search: which matrices, cut to a low rank, make a model better at a task.

Cuts are chosen on one split of the task's items and reported on the other.
"""

from secateur.search.laser import search_laser
from secateur.search.options import Compose, SearchOptions
from secateur.search.recipe import search_recipe
from secateur.search.task import (
    CallableTask,
    ItemTask,
    LmEvalTask,
    Metric,
    Question,
    SearchTask,
    load_task,
    questions_of_facts,
    questions_of_items,
)

__all__ = [
    "CallableTask",
    "Compose",
    "ItemTask",
    "LmEvalTask",
    "Metric",
    "Question",
    "SearchOptions",
    "SearchTask",
    "load_task",
    "questions_of_facts",
    "questions_of_items",
    "search_laser",
    "search_recipe",
]
