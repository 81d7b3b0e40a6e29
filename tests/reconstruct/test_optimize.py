from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from math import cos, inf, isnan, pi
from typing import Any

import pytest
import torch
from told import Told
from torch import Tensor, nn
from toys import halved, make_block, make_samples, relative_error, whole_outputs

from secateur.errors import SecateurError
from secateur.reconstruct import (
    PUBLISHED,
    BlockSamples,
    ReconstructionSettings,
    find_halves,
    master_weights,
    optimize,
    silenced,
    stored_targets,
    teacher_targets,
)
from secateur.spans import Span

QUICK = ReconstructionSettings(rounds=8, samples_per_step=3, learning_rate=0.03, scale="absolute")


def masked(student: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    copy = deepcopy(student)
    for name, parameter in copy.named_parameters():
        if name in masks:
            parameter.data.masked_fill_(~masks[name], 0.0)
    return copy


def test_error_falls_every_round_on_average_and_the_pattern_holds() -> None:
    teacher, samples = make_block(), make_samples()
    ratios = []
    for seed in range(4):
        student, masks = halved(teacher, seed)
        before = relative_error(masked(student, masks), teacher, samples)
        history, _ = optimize(
            student, teacher_targets(teacher, samples), samples, QUICK, masks=masks
        )
        errors = [record.train_error for record in history.rounds[1:]]
        ratios.append([b / a for a, b in pairwise(errors)])
        after = relative_error(student, teacher, samples)
        assert after < 0.75 * before
        assert history.best_round == 8
        for name, parameter in student.named_parameters():
            if name in masks:
                assert torch.equal(parameter != 0, masks[name])
            assert parameter.requires_grad
            assert parameter.grad is None
    assert (torch.tensor(ratios).mean(dim=0) < 1.0).all()


def test_relative_rates_follow_the_scale_of_the_weights() -> None:
    """Adam's first step is the rate itself, whatever the gradient."""
    teacher, samples = make_block(), make_samples()
    moved = {}
    for factor in (1.0, 8.0):
        student, masks = halved(teacher)
        student.get_parameter("mlp.up.weight").data.mul_(factor)
        before = masked(student, masks).state_dict()
        settings = replace(
            QUICK, rounds=1, samples_per_step=9, scale="relative", schedule="constant"
        )
        optimize(student, teacher_targets(teacher, samples), samples, settings, masks=masks)
        moved[factor] = {k: (v - before[k]).abs() for k, v in student.state_dict().items()}
        weight = before["mlp.up.weight"]
        own = halved(teacher)[0].get_parameter("mlp.up.weight").detach()
        rms = own.square().mean().sqrt() * factor
        # Rates are set before the mask is laid on; Adam's eps takes off a little.
        expected = 0.03 * float(rms) / 8**0.5
        assert float(moved[factor]["mlp.up.weight"].max()) == pytest.approx(expected, rel=1e-3)
        assert float(moved[factor]["first_norm.weight"].max()) == pytest.approx(0.03 / 8, rel=1e-3)
        assert weight.shape[1] == 8


@pytest.mark.parametrize(
    ("changed", "shares"),
    [
        ({"warmup": 0.5}, [1 / 4, 2 / 4, 3 / 4, 1.0, 3 / 4, 1 / 4]),
        ({"warmup": 0.0}, [0.5 + 0.5 * cos(pi * step / 6) for step in range(6)]),
        ({"warmup": 0.5, "samples_per_round": 6}, [1 / 3, 2 / 3, 1.0, 1 / 2]),
        ({"samples_per_round": 99, "schedule": "constant"}, [1.0] * 6),
    ],
)
def test_the_rate_rises_and_falls_over_all_steps_of_all_rounds(
    changed: dict[str, Any], shares: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, samples = make_block(), make_samples()
    rates = []
    step = torch.optim.Adam.step

    def recorded(optimizer: torch.optim.Adam) -> object:
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    student, masks = halved(teacher)
    settings = replace(QUICK, rounds=2, **changed)
    optimize(student, teacher_targets(teacher, samples), samples, settings, masks=masks)
    assert [rate / QUICK.learning_rate for rate in rates] == pytest.approx(shares)


def test_progress_is_told_of_every_round() -> None:
    teacher, samples = make_block(), make_samples()
    student, masks = halved(teacher)
    told = Told()
    settings = replace(QUICK, rounds=2)
    targets = teacher_targets(teacher, samples)
    history, _ = optimize(student, targets, samples, settings, masks=masks, progress=told)
    errors = [f"error {record.train_error:.4f}" for record in history.rounds[1:]]
    assert told.tasks == [("reconstruct", 2, errors)]


@pytest.mark.parametrize("settings", [QUICK, replace(PUBLISHED, learning_rate=0.003)])
def test_the_same_seed_gives_the_same_weights(settings: ReconstructionSettings) -> None:
    teacher, samples = make_block(), make_samples()
    results = []
    for seed in (0, 0, 1):
        student, masks = halved(teacher)
        run = replace(settings, seed=seed)
        history, _ = optimize(student, teacher_targets(teacher, samples), samples, run, masks=masks)
        results.append((student.state_dict(), history.rounds[1:]))
    assert results[0][1] == results[1][1] != results[2][1]
    same = [torch.equal(a, b) for a, b in zip(*(r[0].values() for r in results[:2]), strict=True)]
    assert all(same)


def test_micro_batches_do_not_change_the_steps() -> None:
    teacher, samples = make_block(dtype=torch.float64), make_samples(dtype=torch.float64)
    outcomes = []
    for most in (1, 12, 4096):
        student, masks = halved(teacher)
        settings = replace(QUICK, tokens_per_micro_batch=most)
        optimize(student, teacher_targets(teacher, samples), samples, settings, masks=masks)
        outcomes.append(student.state_dict())
    for other in outcomes[1:]:
        for name, value in outcomes[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("trained", "moved"),
    [
        ("matrices", {"attention.proj.weight", "mlp.up.weight", "mlp.down.weight"}),
        ("matrices_and_vectors", None),
        ("all", None),
    ],
)
def test_only_what_is_trained_moves(trained: str, moved: set[str] | None) -> None:
    teacher, samples = make_block(), make_samples()
    student, masks = halved(teacher)
    start = masked(student, masks).state_dict()
    settings = replace(QUICK, trained=trained)  # type: ignore[arg-type]
    optimize(student, teacher_targets(teacher, samples), samples, settings, masks=masks)
    changed = {k for k, value in student.state_dict().items() if not torch.equal(value, start[k])}
    assert changed == (set(start) if moved is None else moved)


def test_stored_and_computed_targets_are_the_same() -> None:
    teacher, samples = make_block(), make_samples()
    stored = stored_targets(whole_outputs(teacher, samples), samples)
    computed = teacher_targets(teacher, samples)
    for chosen in ([0, 1], [4, 6], [8]):
        torch.testing.assert_close(stored(chosen), computed(chosen), rtol=1e-5, atol=1e-5)


def test_the_best_round_is_kept() -> None:
    teacher, samples = make_block(), make_samples()
    student, masks = halved(teacher)
    # A rate that wrecks the block: nothing beats the block as it came.
    settings = replace(QUICK, learning_rate=50.0, held_out=0.3, schedule="constant")
    start = masked(student, masks).state_dict()
    computed = teacher_targets(teacher, samples)
    history, _ = optimize(student, computed, samples, settings, masks=masks)
    assert history.best_round == 0
    for name, value in student.state_dict().items():
        assert torch.equal(value, start[name])
    held_out = [record.held_out_error for record in history.rounds]
    assert min(e for e in held_out if e is not None) == held_out[0]


def test_masks_come_back_with_the_weights_of_the_best_round() -> None:
    teacher, samples = make_block(), make_samples()
    student, masks = halved(teacher)
    kept = [masks, *(halved(teacher, seed)[1] for seed in range(2, 10))]
    settings = replace(QUICK, learning_rate=50.0, held_out=0.3, schedule="constant")
    targets = teacher_targets(teacher, samples)
    history, best = optimize(student, targets, samples, settings, project=lambda n: kept[n])
    assert history.best_round == 0
    for name, mask in best.items():
        assert torch.equal(mask, masks[name])
        assert torch.equal(student.get_parameter(name) != 0, mask)


class Recorded:
    """A teacher's targets, and which samples were asked for to train on and which to judge by."""

    def __init__(self, teacher: nn.Module, samples: BlockSamples) -> None:
        self._computed = teacher_targets(teacher, samples)
        self.trained_on: set[int] = set()
        self.held_out: set[int] = set()

    def __call__(self, chosen: Sequence[int]) -> Tensor:
        (self.trained_on if torch.is_grad_enabled() else self.held_out).update(chosen)
        return self._computed(chosen)


def test_held_out_samples_are_never_trained_on() -> None:
    teacher, samples = make_block(dtype=torch.float64), make_samples(dtype=torch.float64)
    student, masks = halved(teacher)
    untuned = masked(student, masks)
    targets = Recorded(teacher, samples)
    settings = replace(QUICK, held_out=1 / 3)
    history, _ = optimize(student, targets, samples, settings, masks=masks)
    assert len(targets.held_out) == 3
    assert len(targets.trained_on) == 6
    assert not targets.held_out & targets.trained_on
    errors = [record.held_out_error for record in history.rounds]
    assert errors[history.best_round] == min(e for e in errors if e is not None)
    assert history.rounds[0].held_out_error is not None
    assert isnan(history.rounds[0].train_error)
    # In float64 throughout: some thousand sums of terms that are right to 1e-16.
    with torch.no_grad():
        looked_at = targets.held_out
        outputs = [[samples.run(block, [i]) for i in looked_at] for block in (untuned, teacher)]
    ours, theirs = (torch.cat([output.flatten() for output in found]) for found in outputs)
    before = float((ours - theirs).norm() / theirs.norm())
    assert history.rounds[0].held_out_error == pytest.approx(before, rel=1e-12)


def test_samples_that_share_tokens_with_those_held_out_are_not_trained_on() -> None:
    teacher, samples = make_block(), make_samples()
    targets = Recorded(teacher, samples)

    def tune(spans: tuple[Span, ...]) -> None:
        student, masks = halved(teacher)
        settings = replace(QUICK, held_out=1 / 3)
        optimize(student, targets, replace(samples, spans=spans), settings, masks=masks)

    tune(tuple((10 * n, 10 * n + 6) for n in range(9)))
    assert (len(targets.held_out), len(targets.trained_on)) == (3, 6)
    # Every sample reaches into the next.
    targets.trained_on.clear()
    tune(tuple((3 * n, 3 * n + 6) for n in range(9)))
    near = {n + step for n in targets.held_out for step in (-1, 0, 1)}
    assert targets.trained_on == set(range(9)) - near
    with pytest.raises(SecateurError, match="with the 3 held out, but all 6 others do; give more"):
        tune(((0, 6),) * 9)


def test_nan_stops_with_the_best_so_far() -> None:
    teacher, samples = make_block(), make_samples()
    student, masks = halved(teacher)
    computed = teacher_targets(teacher, samples)
    calls = 0

    def targets(chosen: list[int]) -> Tensor:
        nonlocal calls
        calls += 1
        return computed(chosen) * (torch.nan if calls > 8 else 1.0)

    history, _ = optimize(student, targets, samples, QUICK, masks=masks)  # type: ignore[arg-type]
    assert "not finite" in history.stopped
    assert history.best_round == len(history.rounds) - 1 < 8
    assert all(bool(value.isfinite().all()) for value in student.parameters())
    assert relative_error(student, teacher, samples) < relative_error(
        masked(halved(teacher)[0], masks), teacher, samples
    )


def test_nan_at_once_leaves_the_block_as_it_came() -> None:
    teacher, samples = make_block(), make_samples()
    student, masks = halved(teacher)
    start = masked(student, masks).state_dict()
    history, _ = optimize(
        student,
        lambda chosen: teacher_targets(teacher, samples)(chosen) * torch.nan,
        samples,
        QUICK,
        masks=masks,
    )
    assert history.best_round == 0
    assert all(torch.equal(value, start[name]) for name, value in student.state_dict().items())


def test_projection_comes_before_every_round_and_after_the_last() -> None:
    teacher, samples = make_block(), make_samples()
    student, _ = halved(teacher)
    rounds: list[int] = []
    dense_between: list[bool] = []
    last: dict[str, Tensor] = {}

    def project(finished: int) -> dict[str, Tensor]:
        rounds.append(finished)
        weight = student.get_parameter("mlp.up.weight")
        dense_between.append(bool((weight != 0).all()))
        last["mlp.up.weight"] = weight.abs() >= weight.abs().median()
        return last

    settings = replace(PUBLISHED, learning_rate=0.003, rounds=3)
    history, _ = optimize(
        student, teacher_targets(teacher, samples), samples, settings, project=project
    )
    assert rounds == [0, 1, 2, 3]
    # Within a round pruned weights move: the published way.
    assert all(dense_between)
    assert torch.equal(student.get_parameter("mlp.up.weight") != 0, last["mlp.up.weight"])
    assert [record.num_steps for record in history.rounds] == [0, 9, 18, 27]


def test_a_bfloat16_block_keeps_its_gain_after_the_cast() -> None:
    teacher, samples = make_block(dtype=torch.bfloat16), make_samples(dtype=torch.bfloat16)
    student, masks = halved(teacher)
    before = relative_error(masked(student, masks), teacher, samples)
    outputs = whole_outputs(teacher, samples)
    with master_weights(student, masks):
        optimize(student, stored_targets(outputs, samples), samples, QUICK, masks=masks)
        wide = deepcopy(student)
    assert all(value.dtype == torch.bfloat16 for value in student.parameters())
    assert all(torch.equal(student.get_parameter(n) != 0, mask) for n, mask in masks.items())
    kept = relative_error(student, teacher, samples)
    assert kept < 0.75 * before
    # Rounding to 8 bits moves the output by about 2^-9, in bfloat16 as in the teacher itself.
    exact = relative_error(wide.bfloat16(), teacher, samples)
    assert kept == pytest.approx(exact, abs=2**-7)


def test_halves_are_tuned_one_after_the_other() -> None:
    teacher, samples = make_block(), make_samples()
    student, masks = halved(teacher)
    before = relative_error(masked(student, masks), teacher, samples)
    attention, mlp = find_halves(teacher, samples)
    first = {name: mask for name, mask in masks.items() if name.startswith(attention.name)}
    second = {name: mask for name, mask in masks.items() if name.startswith(mlp.name)}
    with silenced(student, mlp), silenced(teacher, mlp):
        targets = stored_targets(whole_outputs(teacher, samples), samples)
        optimize(student, targets, samples, QUICK, masks=first)
        between = BlockSamples(whole_outputs(student, samples), samples.calls)
    targets = stored_targets(whole_outputs(teacher, samples), samples)
    with silenced(student, attention):
        optimize(student, targets, between, QUICK, masks=second)
    assert relative_error(student, teacher, samples) < 0.75 * before


def test_relative_loss_weighs_every_token_the_same() -> None:
    teacher, samples = make_block(), make_samples()
    huge = [output.clone() for output in whole_outputs(teacher, samples)]
    for output in huge:
        output[:, 0] *= 1e3
    student = deepcopy(teacher)
    kinds = {}
    for loss in ("squared", "relative"):
        settings = replace(QUICK, loss=loss, rounds=1, held_out=0.5)
        history, _ = optimize(deepcopy(student), stored_targets(huge, samples), samples, settings)
        kinds[loss] = history.rounds[0].held_out_error
    # All is right but the first of five or six tokens, whose output is missing almost whole.
    assert kinds["squared"] == pytest.approx(1.0, abs=0.01)
    assert 1 / 6 < kinds["relative"] ** 2 / 0.999**2 < 1 / 5  # type: ignore[operator]


def test_products_may_be_narrower_than_the_masters() -> None:
    teacher, samples = make_block(), make_samples()
    student, masks = halved(teacher)
    before = relative_error(masked(student, masks), teacher, samples)
    optimize(
        student,
        teacher_targets(teacher, samples),
        samples,
        QUICK,
        masks=masks,
        autocast=torch.bfloat16,
    )
    assert all(value.dtype == torch.float32 for value in student.parameters())
    assert relative_error(student, teacher, samples) < 0.75 * before


def test_any_student_may_learn_from_any_teacher() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, hidden: Tensor, **_: Tensor) -> Tensor:
            output: Tensor = self.linear(hidden)
            return output

    teacher, samples = make_block(), make_samples()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = Other()
    before = relative_error(student, teacher, samples)
    optimize(student, teacher_targets(teacher, samples), samples, replace(QUICK, rounds=20))
    assert relative_error(student, teacher, samples) < 0.75 * before


def test_bad_arguments_are_refused() -> None:
    teacher, samples = make_block(), make_samples()
    targets = teacher_targets(teacher, samples)
    with pytest.raises(SecateurError, match=r"got torch.bfloat16 in .* use master_weights"):
        optimize(make_block(dtype=torch.bfloat16), targets, samples, QUICK)
    with pytest.raises(SecateurError, match=r"trained = .matrices. matches no parameter"):
        optimize(make_block(), targets, samples, replace(QUICK, trained="matrices"))
    bad = {"mlp.up.weight": torch.ones(2, 2, dtype=torch.bool)}
    with pytest.raises(SecateurError, match=r"bool mask in the shape of mlp\.up\.weight"):
        optimize(make_block(), targets, samples, QUICK, masks=bad)
    with pytest.raises(SecateurError, match=r"bool mask in the shape of mlp\.up\.weight"):
        optimize(make_block(), targets, samples, QUICK, project=lambda _: bad)
    with pytest.raises(SecateurError, match="of no_such"):
        optimize(make_block(), targets, samples, QUICK, masks={"no_such": torch.ones(1).bool()})
    with pytest.raises(SecateurError, match=r"hold 0\.01 of them out, got 9"):
        optimize(make_block(), targets, samples, replace(QUICK, held_out=0.01))


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"optimizer": "sgd"}, "optimizer one of adam, rmsprop, got 'sgd'"),
        ({"loss": "kl"}, "loss one of squared, relative, got 'kl'"),
        ({"learning_rate": 0.0}, "a learning_rate above 0, got 0.0"),
        ({"learning_rate": inf}, "a learning_rate above 0, got inf"),
        ({"schedule": "linear"}, "schedule one of cosine, constant, got 'linear'"),
        ({"second_moment": 0.0}, "0 < second_moment < 1, got 0.0"),
        ({"second_moment": 1.0}, "0 < second_moment < 1, got 1.0"),
        ({"warmup": -0.1}, "0 <= warmup < 1"),
        ({"warmup": 1.0}, "0 <= warmup < 1"),
        ({"held_out": -0.1}, "0 <= held_out < 1"),
        ({"held_out": 1.0}, "0 <= held_out < 1"),
        ({"scale": "log"}, "scale one of relative, absolute, got 'log'"),
        ({"rounds": 0}, "rounds of at least 1, got 0"),
        ({"samples_per_step": 0}, "samples_per_step of at least 1, got 0"),
        ({"tokens_per_micro_batch": 0}, "tokens_per_micro_batch of at least 1, got 0"),
        ({"samples_per_round": 0}, "samples_per_round of at least 1, got 0"),
        ({"trained": "norms"}, "trained one of all, matrices, matrices_and_vectors"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, object], fault: str) -> None:
    with pytest.raises(SecateurError, match=fault):
        ReconstructionSettings(**values)  # type: ignore[arg-type]
