"""Keys and values of all rows in memory that never moves, and windows on it for one forward pass.

transformers' `StaticCache` writes all rows of a batch at the same positions. Here every row has
its own, so that sequences of different lengths share a step.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# Positions beyond those that are read: one, and as many as keep the rows of memory aligned.
_SPARE = 8


class KeyValueStore:
    """Keys and values [rows, length + 8, heads, head_dim] of every layer.

    Memory is taken when a layer first writes: head counts and dtypes are then known. What is not to
    be kept is written at `idle_position`, which is never read.
    """

    def __init__(
        self, num_layers: int, rows: int, length: int, without_attention: frozenset[int]
    ) -> None:
        """`without_attention`: layers that keep nothing; see `RowModel`."""
        self.rows = rows
        self.length = length
        self.idle_position = length
        self.without_attention = without_attention
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        tensors = [tensor for tensor in (*self.keys, *self.values) if tensor is not None]
        return sum(tensor.nbytes for tensor in tensors)

    def allocate(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take memory for a layer whose keys and values are [B, heads, length, head_dim]."""
        self.keys[layer] = self._zeros(key)
        self.values[layer] = self._zeros(value)

    def _zeros(self, states: Tensor) -> Tensor:
        # Zeros, not garbage: a probability of 0 times NaN is NaN.
        _, heads, _, head_dim = states.shape
        return states.new_zeros(self.rows, self.length + _SPARE, heads, head_dim)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first positions of one row to another."""
        for tensor in (*self.keys, *self.values):
            if tensor is not None:
                tensor[target, :length].copy_(tensor[source, :length])

    def window(self, first_row: int, positions: Tensor, length: int) -> "WindowCache":
        """What one forward pass of rows `first_row` and following reads and writes.

        Args:
            positions: int64 [R, T], where the tokens of each row stand.
            length: positions that attention sees, from 0; at most `length` of the store.
        """
        return WindowCache(self, first_row, positions, length)


class WindowCache(Cache):  # type: ignore[misc]
    """Some rows of a `KeyValueStore`, as transformers models take it."""

    layers: "list[_WindowLayer | NothingStored]"

    def __init__(
        self, store: KeyValueStore, first_row: int, positions: Tensor, length: int
    ) -> None:
        self.positions = positions
        self.length = length
        self._idle_position = store.idle_position
        # No memory: a length that a compiler takes for the size of an input, not for a constant.
        self.reach = positions.new_empty(1).expand(length)
        rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
        super().__init__(
            layers=[
                NothingStored()
                if index in store.without_attention
                else _WindowLayer(store, index, first_row, rows, positions, self.reach)
                for index in range(len(store.keys))
            ]
        )

    def of_layer(self, index: int) -> "LayerCache | None":
        """The same for a block that uses one layer only; None if that keeps nothing."""
        layer = self.layers[index]
        return LayerCache(layer) if isinstance(layer, _WindowLayer) else None

    @property
    def position_ids(self) -> Tensor:
        """Positions for the model, which need not have one for tokens that are not kept."""
        return self.positions.masked_fill(self.positions == self._idle_position, 0)

    def tensors(self) -> Iterator[Tensor]:
        """Positions, keys and values: what has the rows of the window along dimension 0."""
        yield self.positions
        for layer in self.layers:
            if isinstance(layer, _WindowLayer):
                yield from (layer.rows, layer.all_keys, layer.all_values)


class LayerCache(Cache):  # type: ignore[misc]
    """One layer of a cache, whichever is asked for: no index gets into a program for all layers."""

    def __init__(self, layer: "_WindowLayer") -> None:
        super().__init__(layers=[layer])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write states to the layer; returns those that it gives for them."""
        states: tuple[Tensor, Tensor] = self.layers[0].update(key_states, value_states)
        return states


class _WindowLayer(CacheLayerMixin):  # type: ignore[misc]
    is_compileable = True
    is_sliding = False

    def __init__(
        self,
        store: KeyValueStore,
        index: int,
        first_row: int,
        rows: Tensor,
        positions: Tensor,
        reach: Tensor,
    ) -> None:
        super().__init__()
        self.rows, self.positions, self.reach = rows, positions, reach
        self._store, self._index, self._first_row = store, index, first_row
        if store.keys[index] is not None:
            self._open()

    def _open(self) -> None:
        keys, values = self._store.keys[self._index], self._store.values[self._index]
        assert keys is not None
        assert values is not None
        last = self._first_row + len(self.rows)
        # All positions, as those of tokens that are not kept are beyond the window.
        self.all_keys, self.all_values = (
            keys[self._first_row : last],
            values[self._first_row : last],
        )
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self._store.allocate(self._index, key_states, value_states)
        self._open()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write states [R, heads, T, head_dim]; returns those of the window."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        where = (self.rows, self.positions)
        self.all_keys.index_put_(where, key_states.transpose(1, 2))
        self.all_values.index_put_(where, value_states.transpose(1, 2))
        length = len(self.reach)
        keys, values = self.all_keys[:, :length], self.all_values[:, :length]
        return keys.transpose(1, 2), values.transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return len(self.reach), 0

    def get_seq_length(self) -> int:
        """No use to a model that takes positions and masks from its caller, yet some ask."""
        return 0

    def get_max_length(self) -> int:
        return len(self.reach)

    # Its name in older versions of transformers.
    get_max_cache_shape = get_max_length


class NothingStored(CacheLayerMixin):  # type: ignore[misc]
    """Stands for a layer that keeps nothing: without attention, or with that of an earlier one."""

    is_compileable = True
    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to take memory for."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The states as they came."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """No keys, and none before them."""
        return 0, 0

    def get_seq_length(self) -> int:
        """No tokens are kept."""
        return 0

    def get_max_length(self) -> int:
        """No limit, in transformers' words."""
        return -1

    get_max_cache_shape = get_max_length
