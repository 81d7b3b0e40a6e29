"""Loaded shards become the fewest modules that compute them; needs no vLLM."""

import pytest
import torch
from torch import Tensor
from vllm_plugin.stored import DTYPE, Stored, expected, stored

from secateur.errors import SecateurError
from secateur.integrations.vllm.segments import LoadedShard, apply_segments, build_segments
from secateur.integrations.vllm.shards import Shard
from secateur_kernels.testing.tolerance import assert_same_bits, assert_within

COLUMNS = 20


def loaded(index: int, layer: Stored, down_of: int | None = None) -> LoadedShard:
    rows = len(layer.tensors["up"] if "up" in layer.tensors else layer.tensors["weight"])
    shard = Shard(
        name=f"layer{index}",
        rows=rows,
        columns=COLUMNS,
        spec=layer.spec,
        down_of=index if down_of is None else down_of,
    )
    return LoadedShard(shard, layer.tensors)  # type: ignore[arg-type]


def layers(*kinds: str, ranks: tuple[int, ...] = ()) -> list[Stored]:
    ranks = ranks or (16,) * len(kinds)
    return [stored(kind, 9 + 7 * i, COLUMNS, ranks[i], seed=i) for i, kind in enumerate(kinds)]


def inputs() -> Tensor:
    return torch.randn(3, COLUMNS, generator=torch.Generator().manual_seed(5)).to(DTYPE)


@pytest.mark.parametrize(
    ("kinds", "ranks", "num_segments"),
    [
        (("dense", "dense"), (), 1),
        (("sparse24", "sparse24", "dense", "sparse24"), (), 3),
        (("low_rank", "low_rank"), (3, 16), 1),
        (("low_rank", "low_rank"), (3, 17), 2),
        (("sparse24_low_rank", "sparse24_low_rank", "low_rank"), (5, 4, 5), 2),
    ],
)
def test_neighbours_of_one_form_are_one_module(
    kinds: tuple[str, ...], ranks: tuple[int, ...], num_segments: int
) -> None:
    parts = layers(*kinds, ranks=ranks)
    segments = build_segments([loaded(index, part) for index, part in enumerate(parts)])
    assert len(segments) == num_segments
    assert not any(parameter.requires_grad for parameter in segments.parameters())
    y = apply_segments(segments, inputs())
    start = 0
    for part, kind in zip(parts, kinds, strict=True):
        result = expected(part, inputs())
        stop = start + result.value.shape[1]
        assert_within(y[:, start:stop], result, kind)
        start = stop
    assert start == y.shape[1]


def test_the_bias_is_divided() -> None:
    parts = layers("sparse24", "low_rank")
    bias = torch.arange(9 + 16).to(DTYPE)
    shards = [loaded(index, part) for index, part in enumerate(parts)]
    segments = build_segments(shards, bias)
    assert_same_bits(segments[0].bias.detach(), bias[:9])
    assert_same_bits(segments[1].bias.detach(), bias[9:])


def test_weights_do_not_hold_on_to_what_was_loaded() -> None:
    parts = layers("dense", "low_rank")
    segments = build_segments([loaded(index, part) for index, part in enumerate(parts)])
    kept = {parameter.data_ptr() for parameter in segments.parameters()}
    assert not kept & {tensor.data_ptr() for part in parts for tensor in part.tensors.values()}


def test_corrupt_weights_are_named() -> None:
    (part,) = layers("sparse24")
    part.tensors["indices"].zero_()
    with pytest.raises(SecateurError, match="layer0: "):
        build_segments([loaded(0, part)])
