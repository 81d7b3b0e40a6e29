from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from secateur.errors import SecateurError
from secateur.evaluate import forward
from secateur.evaluate.forward import (
    check_token_ids,
    evaluating,
    input_device,
    token_log_probs,
)
from secateur.models.blocks import context_length


def test_context_length_is_that_of_the_config(model: LlamaForCausalLM) -> None:
    assert context_length(model) == 48


def test_context_length_of_a_nested_config() -> None:
    module = nn.Linear(2, 2)
    text_config = SimpleNamespace(max_position_embeddings=7)
    module.config = SimpleNamespace(get_text_config=lambda: text_config)  # type: ignore[assignment]
    assert context_length(module) == 7


def test_context_length_may_be_unknown() -> None:
    assert context_length(nn.Linear(2, 2)) is None


def test_input_device_of_an_offloaded_model() -> None:
    module = nn.Linear(2, 2)
    embedding = nn.Embedding(4, 2, device="meta")
    module.get_input_embeddings = lambda: embedding  # type: ignore[assignment]
    assert input_device(module) == torch.device("cpu")


def test_model_without_embeddings_is_refused() -> None:
    with pytest.raises(SecateurError, match="with input embeddings, but got Linear"):
        input_device(nn.Linear(2, 2))


@pytest.mark.parametrize("token", [-1, 288])
def test_token_outside_the_vocabulary_is_refused(model: LlamaForCausalLM, token: int) -> None:
    with pytest.raises(SecateurError, match=f"from 0 to 287, .* but got {token}: is the token"):
        check_token_ids(model, torch.tensor([3, token]))


def test_evaluating_restores_every_module_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].eval()

    def fail_inside() -> None:
        with evaluating(model):
            assert not model[1].training
            assert not torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert [module.training for module in model.modules()] == [True, False, True]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("max_logits", [1, 35, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_do_not_depend_on_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, max_logits: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(forward, "_MAX_FP32_LOGITS", max_logits)
    generator = torch.Generator().manual_seed(1)
    logits = (30 * torch.randn(13, 17, generator=generator)).to(dtype)
    targets = torch.randint(17, (13,), generator=generator)
    expected = logits.double().log_softmax(-1)[torch.arange(13), targets]
    actual = token_log_probs(logits, targets)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_log_prob_that_is_not_a_number_is_minus_infinity() -> None:
    logits = torch.tensor([[0.0, torch.nan], [0.0, torch.inf], [0.0, -torch.inf], [0.0, 0.0]])
    actual = token_log_probs(logits, torch.tensor([0, 1, 1, 1]))
    assert actual[:3].tolist() == [-torch.inf] * 3
    assert actual[3] == pytest.approx(-0.6931472)
