"""Which matrices a fused layer holds and how they are divided; needs no vLLM."""

from collections.abc import Sequence
from typing import Any

import pytest

from secateur.errors import SecateurError
from secateur.integrations.layer_specs import CompactLayers, LayerSpec
from secateur.integrations.vllm.shards import names_in, shards_of

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
SPARSE = LayerSpec(kind="sparse24", bias=False)


def low_rank(rank: int, groups: tuple[int, ...] | None = None) -> LayerSpec:
    return LayerSpec(kind="low_rank", bias=False, rank=rank, group_rows=groups)


def shards(
    specs: dict[str, LayerSpec],
    names: Sequence[str],
    rows: Sequence[int],
    ranks: int = 1,
    **more: Any,
) -> Any:
    whole = [ranks * count for count in rows]
    columns = more.pop("columns", 16)
    layers = CompactLayers(specs, more.pop("shared", {}))
    return shards_of(names, layers, rows, columns, whole, more.pop("whole_columns", columns))


def test_names_are_those_of_the_checkpoint() -> None:
    layers = CompactLayers({"b.qkv_proj": SPARSE})
    assert names_in("a.qkv_proj", FUSED, layers) == ["a.q_proj", "a.k_proj", "a.v_proj"]
    assert names_in("b.qkv_proj", FUSED, layers) == ["b.qkv_proj"]
    assert names_in("qkv_proj", FUSED, layers) == ["q_proj", "k_proj", "v_proj"]
    assert names_in("a.o_proj", FUSED, layers) == ["a.o_proj"]


def test_every_shard_has_the_tensors_of_its_form() -> None:
    both = LayerSpec(kind="sparse24_low_rank", bias=False, rank=3)
    specs = {"b": SPARSE, "c": low_rank(5), "d": both}
    found = shards(specs, ["a", "b", "c", "d"], [6, 7, 8, 9], columns=20)
    assert [shard.shapes(index) for index, shard in enumerate(found)] == [
        {"weight": (6, 20)},
        {"weight": (7, 10), "indices": (7, 3)},
        {"up": (8, 5), "down": (5, 20)},
        {"weight": (9, 10), "indices": (9, 3), "up": (9, 3), "down": (3, 20)},
    ]


def test_a_shared_down_is_stored_by_its_leader() -> None:
    specs = {"a": low_rank(4), "b": low_rank(4)}
    found = shards(specs, ["a", "b"], [6, 6], shared={"a": "b"})
    assert [shard.down_of for shard in found] == [1, 1]
    assert found[0].shapes(0) == {"up": (6, 4)}
    assert found[1].shapes(1) == {"up": (6, 4), "down": (4, 16)}


def test_fused_in_the_checkpoint() -> None:
    one = shards({"a": low_rank(4)}, ["a"], [6, 2])
    assert [shard.down_of for shard in one] == [0, 0]
    several = shards({"a": low_rank(4, (12, 4))}, ["a"], [6, 2], ranks=2)
    assert [shard.down_of for shard in several] == [0, 1]
    assert [shard.shapes(i)["down"] for i, shard in enumerate(several)] == [(4, 16), (4, 16)]


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (({}, ["a", "b"], [4, 4, 4]), {}, "expected 3 matrices"),
        (({"a": SPARSE}, ["a"], [4]), {"columns": 6}, r"a \[4, 6\]: .* divisible by 4 for 2:4"),
        (
            ({"a": SPARSE}, ["a"], [4]),
            {"columns": 12, "whole_columns": 24},
            r"a \[4, 24\]: expected columns that divide into multiples of 8 .* 12 a rank",
        ),
        (
            ({"a": low_rank(4), "b": low_rank(4)}, ["a"], [4]),
            {"shared": {"a": "b"}},
            "a shares the down of b, which vLLM does not fuse with it",
        ),
        (({"a": low_rank(4, (3, 5))}, ["a"], [4, 4]), {}, r"\[4, 4\] rows, got \[3, 5\]"),
        (({"a": low_rank(4, (3, 4))}, ["a"], [8]), {}, r"add up to 8, got \[3, 4\]"),
        (({"a": low_rank(4, (4, 12))}, ["a"], [8]), {"ranks": 2}, "cannot be divided by rows"),
    ],
)
def test_what_cannot_be_served_is_refused(
    arguments: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(SecateurError, match=message):
        shards(*arguments, **more)
