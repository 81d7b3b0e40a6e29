import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.errors import SecateurError
from secateur.evaluate.lm_eval_tasks import run_lm_eval
from secateur.evaluate.result import Estimate

# In the form of lm-eval 0.4.13: two filters of one task, and a group with no samples of its own.
OUTPUT: dict[str, Any] = {
    "results": {
        "group": {"alias": "group", "acc,none": 0.5, "acc_stderr,none": 0.1},
        "choice": {
            "alias": "choice",
            "sample_len": 2,
            "acc,none": 0.5,
            "acc_stderr,none": 0.5,
            "perplexity,none": 20.0,
            "perplexity_stderr,none": "N/A",
        },
        "maths": {
            "exact_match,strict": 0.0,
            "exact_match_stderr,strict": 0.0,
            "exact_match,flexible": 1.0,
            "exact_match_stderr,flexible": 0.0,
        },
    },
    "higher_is_better": {"choice": {"acc": True, "perplexity": False}, "maths": {}},
    "samples": {
        "choice": [
            {"doc_id": 1, "filter": "none", "acc": 0.0, "perplexity": 20.0},
            {"doc_id": 0, "filter": "none", "acc": 1.0, "perplexity": 20.0},
        ],
        "maths": [
            {"doc_id": 0, "filter": "strict", "exact_match": 0.0},
            {"doc_id": 0, "filter": "flexible", "exact_match": 1.0},
        ],
    },
}


class FakeLmEval:
    """Stands for lm-eval and keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.was_training: bool | None = None

    def simple_evaluate(self, **asked: Any) -> dict[str, Any]:
        self.asked = asked
        self.was_training = asked["model"].pretrained.training
        return OUTPUT

    def manager(self, include_path: str | None) -> SimpleNamespace:
        known = {"choice", "maths", "group"}
        return SimpleNamespace(
            include_path=include_path,
            match_tasks=lambda names: [name for name in names if name in known],
        )


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> FakeLmEval:
    fake = FakeLmEval()
    modules: dict[str, dict[str, Any]] = {
        "lm_eval": {"simple_evaluate": fake.simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": SimpleNamespace},
        "lm_eval.tasks": {"TaskManager": fake.manager},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return fake


def test_results_come_by_task_with_errors(
    lm_eval: FakeLmEval, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    choice, maths = run_lm_eval(model, tokenizer, ["group", "maths"])
    assert (choice.name, choice.num_items) == ("choice", 2)
    assert choice.metrics["acc"] == Estimate(0.5, 0.5)
    assert choice.metrics["perplexity"].value == 20.0
    assert math.isnan(choice.metrics["perplexity"].standard_error)
    assert choice.lower_is_better == {"perplexity"}
    assert choice.per_item == {"acc": (1.0, 0.0)}
    assert (maths.name, maths.num_items) == ("maths", 1)
    assert maths.per_item == {"exact_match,strict": (0.0,), "exact_match,flexible": (1.0,)}


def test_metric_that_is_no_mean_has_no_items(
    lm_eval: FakeLmEval,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(OUTPUT["results"]["choice"], "acc,none", 0.25)
    monkeypatch.setitem(OUTPUT["samples"]["maths"][0], "exact_match", [0, 1])
    choice, maths = run_lm_eval(model, tokenizer, ["choice", "maths"])
    assert choice.per_item == {}
    assert maths.per_item == {"exact_match,flexible": (1.0,)}


def test_lm_eval_gets_the_loaded_model(
    lm_eval: FakeLmEval, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.train()
    run_lm_eval(model, tokenizer, ("choice",), 3, limit=5, num_fewshot=2, include_path="more")
    asked = lm_eval.asked
    assert lm_eval.was_training is False
    assert model.training
    model.eval()
    assert (asked["model"].pretrained, asked["model"].tokenizer) == (model, tokenizer)
    assert asked["model"].batch_size == 3
    assert (asked["tasks"], asked["limit"], asked["num_fewshot"]) == (["choice"], 5, 2)
    assert asked["task_manager"].include_path == "more"


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["choice", "nothing"], "names of lm-eval tasks, but it does not know nothing"),
        ([], "names of lm-eval tasks, but got none"),
    ],
)
def test_unknown_task_is_refused(
    lm_eval: FakeLmEval,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: list[str],
    message: str,
) -> None:
    with pytest.raises(SecateurError, match=message):
        run_lm_eval(model, tokenizer, tasks)


def test_data_that_cannot_be_had_are_said_in_a_line(
    lm_eval: FakeLmEval,
    monkeypatch: pytest.MonkeyPatch,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    def offline(**_: Any) -> None:
        raise ConnectionError("Couldn't reach 'owner/data' on the Hub\nmore lines")

    monkeypatch.setattr(sys.modules["lm_eval"], "simple_evaluate", offline)
    message = "lm-eval cannot get the data of choice: Couldn't reach 'owner/data' on the Hub$"
    with pytest.raises(SecateurError, match=message):
        run_lm_eval(model, tokenizer, ["choice"])


def test_missing_lm_eval_is_said_with_the_command(
    monkeypatch: pytest.MonkeyPatch, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SecateurError, match=r"no such file here; .*pip install 'secateur\[lm-eval"):
        run_lm_eval(model, tokenizer, ["choice"])
