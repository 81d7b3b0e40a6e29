"""lm-eval itself, where it is installed, on tasks whose data lie on disk."""

import json
from pathlib import Path

import pytest

from secateur.checkpoint.load import load_with_tokenizer
from secateur.errors import SecateurError
from secateur.evaluate.lm_eval_tasks import run_lm_eval

pytest.importorskip("lm_eval", reason="lm-eval is an optional package: secateur[lm-eval]")

BOOKS = Path(__file__).parents[2] / "examples" / "books-8m"
ITEMS = [
    {"text": "The cat sat on the", "choices": ["mat", "xqz zz"], "gold": 0},
    {"text": "He went to the", "choices": ["qqx zx", "house"], "gold": 1},
    {"text": "She was very", "choices": ["kind", "vzq xq"], "gold": 1},
]
TASK = {
    "task": "own_choice",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "test",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def _folder_of_tasks(folder: Path, data: Path) -> Path:
    files = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    # JSON is YAML, too.
    (folder / "own.yaml").write_text(json.dumps({**TASK, "dataset_kwargs": files}))
    return folder


def test_own_task_is_measured_item_by_item(tmp_path: Path) -> None:
    data = tmp_path / "items.jsonl"
    data.write_text("\n".join(map(json.dumps, ITEMS)))
    folder = _folder_of_tasks(tmp_path, data)
    books = load_with_tokenizer(BOOKS)
    (result,) = run_lm_eval(
        books.model, books.tokenizer, ["own_choice"], num_fewshot=1, include_path=folder
    )
    assert result.name == "own_choice"
    assert result.num_items == 3
    # The third names as right what nobody would say.
    assert result.per_item == {"acc": (1.0, 1.0, 0.0)}
    assert result.metrics["acc"].value == pytest.approx(2 / 3)
    assert result.metrics["acc"].standard_error == pytest.approx((2 / 9 / 2) ** 0.5)
    assert not result.lower_is_better
    (first,) = run_lm_eval(
        books.model, books.tokenizer, ["own_choice"], limit=1, include_path=folder
    )
    assert first.num_items == 1


def test_task_without_its_data_is_refused(tmp_path: Path) -> None:
    folder = _folder_of_tasks(tmp_path, tmp_path / "no-such.jsonl")
    books = load_with_tokenizer(BOOKS)
    with pytest.raises(SecateurError, match=r"data of own_choice: .*no-such"):
        run_lm_eval(books.model, books.tokenizer, ["own_choice"], include_path=folder)
