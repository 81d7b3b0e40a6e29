"""The name of the cache is the one that a model's own `forward` goes by."""

import pytest
from families import tiny_model
from integrations.compact_models import IDS
from torch import Tensor, nn

from secateur.models.cache_name import cache_name


class Old(nn.Module):
    def forward(self, input_ids: Tensor, past_key_values: object = None) -> None: ...


class New(nn.Module):
    def forward(self, input_ids: Tensor, cache: object = None) -> None: ...


class Neither(nn.Module):
    def forward(self, input_ids: Tensor) -> None: ...


@pytest.mark.parametrize(
    ("kind", "name"), [(Old, "past_key_values"), (New, "cache"), (Neither, "past_key_values")]
)
def test_the_name_is_that_of_the_argument(kind: type[nn.Module], name: str) -> None:
    assert cache_name(kind()) == name


def test_models_take_and_return_a_cache_of_that_name(recwarn: pytest.WarningsRecorder) -> None:
    model = tiny_model("llama")
    name = cache_name(model)
    begun = model(input_ids=IDS[:, :-1], use_cache=True)
    model(input_ids=IDS[:, -1:], use_cache=True, **{name: begun[name]})
    assert begun[name].get_seq_length() == IDS.shape[1]
    assert not [warning for warning in recwarn if name in str(warning.message)]
