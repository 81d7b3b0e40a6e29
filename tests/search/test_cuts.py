import pytest
import torch
from families import tiny_model

from secateur.errors import SecateurError
from secateur.models.inventory import take_inventory
from secateur.search.cuts import CutMatrix, replaced


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_same(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = weights(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_come_back_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    before = weights(model)
    sites = take_inventory(model).all_sites
    cut = {site: CutMatrix(site).weight(0.25) for site in sites}
    with replaced(cut):
        for site, weight in cut.items():
            assert torch.equal(site.weight, weight)
            assert weight.dtype == dtype
            assert not torch.equal(weight, before_of(before, site.name, site.stored_transposed))
    assert_same(model, before)


def before_of(before: dict[str, torch.Tensor], name: str, transposed: bool) -> torch.Tensor:
    weight = before[f"{name}.weight"]
    return weight.T if transposed else weight


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_matrices_come_back_whatever_happens(kind: type[BaseException]) -> None:
    model = tiny_model("llama")
    before = weights(model)
    site = take_inventory(model).all_sites[0]

    def fail() -> None:
        with replaced({site: torch.zeros(site.shape)}):
            assert not site.weight.any()
            raise kind

    with pytest.raises(kind):
        fail()
    assert_same(model, before)
    # Also when a second matrix does not fit.
    other = take_inventory(model).all_sites[1]
    with pytest.raises(RuntimeError), replaced({site: site.weight * 0, other: torch.zeros(3, 3)}):
        pass
    assert_same(model, before)


def test_kept_and_discarded_add_up_and_have_the_rank() -> None:
    model = tiny_model("llama").double()
    site = take_inventory(model).all_sites[0]
    matrix = CutMatrix(site)
    kept, rest = matrix.weight(0.25), matrix.weight(0.25, "discarded")
    assert torch.linalg.matrix_rank(kept) == 8
    assert torch.linalg.matrix_rank(rest) == min(site.shape) - 8
    torch.testing.assert_close(kept + rest, site.weight, rtol=0, atol=1e-13)
    first = matrix.svd()
    assert matrix.svd() is first


def test_names_the_matrix_that_is_not_finite() -> None:
    model = tiny_model("llama")
    site = take_inventory(model).all_sites[3]
    site.weight[0, 0] = torch.nan
    with pytest.raises(SecateurError, match=r"model\.layers\.0\.self_attn\.o_proj: .* NaN or Inf"):
        CutMatrix(site).weight(0.5)
