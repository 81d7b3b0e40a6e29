"""What is timed; no test looks at how long it took."""

import pytest
import torch
from families import tiny_model
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.evaluate.speed import decode_tokens_per_second, prefill_tokens_per_second

PROMPT = torch.arange(3, 10).unsqueeze(0)


class Noted(nn.Module):
    """A model that notes who was called, and with what."""

    def __init__(self, name: str, calls: list[tuple[str, list[int], int]]) -> None:
        super().__init__()
        self.name = name
        self.calls = calls
        self.inner = tiny_model("llama")
        # What a model was trained with does not matter.
        self.inner.config.use_cache = False

    def forward(self, input_ids: Tensor, past_key_values: object = None, **more: object) -> object:
        length = past_key_values.get_seq_length() if past_key_values is not None else 0  # type: ignore[attr-defined]
        self.calls.append((self.name, input_ids[0].tolist(), length))
        return self.inner(input_ids=input_ids, past_key_values=past_key_values, **more)


def test_decode_takes_greedy_steps_with_the_cache_in_turns() -> None:
    calls: list[tuple[str, list[int], int]] = []
    models = {name: Noted(name, calls) for name in ("a", "b")}
    speeds = decode_tokens_per_second(models, PROMPT, num_tokens=3, rounds=2)
    assert speeds.keys() == models.keys()
    assert all(speed > 0 for speed in speeds.values())
    assert [name for name, _, _ in calls] == (["a"] * 4 + ["b"] * 4) * 3
    expected = tiny_model("llama").generate(
        input_ids=PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        max_new_tokens=3,
        min_new_tokens=3,
        eos_token_id=None,
        do_sample=False,
    )
    tokens = [token for _, ids, _ in calls[1:4] for token in ids]
    assert tokens == expected[0, 7:].tolist()
    assert [length for _, _, length in calls[:4]] == [0, 7, 8, 9]


def test_prefill_takes_turns_too() -> None:
    calls: list[tuple[str, list[int], int]] = []
    models = {name: Noted(name, calls) for name in ("a", "b")}
    speeds = prefill_tokens_per_second(models, PROMPT, rounds=2)
    assert [name for name, _, _ in calls] == ["a", "b"] * 3
    assert all(speed > 0 for speed in speeds.values())


@pytest.mark.parametrize(
    ("ids", "steps", "message"),
    [
        (PROMPT.expand(2, 7), 3, r"got \[2, 7\] and 3"),
        (PROMPT[0], 3, r"got \[7\] and 3"),
        (PROMPT, 0, r"got \[1, 7\] and 0"),
    ],
)
def test_refuses_what_cannot_be_decoded(ids: Tensor, steps: int, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        decode_tokens_per_second({}, ids, steps)
