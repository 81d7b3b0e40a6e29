"""What is measured, and what it is called."""

import pytest

from secateur.evaluate.suite import task_file_names


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ([], []),
        (["tasks/arc.jsonl", "piqa.json"], ["arc", "piqa"]),
        (["arc/test.jsonl", "piqa/test.jsonl"], ["arc/test", "piqa/test"]),
        (["test.jsonl", "/a/b/test.jsonl"], ["test", "b/test"]),
        (["test.jsonl", "test.json"], ["test.jsonl", "test.json"]),
        (["own/lambada.jsonl"], ["own/lambada"]),
        (["lambada.jsonl"], ["lambada.jsonl"]),
    ],
)
def test_results_of_files_have_different_names(files: list[str], names: list[str]) -> None:
    assert task_file_names(files, ["lambada"]) == names
