"""Interrupted trainings end as if they had not been: bit for bit, with the same curve."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from small_trainings import (
    Interrupted,
    StopAt,
    everything,
    options,
    same_values,
    train,
    training_data,
    values_of,
)
from thoroughness import most_telling
from torch import nn

from secateur.compress import compress
from secateur.errors import SecateurError
from secateur.models.swap import convert_sparse24
from secateur.recipe import Training
from secateur.training.adapters import Adapters
from secateur.training.run import TrainingResult, TrainingTexts
from secateur.training.trained import linear_modules

PRUNE = {"stages": [{"stage": "prune", "method": "magnitude", "pattern": "2:4"}]}


def figures(result: TrainingResult) -> list[Any]:
    run = result.run
    points = [(p.step, p.num_tokens, p.train_loss, p.held_out_loss) for p in run.points]
    return [run.ending, run.note, run.kept_step, run.num_steps, run.loss_after, *points]


def model_of(kind: str) -> nn.Module:
    if kind != "compact":
        return tiny_model(kind.removeprefix("lora "))
    model: nn.Module = compress(tiny_model("llama").to(torch.bfloat16), PRUNE)
    convert_sparse24(model)
    return model


def run(kind: str, folder: Path, training: Training, **more: Any) -> tuple[Any, TrainingResult]:
    model = model_of(kind)
    trained: Any = everything(model)
    if kind.startswith("lora"):
        trained = Adapters(linear_modules(model, [0, 1]), rank=2)
    result = train(model, trained, folder, training, **more)
    return values_of(model), result


def interrupted(kind: str, folder: Path, training: Training, step: int, **more: Any) -> None:
    with pytest.raises(Interrupted):
        run(kind, folder, training, progress=StopAt(step), **more)


@pytest.mark.parametrize(
    "kind",
    most_telling(
        ["llama", "gpt2", "mixtral", "qwen3_moe", "compact", "lora llama"],
        ["gpt2", "mixtral", "compact", "lora llama"],
    ),
)
def test_at_a_step(tmp_path: Path, kind: str) -> None:
    training = options(7, schedule="cosine", warmup=0.2)
    values, result = run(kind, tmp_path / "whole", training)
    # Before the first checkpoint, between, and right before one.
    for step in (1, 5):
        folder = tmp_path / str(step)
        interrupted(kind, folder, training, step)
        again, resumed = run(kind, folder, training, resume=True)
        assert same_values(again, values)
        assert figures(resumed) == figures(result)
    # And when nothing is left to do.
    again, resumed = run(kind, folder, training, resume=True)
    assert same_values(again, values)
    assert figures(resumed) == figures(result)


def test_between_logs(tmp_path: Path) -> None:
    """Losses are logged every ten steps, but checkpoints come after thirteen."""
    training = options(30, eval_steps=13, batch_size=1)
    values, result = run("llama", tmp_path / "whole", training)
    interrupted("llama", tmp_path / "cut", training, 22)
    again, resumed = run("llama", tmp_path / "cut", training, resume=True)
    assert same_values(again, values)
    assert figures(resumed) == figures(result)


@pytest.mark.parametrize("step", [5, 9])
def test_patience_counts_on(tmp_path: Path, step: int) -> None:
    texts = TrainingTexts(training_data(2, 0), training_data(8, 1))
    more = {"texts": texts, "learning_rate": 2e-2}
    training = options(16, patience=3)
    values, result = run("llama", tmp_path / "whole", training, **more)
    assert result.run.ending == "early"
    assert step < result.run.num_steps
    interrupted("llama", tmp_path / "cut", training, step, **more)
    for _ in range(2):  # resumed when over, it is over
        again, resumed = run("llama", tmp_path / "cut", training, resume=True, **more)
        assert same_values(again, values)
        assert figures(resumed) == figures(result)


@pytest.mark.parametrize("torn", ["empty", "without state", "half a state"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, torn: str) -> None:
    training = options(7)
    values, result = run("llama", tmp_path / "whole", training)
    interrupted("llama", tmp_path / "cut", training, 7)
    last = tmp_path / "cut" / "checkpoint-6"
    assert last.is_dir()
    state = last / "trainer_state.json"
    if torn == "half a state":
        state.write_text(state.read_text()[:50])
    else:
        for path in [state] if torn == "without state" else list(last.iterdir()):
            path.unlink()
    again, resumed = run("llama", tmp_path / "cut", training, resume=True)
    assert same_values(again, values)
    assert figures(resumed) == figures(result)


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    training = options(7)
    interrupted("llama", tmp_path / "cut", training, 5)
    values, _ = run("llama", tmp_path / "cut", training)
    expected, _ = run("llama", tmp_path / "whole", training)
    assert same_values(values, expected)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    interrupted("llama", tmp_path / "cut", options(7), 5)
    with pytest.raises(SecateurError, match=r"not of the model .* in one of them; train anew"):
        run("qwen3", tmp_path / "cut", options(7), resume=True)


def test_seconds_of_steps_add_up(tmp_path: Path) -> None:
    training = options(7)
    interrupted("llama", tmp_path / "cut", training, 5)
    _, resumed = run("llama", tmp_path / "cut", training, resume=True)
    seconds = [point.seconds for point in resumed.run.points]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0.0 < seconds[1]
    assert resumed.run.seconds >= seconds[-1]
