"""What the layers of a checkpoint are in a layer of vLLM, which may fuse several of them.

`qkv_proj` holds the rows of q_proj, k_proj and v_proj, one below the other; each is a shard, and
each may be dense or compressed in its own way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from secateur.errors import SecateurError
from secateur.integrations.layer_specs import CompactLayers, LayerSpec

Leaf = Literal["weight", "indices", "down", "up"]
LEAVES: tuple[Leaf, ...] = ("weight", "indices", "down", "up")

# Tensors of which a rank holds some rows where outputs are divided, or columns where inputs are.
CUT_BY_ROWS = ("weight", "indices", "up")
CUT_BY_COLUMNS = ("weight", "indices", "down")

_COLUMNS_PER_BYTE = 8


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One logical matrix of a layer, as far as this rank holds it."""

    name: str
    """Of the layer in the checkpoint."""
    rows: int
    columns: int
    spec: LayerSpec | None
    """None: dense."""
    down_of: int
    """Index of the shard that holds its `down`; its own, if it has one."""

    def shapes(self, index: int) -> dict[Leaf, tuple[int, int]]:
        """The tensors of the shard, which is the layer's number `index`, as stored."""
        rows, columns, spec = self.rows, self.columns, self.spec
        if spec is None:
            return {"weight": (rows, columns)}
        shapes: dict[Leaf, tuple[int, int]] = {}
        if spec.kind != "low_rank":
            shapes["weight"] = (rows, columns // 2)
            shapes["indices"] = (rows, -(-columns // _COLUMNS_PER_BYTE))
        if spec.rank is not None:
            shapes["up"] = (rows, spec.rank)
            if self.down_of == index:
                shapes["down"] = (spec.rank * len(spec.group_rows or (rows,)), columns)
        return shapes


def names_in(prefix: str, fused: Mapping[str, Sequence[str]], layers: CompactLayers) -> list[str]:
    """What a checkpoint calls the matrices of a layer of vLLM.

    Args:
        prefix: vLLM's name of the layer.
        fused: last part of a fused layer's name -> those of its matrices
            (`packed_modules_mapping` of the model's class).
        layers: the compressed layers; one that is fused in the checkpoint too goes by its own name.
    """
    parent, dot, last = prefix.rpartition(".")
    if prefix in layers.specs or last not in fused:
        return [prefix]
    return [f"{parent}{dot}{name}" for name in fused[last]]


def shards_of(
    names: Sequence[str],
    layers: CompactLayers,
    rows: Sequence[int],
    columns: int,
    whole_rows: Sequence[int],
    whole_columns: int,
) -> list[Shard]:
    """The matrices of a layer and what this rank holds of each.

    Args:
        names: of the matrices in the checkpoint; one name for several matrices that it holds fused.
        layers: the compressed layers of the checkpoint.
        rows: of each matrix on this rank.
        columns: on this rank.
        whole_rows: of each matrix on all ranks together.
        whole_columns: on all ranks together.

    Raises:
        SecateurError: a matrix cannot be divided or fused so; names it.
    """
    if len(names) not in (1, len(rows)):
        raise SecateurError(
            f"expected {len(rows)} matrices in one layer of vLLM, got {list(names)}"
        )
    fused_on_disk = len(names) < len(rows)
    shards = []
    for index, count in enumerate(rows):
        name = names[0] if fused_on_disk else names[index]
        spec = layers.specs.get(name)
        shard = Shard(name=name, rows=count, columns=columns, spec=spec, down_of=index)
        if spec is not None and spec.rank is not None:
            shard = _with_down(shard, index, names, layers, whole_rows)
        _check_division(shard, whole_rows[index], whole_columns)
        shards.append(shard)
    return shards


def _with_down(
    shard: Shard,
    index: int,
    names: Sequence[str],
    layers: CompactLayers,
    whole_rows: Sequence[int],
) -> Shard:
    """Say where the `down` of a shard with factors lies."""
    assert shard.spec is not None
    if len(names) < len(whole_rows):
        groups = shard.spec.group_rows
        if groups is None:
            return replace(shard, down_of=0)
        if tuple(groups) != tuple(whole_rows):
            raise SecateurError(
                f"{shard.name}: expected groups of factors as vLLM divides the layer, "
                f"{list(whole_rows)} rows, got {list(groups)}"
            )
        return replace(shard, spec=replace(shard.spec, group_rows=None))
    leader = layers.shared_down.get(shard.name)
    if leader is None:
        return shard
    if leader not in names:
        raise SecateurError(
            f"{shard.name} shares the down of {leader}, which vLLM does not fuse with it"
        )
    return replace(shard, down_of=names.index(leader))


def _check_division(shard: Shard, whole_rows: int, whole_columns: int) -> None:
    spec, where = shard.spec, f"{shard.name} [{whole_rows}, {whole_columns}]"
    if spec is None:
        return
    if spec.kind != "low_rank" and whole_columns % 4:
        raise SecateurError(f"{where}: expected columns divisible by 4 for 2:4")
    if spec.kind != "low_rank" and shard.columns != whole_columns:
        if shard.columns % _COLUMNS_PER_BYTE:
            raise SecateurError(
                f"{where}: expected columns that divide into multiples of {_COLUMNS_PER_BYTE} for "
                f"tensor parallelism (two groups of 2:4 share a byte of indices), got "
                f"{shard.columns} a rank"
            )
    if spec.group_rows is not None:
        if sum(spec.group_rows) != whole_rows:
            raise SecateurError(
                f"{where}: expected group_rows that add up to {whole_rows}, got "
                f"{list(spec.group_rows)}"
            )
        if shard.rows != whole_rows:
            raise SecateurError(
                f"{where}: factors in {len(spec.group_rows)} groups of rows cannot be divided by "
                "rows for tensor parallelism"
            )
