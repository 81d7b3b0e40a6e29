"""Losses against float64 numpy; errors are bounded by those of fp32 sums of that many terms."""

from typing import Any

import numpy as np
import pytest
import torch
from families import VOCAB_SIZE, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from secateur.training.loss import (
    block_distance,
    cross_entropy,
    distillation,
    matching_places,
    window_losses,
)
from secateur.training.objective import Objective

EPSILON = float(np.finfo(np.float32).eps)
BATCH, LENGTH, WIDTH = 3, 7, 33


def draw(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels_of(seed: int, ignored: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, WIDTH, (BATCH, LENGTH), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = -100
    labels[:, 1] = 5  # one in each window is counted
    return labels


def log_softmax(logits: Tensor, temperature: float = 1.0) -> NDArray[np.float64]:
    x = logits.double().numpy() / temperature
    x = x - x.max(-1, keepdims=True)
    result: NDArray[np.float64] = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return result


def losses_by_place(logits: Tensor, labels: Tensor) -> list[list[float]]:
    """By window, the loss of each prediction that is counted."""
    found = log_softmax(logits)
    return [
        [-found[b, t - 1, labels[b, t]] for t in range(1, LENGTH) if labels[b, t] != -100]
        for b in range(BATCH)
    ]


def all_losses(logits: Tensor, labels: Tensor) -> list[float]:
    return [loss for window in losses_by_place(logits, labels) for loss in window]


def tolerance(reference: float, width: int = WIDTH, terms: int = BATCH * LENGTH) -> float:
    """Logits of size ~10 lose ten ulps in the exponent; sums lose an ulp a term at worst."""
    return EPSILON * (10 + width + terms) * max(1.0, abs(reference))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ignored", [0.0, 0.4, 0.9])
def test_cross_entropy(seed: int, ignored: float) -> None:
    logits, labels = draw(seed, BATCH, LENGTH, WIDTH), labels_of(seed, ignored)
    terms = all_losses(logits, labels)
    mean = float(np.mean(terms))
    assert float(cross_entropy(logits, labels)) == pytest.approx(mean, abs=tolerance(mean))
    total = float(np.sum(terms)) / 17
    assert float(cross_entropy(logits, labels, 17)) == pytest.approx(total, abs=tolerance(total))
    found = cross_entropy(logits, labels, torch.tensor(17))
    assert float(found) == pytest.approx(total, abs=tolerance(total))


def test_cross_entropy_of_16_bit_logits_is_summed_in_fp32() -> None:
    logits, labels = draw(0, BATCH, LENGTH, WIDTH).bfloat16(), labels_of(0)
    expected = float(np.mean(all_losses(logits.float(), labels)))
    found = cross_entropy(logits, labels)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(expected, abs=tolerance(expected))


def test_nothing_counted_costs_nothing_in_training_and_is_no_number_in_evaluation() -> None:
    logits = draw(0, 1, LENGTH, WIDTH).requires_grad_()
    labels = torch.full((1, LENGTH), -100)
    for loss in (cross_entropy(logits, labels), distillation(logits, 2 * logits, labels)):
        assert loss.item() == 0.0
    assert torch.isnan(window_losses(logits, labels)).all()
    # The first token is never predicted.
    labels[0, 0] = 4
    assert cross_entropy(logits, labels).item() == 0.0


def test_window_losses_are_means_of_windows() -> None:
    logits, labels = draw(1, BATCH, LENGTH, WIDTH), labels_of(1)
    labels[0, 2:] = -100
    expected = [float(np.mean(terms)) for terms in losses_by_place(logits, labels)]
    found = window_losses(logits, labels)
    assert found.tolist() == pytest.approx(expected, abs=tolerance(max(expected)))
    counts = [len(terms) for terms in losses_by_place(logits, labels)]
    assert len(set(counts)) > 1, "windows have to differ for this test to tell means apart"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("num_items", [None, 11])
def test_distillation(temperature: float, num_items: int | None) -> None:
    student, teacher = draw(2, BATCH, LENGTH, WIDTH), draw(3, BATCH, LENGTH, WIDTH)
    labels = labels_of(2)
    p, q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    by_place = (np.exp(p) * (p - q)).sum(-1)[:, :-1]
    counted = labels[:, 1:].numpy() != -100
    expected = temperature**2 * by_place[counted].sum() / (num_items or counted.sum())
    found = float(distillation(student, teacher, labels, temperature, num_items))
    assert found == pytest.approx(expected, abs=temperature**2 * tolerance(expected))


@given(seed=st.integers(0, 1000), temperature=st.floats(0.1, 10), shift=st.floats(-50, 50))
@settings(max_examples=25, deadline=None)
def test_distillation_of_equal_distributions_is_zero(
    seed: int, temperature: float, shift: float
) -> None:
    logits, labels = draw(seed, BATCH, LENGTH, WIDTH), labels_of(seed)
    assert float(distillation(logits, logits.clone(), labels, temperature)) == 0.0
    moved = float(distillation(logits + shift, logits, labels, temperature))
    # Shifted logits are rounded to ulps of up to 64, which the temperature magnifies.
    assert abs(moved) <= 64 * EPSILON * max(1.0, temperature)
    other = float(distillation(draw(seed + 1, BATCH, LENGTH, WIDTH), logits, labels, temperature))
    assert other > 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_of_distillation_is_the_difference_of_distributions(temperature: float) -> None:
    student = draw(4, BATCH, LENGTH, WIDTH).requires_grad_()
    teacher, labels = draw(5, BATCH, LENGTH, WIDTH), labels_of(4)
    distillation(student, teacher, labels, temperature).backward()
    counted = np.zeros((BATCH, LENGTH, 1))
    counted[:, :-1, 0] = labels[:, 1:].numpy() != -100
    q, p = np.exp(log_softmax(student.detach(), temperature)), log_softmax(teacher, temperature)
    expected = temperature * counted * (q - np.exp(p)) / counted.sum()
    assert student.grad is not None
    error = np.abs(student.grad.double().numpy() - expected).max()
    assert error <= temperature * EPSILON * (10 + WIDTH)


@pytest.mark.parametrize("places", [(1, 2, 3), (2, 4, 5)])
def test_block_distance(places: tuple[int, ...]) -> None:
    student = [draw(10 + i, BATCH, LENGTH, 5) for i in range(4)]
    teacher = [draw(20 + i, BATCH, LENGTH, 5) for i in range(6)]
    terms = []
    for mine, place in zip(student[1:], places, strict=True):
        x, y = mine.double().numpy(), teacher[place].double().numpy()
        terms.append(((x - y) ** 2).sum() / (y**2).sum())
    expected = float(np.mean(terms))
    found = float(block_distance(student, teacher, places))
    assert found == pytest.approx(expected, rel=EPSILON * BATCH * LENGTH * 5)


def test_block_distance_of_the_same_hidden_states_is_zero() -> None:
    hidden = [draw(i, BATCH, LENGTH, 5) for i in range(4)]
    assert float(block_distance(hidden, hidden, (1, 2, 3))) == 0.0


@pytest.mark.parametrize(
    ("kept", "num_blocks", "expected"),
    [
        ((0, 1, 2), 3, (1, 2, 3)),
        ((0, 1, 4, 5), 6, (1, 4, 5, 6)),
        ((0,), 6, (6,)),
        ((1, 2), 6, (2, 6)),
        ((2, 3, 5), 6, (3, 5, 6)),
    ],
)
def test_matching_places(kept: tuple[int, ...], num_blocks: int, expected: tuple[int, ...]) -> None:
    assert matching_places(kept, num_blocks) == expected


@given(
    num_blocks=st.integers(1, 12),
    data=st.data(),
)
def test_a_block_makes_what_the_next_kept_block_took(num_blocks: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, num_blocks - 1), min_size=1))
    kept = sorted(chosen)
    places = matching_places(kept, num_blocks)
    for place, old in enumerate(kept):
        following = [index for index in range(num_blocks) if index > old and index in chosen]
        # Hidden state i is what enters block i.
        assert places[place] == (following[0] if following else num_blocks)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "distillation": {"distillation_weight": 1.0, "temperature": 2.0},
    "mixture": {"distillation_weight": 0.3},
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_batches_of_unequal_counts_give_the_gradient_of_the_joined_batch(kind: str) -> None:
    model = tiny_model("llama").double()
    teacher = tiny_model("llama", seed=7).double() if OBJECTIVES[kind] else None
    objective = Objective(teacher=teacher, **OBJECTIVES[kind])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB_SIZE, (4, 9), generator=generator)
    labels = ids.clone()
    labels[0, :7] = -100
    labels[2, :3] = -100
    counted = int((labels[:, 1:] != -100).sum())

    def gradients(*rows: slice) -> dict[str, Tensor]:
        model.zero_grad()
        for part in rows:
            batch = {"input_ids": ids[part], "labels": labels[part]}
            objective.loss(model, batch, counted).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    joined = gradients(slice(0, 4))
    parts = gradients(slice(0, 1), slice(1, 3), slice(3, 4))
    assert joined.keys() == parts.keys()
    assert len(joined) == len(list(model.parameters()))
    for name, expected in joined.items():
        # The loss is computed in fp32 whatever the model's dtype is.
        limit = 50 * EPSILON * float(expected.abs().max())
        assert float((parts[name] - expected).abs().max()) <= limit, name


def test_the_objective_is_the_sum_of_its_parts() -> None:
    model, teacher = tiny_model("llama", 2), tiny_model("llama", 3, seed=7)
    ids = torch.randint(3, VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :4] = -100
    batch = {"input_ids": ids, "labels": labels}
    mine = model(input_ids=ids, output_hidden_states=True)
    with torch.no_grad():
        wanted = teacher(input_ids=ids, output_hidden_states=True)
    places = (2, 3)
    distance = block_distance(mine.hidden_states, wanted.hidden_states, places)
    cross = cross_entropy(mine.logits, labels)
    kl = distillation(mine.logits, wanted.logits, labels, 2.0)
    objective = Objective(teacher, 0.25, 2.0, 0.5, places)
    found = objective.loss(model, batch, None)
    expected = (0.75 * cross + 0.25 * kl + 0.5 * distance).item()
    assert found.item() == pytest.approx(expected, rel=1e-6)
    # Of a step with twice as many predictions this batch is half.
    half = objective.loss(model, batch, 2 * int((labels[:, 1:] != -100).sum()))
    assert half.item() == pytest.approx(expected / 2, rel=1e-6)
    assert Objective().loss(model, batch, None).item() == cross.item()
