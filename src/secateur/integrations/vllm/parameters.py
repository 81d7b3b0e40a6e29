"""Parameters of vLLM's layers whose shards may have different shapes, and records of loading."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.parameter import BasevLLMParameter

from secateur.errors import SecateurError
from secateur.integrations.vllm.shards import CUT_BY_COLUMNS, CUT_BY_ROWS, Leaf, Shard
from secateur_kernels.layouts.pattern import PADDING_NIBBLE

Loader = Callable[..., None]

# Two groups that hold their columns 0 and 1.
_SOME_INDICES = PADDING_NIBBLE | PADDING_NIBBLE << 4
_QKV = {"q": 0, "k": 1, "v": 2}


class ShardedParameter(BasevLLMParameter):  # type: ignore[misc]
    """One tensor of every shard that has it, in flat memory; notes what was loaded.

    vLLM's loaders say which shard of which rank a tensor from a checkpoint is; the cut is made here
    in the canonical layout, which may be cut anywhere by rows and at multiples of 8 by columns.
    """

    def __init__(
        self, data: Tensor, weight_loader: Loader, leaf: Leaf, shards: Mapping[int, Shard]
    ) -> None:
        """Take flat memory for the tensors.

        Args:
            data: flat, as many elements as all tensors together.
            weight_loader: of vLLM's layer.
            leaf: what the tensors are.
            shards: by their place in the layer, those that have such a tensor.
        """
        super().__init__(data=data, weight_loader=weight_loader)
        self.leaf = leaf
        self.shards = dict(shards)
        self.loaded: set[int] = set()
        self._places: dict[int, tuple[int, tuple[int, int]]] = {}
        offset = 0
        for index, shard in self.shards.items():
            shape = shard.shapes(index)[leaf]
            self._places[index] = (offset, shape)
            offset += shape[0] * shape[1]

    @classmethod
    def empty(
        cls, leaf: Leaf, shards: Mapping[int, Shard], dtype: torch.dtype, weight_loader: Loader
    ) -> "ShardedParameter":
        """Memory for tensors that are to be loaded."""
        shapes = [shard.shapes(index)[leaf] for index, shard in shards.items()]
        size = sum(rows * columns for rows, columns in shapes)
        data = torch.empty(size, dtype=dtype)
        return cls(data=data, weight_loader=weight_loader, leaf=leaf, shards=shards)

    @property
    def output_dim(self) -> int:
        """Of tensors that hold several shards on disk already: vLLM cuts them along it."""
        return 0

    def block(self, index: int) -> Tensor:
        """The tensor [rows, columns] of a shard, as a view."""
        offset, shape = self._places[index]
        data: Tensor = self.data
        return data[offset : offset + shape[0] * shape[1]].view(shape)

    @property
    def missing(self) -> list[str]:
        """Tensors of the checkpoint that were not loaded."""
        return [
            f"{shard.name}.{self.leaf}"
            for index, shard in self.shards.items()
            if index not in self.loaded
        ]

    def take_as_loaded(self) -> None:
        """Nothing will be loaded: whoever fills tensors anyhow leaves indices as they are."""
        if self.leaf == "indices":
            self.data.fill_(_SOME_INDICES)
        self.loaded.update(self.shards)

    def load_column_parallel_weight(self, loaded_weight: Tensor) -> None:
        """Load the rows of this rank."""
        self._load(0, loaded_weight, row_part=(self.tp_rank, self.tp_size))

    def load_row_parallel_weight(self, loaded_weight: Tensor) -> None:
        """Load the columns of this rank."""
        self._load(0, loaded_weight, column_part=(self.tp_rank, self.tp_size))

    def load_merged_column_weight(
        self, loaded_weight: Tensor, *, shard_id: int, **places: Any
    ) -> None:
        """Load the rows of this rank of one shard."""
        self._load(shard_id, loaded_weight, row_part=(self.tp_rank, self.tp_size))

    def load_qkv_weight(
        self, loaded_weight: Tensor, *, shard_id: str, num_heads: int, **places: Any
    ) -> None:
        """Load the rows of this rank of q, k or v; `num_heads` ranks hold the same of k and v."""
        copies = 1 if shard_id == "q" else num_heads
        part = (self.tp_rank // copies, self.tp_size // copies)
        self._load(_QKV[shard_id], loaded_weight, row_part=part)

    def load_whole(self, loaded_weight: Tensor) -> None:
        """Load the only shard of a layer that every rank holds in full."""
        self._load(0, loaded_weight)

    def load_fused_down(self, loaded_weight: Tensor) -> None:
        """Load the `down` of shards that the checkpoint holds fused, group after group."""
        sizes = [self.block(index).shape[0] for index in self.shards]
        names = {shard.name for shard in self.shards.values()}
        if sum(sizes) != loaded_weight.shape[0]:
            raise SecateurError(
                f"{', '.join(names)}.{self.leaf}: expected {sum(sizes)} rows, got "
                f"{loaded_weight.shape[0]}"
            )
        for index, rows in zip(self.shards, loaded_weight.split(sizes), strict=True):
            self._load(index, rows)

    def _load(
        self,
        index: int,
        loaded: Tensor,
        *,
        row_part: tuple[int, int] = (0, 1),
        column_part: tuple[int, int] = (0, 1),
    ) -> None:
        shard = self.shards.get(index)
        if shard is None:
            raise SecateurError(
                f"got a tensor {self.leaf} for shard {index} of a layer that holds "
                f"{', '.join(s.name for s in self.shards.values())}: the configuration does not "
                "list such a form for it"
            )
        rank, ranks = row_part if self.leaf in CUT_BY_ROWS else (0, 1)
        column_rank, column_ranks = column_part if self.leaf in CUT_BY_COLUMNS else (0, 1)
        block = self.block(index)
        rows, columns = block.shape
        whole = [rows * ranks, columns * column_ranks]
        if list(loaded.shape) != whole or (self.dtype == torch.uint8) != (
            loaded.dtype == torch.uint8
        ):
            raise SecateurError(
                f"{shard.name}.{self.leaf}: expected {whole} for {self.dtype}, got "
                f"{list(loaded.shape)} of {loaded.dtype}"
            )
        part = loaded.narrow(0, rank * rows, rows).narrow(1, column_rank * columns, columns)
        block.copy_(part)
        self.loaded.add(index)


class WatchedLoader:
    """A loader of vLLM's that notes which shards it was called for."""

    # vLLM tells loaders apart by their names when it loads weights again.
    __name__ = "watched_loader"

    def __init__(self, load: Loader) -> None:
        self._load = load
        self._seen: set[Hashable] = set()
        self._was_called = False

    def __call__(self, param: Any, loaded_weight: Tensor, *shard: Any, **named: Any) -> None:
        """Load, and note the shard; without one, all are loaded."""
        self._load(param, loaded_weight, *shard, **named)
        self._was_called = True
        which = next(iter((*shard, *named.values())), None)
        self._seen.update(which if isinstance(which, tuple) else (which,))

    def take_as_loaded(self) -> None:
        """Nothing will be loaded."""
        self._was_called = True
        self._seen.add(None)

    def is_complete(self, num_shards: int) -> bool:
        """Whether everything was loaded."""
        return None in self._seen or len(self._seen) >= num_shards

    @property
    def is_idle(self) -> bool:
        """Whether something was loaded, but nothing since `forget`."""
        return self._was_called and not self._seen

    def forget(self) -> None:
        """Begin anew: what is loaded from now on counts."""
        self._seen.clear()


def load_replicated(param: ShardedParameter, loaded_weight: Tensor) -> None:
    """The loader of a layer that every rank holds in full."""
    param.load_whole(loaded_weight)


def fused_down_loader(load: Loader) -> Loader:
    """A loader for `down` in layers of several shards: without a shard it is all of them."""

    def load_down(param: ShardedParameter, loaded_weight: Tensor, shard: Any = None) -> None:
        if shard is None:
            param.load_fused_down(loaded_weight)
        else:
            load(param, loaded_weight, shard)

    return load_down
