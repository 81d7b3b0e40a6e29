"""Whole trainings of a few steps: what moves, what stays, and what is kept."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from safetensors.torch import load_file
from small_trainings import (
    LENGTH,
    everything,
    options,
    same_values,
    train,
    training_data,
    training_texts,
    values_of,
)
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from secateur.compress import compress
from secateur.errors import SecateurError
from secateur.models.inventory import take_inventory
from secateur.models.swap import convert_sparse24, pack_layers, to_dense
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur.training.adapters import Adapters
from secateur.training.loss import matching_places
from secateur.training.objective import Objective
from secateur.training.run import TrainingResult, TrainingTexts
from secateur.training.trained import linear_modules, linear_parameters, mlp_parameters

MAGNITUDE = {"stages": [{"stage": "prune", "method": "magnitude", "pattern": "2:4"}]}


def pruned_model(family: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = compress(tiny_model(family).to(dtype), MAGNITUDE)
    return model


def zeros_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: item == 0 for name, item in values_of(model).items()}


def losses(result: TrainingResult) -> list[float]:
    return [point.held_out_loss for point in result.run.points]


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# What moves.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_only_the_named_move(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    before, cache = values_of(model), model.config.use_cache
    names = mlp_parameters(model, [1])
    result = train(model, names, tmp_path)
    after = values_of(model)
    assert {item.dtype for item in after.values()} == {dtype}
    assert moved(before, after) == set(names)
    others = [name for name in before if name not in names]
    assert same_values({n: before[n] for n in others}, {n: after[n] for n in others})
    assert result.run.num_trained_parameters == sum(before[name].numel() for name in names)
    assert result.run.loss_after < result.run.loss_before
    assert all(item.requires_grad and item.grad is None for item in model.parameters())
    assert not model.training
    assert model.config.use_cache == cache


def test_the_record(tmp_path: Path) -> None:
    texts = training_texts(16, 5)
    result = train(tiny_model("llama"), ["lm_head.weight"], tmp_path, options(5), texts=texts)
    run = result.run
    assert (run.num_steps, run.num_tokens, run.ending, run.note) == (5, 120, "finished", "")
    assert [point.step for point in run.points] == [0, 2, 4, 5]
    assert [point.num_tokens for point in run.points] == [0, 48, 96, 120]
    assert run.points[0].held_out_loss == run.loss_before
    assert run.kept_step == min(run.points[1:], key=lambda point: point.held_out_loss).step
    assert (run.data.num_windows, run.data.num_held_out_windows) == (16, 5)
    assert (run.data.source, run.data.held_out_source) == ("random 0", "random 1")
    assert run.data.tokens_sha256 == texts.train.sha256
    assert 0 < run.points[-1].seconds <= run.seconds
    (moments,) = result.optimizer_state.values()
    assert moments["exp_avg"].shape == (128, 32)


def test_seconds_are_those_of_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]

    def taking(seconds: int, work: Any) -> Any:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            now[0] += seconds
            return work(*arguments, **named)

        return wrapped

    monkeypatch.setattr("secateur.training.trainer.perf_counter", lambda: now[0])
    for seconds, name in (
        (1, "training_step"),
        (100, "evaluation_loop"),
        (100, "_save_checkpoint"),
    ):
        monkeypatch.setattr(Trainer, name, taking(seconds, getattr(Trainer, name)))
    model, training = tiny_model("llama"), options(5)
    run = train(model, ["lm_head.weight"], tmp_path, training).run
    assert now[0] > 500
    assert [point.seconds for point in run.points] == [0, 2, 4, 5]
    assert run.seconds == 5


@pytest.mark.parametrize(
    ("length", "steps", "windows"),
    [
        ({"epochs": 1.0, "num_tokens": None}, 3, 5),
        ({"epochs": 2.0, "num_tokens": None}, 6, 10),
        ({"epochs": 1.2, "num_tokens": None}, 4, 7),
        ({"num_tokens": 7 * LENGTH}, 4, 7),
        ({"num_tokens": 9 * LENGTH + 1}, 6, 10),
        ({"num_tokens": 1}, 1, 2),
        ({"epochs": 2.0, "num_tokens": None, "gradient_accumulation": 2}, 4, 10),
    ],
)
def test_five_windows_in_batches_of_two(
    tmp_path: Path, length: dict[str, Any], steps: int, windows: int
) -> None:
    training = options(1, eval_steps=1, **length)
    result = train(
        tiny_model("llama"), ["lm_head.weight"], tmp_path, training, texts=training_texts(5)
    )
    assert result.run.num_steps == steps
    assert result.run.num_tokens == windows * LENGTH
    assert result.run.points[-1].num_tokens == windows * LENGTH
    assert result.run.points[1].num_tokens == 2 * LENGTH * length.get("gradient_accumulation", 1)


def test_two_trainings_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    results = []
    for name in ("one", "other"):
        torch.manual_seed(len(name))  # of no matter
        model = tiny_model("gpt2")  # which has dropout
        result = train(model, everything(model), tmp_path / name)
        results.append((values_of(model), losses(result)))
    assert same_values(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    model = tiny_model("gpt2")
    train(model, everything(model), tmp_path / "seed", options(seed=1))
    assert not same_values(values_of(model), results[0][0])


# Zeros.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_pruned_weights_stay_zero(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model = pruned_model(family, dtype)
    zeros, before = zeros_of(model), values_of(model)
    train(model, everything(model), tmp_path, options(weight_decay=0.1, keep_best=False))
    sites = take_inventory(model).all_sites
    pruned = {name for name, item in model.named_parameters() for s in sites if item is s.parameter}
    assert pruned
    for name, item in model.named_parameters():
        if name in pruned:
            assert torch.equal(item == 0, zeros[name]), name
        assert not torch.equal(item, before[name]), name
    for site in sites:
        kept = (site.weight != 0).reshape(site.shape[0], -1, 4).sum(-1)
        assert (kept == 2).all()
    checkpoints = sorted(tmp_path.glob("checkpoint-*/model.safetensors"))
    assert len(checkpoints) == 2
    for path in checkpoints:
        saved = load_file(path)
        for name in pruned:
            assert torch.equal(saved[name] == 0, zeros[name]), (path, name)


def test_an_unpruned_matrix_may_have_zeros_that_move(tmp_path: Path) -> None:
    model = tiny_model("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = 0.0  # one of 2048: chance
    train(model, everything(model), tmp_path)
    assert model.get_parameter(name)[0, 0] != 0


# Layers in a form of their own.


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_compact_layers_train_as_their_dense_ones_do(
    tmp_path: Path, family: str, packed: bool
) -> None:
    model = pruned_model(family, torch.bfloat16)
    dense = pruned_model(family, torch.bfloat16)
    names = convert_sparse24(model)
    trained = linear_parameters(model, [0, 1])
    if packed:
        assert pack_layers(model) == names
    training = options(keep_best=False)
    result = train(model, trained, tmp_path / "compact", training)
    expected = train(dense, linear_parameters(dense, [0, 1]), tmp_path / "dense", training)
    layers = [model.get_submodule(name) for name in names]
    assert all(isinstance(layer, Sparse24Linear) and not layer.is_packed for layer in layers)
    # Products of another order; AdamW turns the sign of a tiny gradient into a whole step.
    assert losses(result) == pytest.approx(losses(expected), rel=0.02)
    assert result.run.loss_after < result.run.loss_before - 0.5
    to_dense(model)
    zeros = zeros_of(dense)
    for site in take_inventory(model).all_sites:
        name = f"{site.name}.weight"
        assert torch.equal(model.get_parameter(name) == 0, zeros[name]), name


@pytest.mark.parametrize("method", ["svd", "sparse"])
def test_factors_train_as_factors(tmp_path: Path, method: str) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    kind: type[nn.Module]
    if method == "svd":
        compress(model, {"stages": [{"stage": "factor", "method": "svd", "rank": 8}]})
        kind = LowRankLinear
    else:
        for site in take_inventory(model).all_sites:
            parent, _, child = site.name.rpartition(".")
            keep = torch.zeros(site.shape, dtype=torch.bool)
            keep[:, ::2] = True
            layer = SparseLowRankLinear.from_linear(site.module, keep, 4)  # type: ignore[arg-type]
            setattr(model.get_submodule(parent), child, layer)
        kind = SparseLowRankLinear
    layers = {name: m for name, m in model.named_modules() if isinstance(m, kind)}
    assert len(layers) == 14
    result = train(model, linear_parameters(model, [0, 1]), tmp_path, options(keep_best=False))
    assert {name: m for name, m in model.named_modules() if isinstance(m, kind)} == layers
    assert result.run.loss_after < result.run.loss_before - 0.3
    values = values_of(model)
    assert all(values[f"{name}.{part}"].any() for name in layers for part in ("down", "up"))
    assert {item.dtype for item in values.values()} == {torch.bfloat16}
    saved = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    for name in layers:
        for part in ("down", "up"):
            # What was kept is what was saved, rounded.
            found = values[f"{name}.{part}"]
            assert torch.equal(saved[f"{name}.{part}"].to(torch.bfloat16), found)


# Which weights are kept.


def kept_is_saved(model: nn.Module, folder: Path, step: int) -> bool:
    saved = load_file(folder / f"checkpoint-{step}" / "model.safetensors")
    values = model.state_dict()
    assert {id(p) for p in model.parameters()} == {id(values_by(model)[name]) for name in saved}
    return all(torch.equal(values[name], item) for name, item in saved.items())


def values_by(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by all their names."""
    return dict(model.named_parameters(remove_duplicate=False))


def overfitted(folder: Path, family: str = "llama", **changes: Any) -> tuple[Any, TrainingResult]:
    """A training whose held-out loss falls and rises again."""
    model = tiny_model(family)
    texts = TrainingTexts(training_data(2, 0), training_data(8, 1))
    training = options(16, **changes)
    result = train(model, everything(model), folder, training, texts=texts, learning_rate=2e-2)
    return model, result


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_best_evaluation_is_kept(tmp_path: Path, family: str) -> None:
    model, result = overfitted(tmp_path, family)
    measured = losses(result)[1:]
    best = result.run.points[1 + measured.index(min(measured))]
    assert measured[-1] > min(measured) + 0.01, "the loss has to rise for this test"
    assert result.run.kept_step == best.step < 16
    assert result.run.loss_after == pytest.approx(best.held_out_loss, rel=1e-5)
    assert kept_is_saved(model, tmp_path, best.step)


def test_without_keep_best_the_last_step_is_kept(tmp_path: Path) -> None:
    model, result = overfitted(tmp_path, keep_best=False)
    assert result.run.kept_step == result.run.num_steps == 16
    assert result.run.loss_after == pytest.approx(losses(result)[-1], rel=1e-5)
    assert kept_is_saved(model, tmp_path, 16)


@pytest.mark.parametrize("patience", [1, 2])
def test_patience(tmp_path: Path, patience: int) -> None:
    model, result = overfitted(tmp_path, patience=patience)
    measured = losses(result)[1:]
    best = measured.index(min(measured))
    # It stops at the first evaluation that is `patience` evaluations after the best so far.
    assert len(measured) == best + 1 + patience < 8
    assert result.run.ending == "early"
    assert result.run.note == f"no better loss in {patience} evaluations"
    assert result.run.num_steps == 2 * len(measured)
    assert result.run.kept_step == 2 * (best + 1)
    assert kept_is_saved(model, tmp_path, 2 * (best + 1))


def test_evaluation_steps_beyond_the_end(tmp_path: Path) -> None:
    model = tiny_model("llama")
    result = train(model, everything(model), tmp_path, options(3, eval_steps=100))
    assert [point.step for point in result.run.points] == [0, 3]
    assert result.run.points[1].train_loss is not None
    assert (result.run.kept_step, result.run.ending) == (3, "finished")


# Batches.


def test_accumulated_batches_train_like_one(tmp_path: Path) -> None:
    # Windows with few and with many labels: a mean of means would be another gradient.
    texts = training_texts(8, first_labels=(0, 8, 3, 10))
    whole, parts = tiny_model("llama"), tiny_model("llama")
    names = linear_parameters(whole, [0, 1])
    one = train(whole, names, tmp_path / "one", options(4, batch_size=4), texts=texts)
    training = options(4, batch_size=1, gradient_accumulation=4)
    other = train(parts, names, tmp_path / "parts", training, texts=texts)
    assert one.run.num_tokens == other.run.num_tokens == 4 * 4 * LENGTH
    assert losses(other) == pytest.approx(losses(one), rel=1e-3)
    trained = [(point.train_loss, twin.train_loss) for point, twin in _points(one, other)]
    assert all(first == pytest.approx(second, rel=1e-3) for first, second in trained)


def _points(one: TrainingResult, other: TrainingResult) -> list[tuple[Any, Any]]:
    return list(zip(one.run.points[1:], other.run.points[1:], strict=True))


@pytest.mark.parametrize("loss_type", ["ForCausalLM", "ForTokenClassification"])
@pytest.mark.parametrize("first_labels", [(0,), (1, 8, 3, 10)])
def test_a_first_training_loss_is_that_of_the_counted_predictions(
    tmp_path: Path, first_labels: tuple[int, ...], loss_type: str
) -> None:
    texts = training_texts(4, first_labels=first_labels)
    model = tiny_model("llama")
    model.loss_type = loss_type  # what the Trainer thinks that the model minimises
    items = [texts.train.dataset[row] for row in range(4)]
    with torch.no_grad():
        ids = torch.stack([item["input_ids"] for item in items])
        log_probs = model(input_ids=ids).logits.double().log_softmax(-1)
    terms = [
        -float(log_probs[row, place - 1, int(item["labels"][place])])
        for row, item in enumerate(items)
        for place in range(1, LENGTH)
        if item["labels"][place] != -100
    ]
    training = options(1, batch_size=2, gradient_accumulation=2, eval_steps=1)
    result = train(model, everything(model), tmp_path, training, texts=texts)
    assert result.run.points[1].train_loss == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_a_held_out_loss_is_the_mean_of_windows(tmp_path: Path) -> None:
    texts = training_texts(4, 5, first_labels=(1, 8, 3))
    model = tiny_model("llama")
    means = []
    for row in range(5):
        item = texts.held_out.dataset[row]
        with torch.no_grad():
            log_probs = model(input_ids=item["input_ids"][None]).logits[0].double().log_softmax(-1)
        places = [p for p in range(1, LENGTH) if item["labels"][p] != -100]
        means.append(sum(-float(log_probs[p - 1, int(item["labels"][p])]) for p in places))
        means[-1] /= len(places)
    run = train(model, ["lm_head.weight"], tmp_path, options(2), texts=texts, learning_rate=1e-12)
    assert run.run.loss_before == pytest.approx(sum(means) / 5, rel=1e-6)
    # By the Trainer, in batches of 2, 2 and 1, of weights that have hardly moved.
    assert losses(run)[1] == pytest.approx(sum(means) / 5, rel=1e-5)
    assert run.run.loss_after == pytest.approx(sum(means) / 5, rel=1e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    results = []
    for wanted in (False, True):
        model = tiny_model("llama")
        training = options(gradient_checkpointing=wanted)
        result = train(model, everything(model), tmp_path / str(wanted), training)
        results.append((values_of(model), losses(result)))
        assert not any(
            getattr(module, "gradient_checkpointing", False) for module in model.modules()
        )
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


# The learning rate.


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1.0] * 8),
        ("constant", 0.25, [0.0, 0.5, *[1.0] * 6]),
        ("linear", 0.0, [1 - i / 8 for i in range(8)]),
        ("linear", 0.5, [0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]),
        ("cosine", 0.2, [0.0, 0.5, *[(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]]),
    ],
)
def test_schedules(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
    warmup: float,
    expected: list[float],
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        assert self.param_groups[0]["betas"] == (0.9, 0.95)
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    training = options(8, schedule=schedule, warmup=warmup)
    train(tiny_model("llama"), ["lm_head.weight"], tmp_path, training, learning_rate=0.5)
    assert rates == pytest.approx([0.5 * share for share in expected], abs=1e-12)


# Learning from the dense model.


@pytest.mark.parametrize("kind", ["distillation", "blocks"])
def test_what_is_minimised_falls(tmp_path: Path, kind: str) -> None:
    teacher = tiny_model("llama", 4).requires_grad_(False)
    model = tiny_model("llama", 4, seed=1)
    compress(model, {"stages": [{"stage": "drop_blocks", "blocks": [1, 2]}]})
    if kind == "distillation":
        objective = Objective(teacher, 1.0, 2.0)
    else:
        objective = Objective(teacher, 0.0, 1.0, 10.0, matching_places((0, 3), 4))
    items = [training_data(8, 1).dataset[row] for row in range(8)]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    untouched = values_of(teacher)

    def distance() -> float:
        with torch.no_grad():
            return float(objective.loss(model, batch, None))

    before = distance()
    texts = training_texts(32)
    training = options(12, batch_size=4, keep_best=False, eval_steps=12)
    train(model, everything(model), tmp_path, training, texts=texts, objective=objective)
    assert distance() < 0.8 * before
    assert same_values(values_of(teacher), untouched)


# Divergence.


class BreaksAfter:
    """Progress that spoils a parameter once some steps are done, as an optimizer might."""

    def __init__(self, parameter: nn.Parameter, step: int, row: int | None = None) -> None:
        self._parameter, self._left, self._row = parameter, step, row

    def begin(self, task: str, total: int) -> None:
        """Ignore."""

    def advance(self, detail: str = "") -> None:
        """Spoil it."""
        self._left -= 1
        if self._left == 0:
            rows = slice(None) if self._row is None else self._row
            self._parameter.data[rows] = torch.nan

    def close(self) -> None:
        """Ignore."""


def test_divergence_before_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    model = tiny_model("llama")
    message = r"training diverged: .* not finite after \d steps, before the first checkpoint\. Noth"
    with pytest.raises(SecateurError, match=message):
        train(model, everything(model), tmp_path, learning_rate=1e30)
    # The model is usable otherwise: dtypes, modes and gradients are as they were.
    assert all(item.requires_grad and item.grad is None for item in model.parameters())
    assert not model.training


@pytest.mark.parametrize("keep_best", [True, False])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_divergence_goes_back_to_the_last_good_checkpoint(
    tmp_path: Path, family: str, keep_best: bool
) -> None:
    twin = tiny_model(family)
    training = options(8, keep_best=keep_best)
    train(twin, everything(twin), tmp_path / "twin", options(4, keep_best=keep_best))
    model = tiny_model(family)
    progress = BreaksAfter(model.model.norm.weight, 5)
    result = train(model, everything(model), tmp_path / "broken", training, progress=progress)
    assert result.run.ending == "diverged"
    assert result.run.kept_step == 4
    assert result.run.num_steps == 5
    assert result.run.note == (
        "training diverged: the loss is not finite after 5 steps; the weights of step 4 were kept. "
        "Give a lower learning_rate, or a longer warmup"
    )
    assert same_values(values_of(model), values_of(twin))
    assert math.isfinite(result.run.loss_after)
    assert [point.step for point in result.run.points] == [0, 2, 4]


@pytest.mark.parametrize("keep_best", [True, False])
def test_divergence_after_overfitting_goes_back_to_what_would_be_kept(
    tmp_path: Path, keep_best: bool
) -> None:
    model = tiny_model("llama")
    texts = TrainingTexts(training_data(2, 0), training_data(8, 1))
    progress = BreaksAfter(model.model.norm.weight, 15)
    told = {"texts": texts, "progress": progress, "learning_rate": 2e-2}
    training = options(16, keep_best=keep_best)
    result = train(model, everything(model), tmp_path, training, **told)
    measured = {point.step: point.held_out_loss for point in result.run.points[1:]}
    best = min(measured, key=measured.__getitem__)
    assert result.run.ending == "diverged"
    assert best < max(measured) == 14, "the loss has to rise for this test"
    assert result.run.kept_step == (best if keep_best else 14)
    assert kept_is_saved(model, tmp_path, result.run.kept_step)


@pytest.mark.parametrize("step", [4, 6])
def test_a_model_that_broke_is_not_saved(tmp_path: Path, step: int) -> None:
    model = tiny_model("llama")
    progress = BreaksAfter(model.model.norm.weight, step)
    result = train(model, everything(model), tmp_path, options(8), progress=progress)
    assert f"the loss on held-out text is not finite after {step} steps" in result.run.note
    assert result.run.kept_step == step - 2
    assert kept_is_saved(model, tmp_path, step - 2)
    assert not (tmp_path / f"checkpoint-{step}").exists()
    assert math.isnan(result.run.points[-1].held_out_loss)


def test_a_weight_that_no_loss_shows_is_not_saved_broken(tmp_path: Path) -> None:
    """The embedding of a token that does not occur."""
    model = tiny_model("llama")
    progress = BreaksAfter(model.model.embed_tokens.weight, 4, row=100)
    result = train(model, everything(model), tmp_path, options(8), progress=progress)
    assert "training diverged: a weight is not finite after 4 steps" in result.run.note
    assert result.run.kept_step == 2
    assert all(item.isfinite().all() for item in model.parameters())


def test_adapters_that_diverge_go_back_too(tmp_path: Path) -> None:
    model, twin = tiny_model("llama"), tiny_model("llama")
    adapters = Adapters(linear_modules(model, [0, 1]))
    train(twin, adapters, tmp_path / "twin", options(4))
    progress = BreaksAfter(model.model.norm.weight, 5)
    norm = model.model.norm.weight.detach().clone()
    result = train(model, adapters, tmp_path / "broken", options(8), progress=progress)
    assert result.run.ending == "diverged"
    assert result.run.kept_step == 4
    # The norm is no adapter's: nobody puts it back but this test.
    model.model.norm.weight.data = norm
    assert same_values(values_of(model), values_of(twin))
