"""Gradients of the whole model's loss, against finite differences and plain autograd."""

import copy
import math

import pytest
import torch
from families import VOCAB_SIZE, tiny_model
from torch import Tensor, nn

from secateur.calibration.model_gradients import model_gradients
from secateur.calibration.tokens import CalibrationTokens
from secateur.compress import compress_with_report
from secateur.errors import SecateurError
from secateur.models.inventory import take_inventory
from secateur.models.sites import WeightSite
from secateur.parallel import Parallel

CPU = torch.device("cpu")
LENGTHS = (7, 12, 9)


def some_tokens(lengths: tuple[int, ...] = LENGTHS) -> CalibrationTokens:
    generator = torch.Generator().manual_seed(2)
    draws = (torch.randint(3, VOCAB_SIZE, (length,), generator=generator) for length in lengths)
    return CalibrationTokens(tuple(draws), "random tokens")


def sites_of(model: nn.Module) -> list[WeightSite]:
    return take_inventory(model).all_sites


def loss_of(model: nn.Module, sample: Tensor) -> Tensor:
    """The mean of -log p(token | tokens before), written anew."""
    logits = model(input_ids=sample[None], use_cache=False).logits[0]
    terms = [
        torch.logsumexp(logits[place], dim=0) - logits[place, int(sample[place + 1])]
        for place in range(len(sample) - 1)
    ]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_gradients_are_finite_differences(family: str) -> None:
    """On families that round nothing to fp32 in between."""
    model, tokens = tiny_model(family).double(), some_tokens()
    sites = sites_of(model)
    found = model_gradients(model, sites, tokens, CPU, Parallel())
    assert found.keys() == {site.name for site in sites}
    generator = torch.Generator().manual_seed(0)
    step = 1e-5
    for site in sites:
        assert found[site.name].shape == site.shape
        assert found[site.name].dtype == torch.float64
        row, column = (int(torch.randint(n, (1,), generator=generator)) for n in site.shape)
        squares = 0.0
        for sample in tokens.samples:
            losses = []
            for sign in (1.0, -1.0):
                site.weight[row, column] += sign * step
                with torch.no_grad():
                    losses.append(float(loss_of(model, sample)))
                site.weight[row, column] -= sign * step
            squares += ((losses[0] - losses[1]) / (2 * step)) ** 2
        # Central differences: step^2 of the third derivative, and 1e-16 / step of rounding.
        wanted = math.sqrt(squares)
        assert float(found[site.name][row, column]) == pytest.approx(wanted, rel=1e-5, abs=1e-8)
        assert wanted > 1e-6


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_gradients_are_those_of_every_sample_alone(family: str) -> None:
    model, tokens = tiny_model(family).double(), some_tokens()
    if family == "mixtral":
        # Grouped products know no float64.
        model.set_experts_implementation("eager")
    sites = sites_of(model)
    found = model_gradients(model, sites, tokens, CPU, Parallel())
    parameters = list({id(site.parameter): site.parameter for site in sites}.values())
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    for sample in tokens.samples:
        gradients = torch.autograd.grad(loss_of(model, sample), parameters)
        for total, gradient in zip(squares, gradients, strict=True):
            total += gradient**2
    roots = {id(p): total.sqrt() for p, total in zip(parameters, squares, strict=True)}
    for site in sites:
        whole = roots[id(site.parameter)]
        part = whole if site.expert is None else whole[site.expert]
        wanted = part.T if site.stored_transposed else part
        # These families round to fp32 in their norms, forward and backward.
        torch.testing.assert_close(found[site.name], wanted, rtol=1e-4, atol=1e-6)


def test_nothing_but_the_sums_is_left_behind() -> None:
    model, tokens = tiny_model("llama"), some_tokens()
    sites = sites_of(model)[2:5]
    before = copy.deepcopy(model.state_dict())
    first = next(iter(model.parameters()))
    first.requires_grad_(False)
    told: list[int] = []
    found = model_gradients(model, sites, tokens, CPU, Parallel(), lambda: told.append(1))
    assert len(told) == len(LENGTHS)
    assert found.keys() == {site.name for site in sites}
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_gradients_of_a_training_take_no_part_and_stay() -> None:
    model, tokens = tiny_model("llama", 1), some_tokens()
    sites = sites_of(model)
    clean = model_gradients(model, sites, tokens, CPU, Parallel())
    left = {name: torch.full_like(p, 3.0) for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = left[name]
    found = model_gradients(model, sites, tokens, CPU, Parallel())
    assert all(torch.equal(found[name], gradient) for name, gradient in clean.items())
    for name, parameter in model.named_parameters():
        assert parameter.grad is left[name]
        assert bool((parameter.grad == 3.0).all())


def test_no_sample_reaches_an_expert_that_is_not_chosen() -> None:
    model, tokens = tiny_model("mixtral", 1), some_tokens((3,))
    sites = sites_of(model)
    found = model_gradients(model, sites, tokens, CPU, Parallel())
    idle = [site for site in sites if not bool(found[site.name].any())]
    assert 0 < len(idle) < len(sites)
    assert all(site.expert is not None for site in idle)


def test_gradients_that_are_not_finite_are_refused() -> None:
    model = tiny_model("llama", 1)
    with torch.no_grad():
        model.get_submodule("model.norm").weight.fill_(1e38)
    with pytest.raises(SecateurError, match="finite gradients of the model's loss, but those of"):
        model_gradients(model, sites_of(model), some_tokens(), CPU, Parallel())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_recipe_prunes_by_the_published_score(family: str) -> None:
    """Against scores in float64 from plain autograd, on the first matrices of block 0."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCAB_SIZE, (5, 11), generator=generator)
    recipe = {"stages": [{"stage": "prune", "method": "gblm", "pattern": "2:4", "alpha": 20.0}]}
    model, report = compress_with_report(tiny_model(family), recipe, calibration=ids)
    dense = tiny_model(family).double()
    # What reaches the first matrix of block 0 is that of the dense model.
    site = sites_of(dense)[0]
    inputs: list[Tensor] = []
    site.module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()[0]))
    squares = torch.zeros(site.parameter.shape, dtype=torch.float64)
    for sample in ids:
        squares += torch.autograd.grad(loss_of(dense, sample), site.parameter)[0].square()
    gradient = squares.sqrt().T if site.stored_transposed else squares.sqrt()
    norm = (torch.cat(inputs).square().sum(dim=0) / len(ids)).sqrt()
    score = site.weight.abs() * (20.0 * gradient + norm)
    groups = score.reshape(len(score), -1, 4)
    chosen = (sites_of(model)[0].weight != 0).reshape(groups.shape)
    assert bool((chosen.sum(dim=2) == 2).all())
    least = groups.masked_fill(~chosen, torch.inf).amin(dim=2)
    most = groups.masked_fill(chosen, 0.0).amax(dim=2)
    assert bool((least >= most * (1 - 1e-4)).all())
    by_norm = (site.weight.abs() * norm).reshape(groups.shape).topk(2, dim=2).indices
    assert not bool(chosen.gather(2, by_norm).all())
    assert report.stages[0].method == "gblm"
