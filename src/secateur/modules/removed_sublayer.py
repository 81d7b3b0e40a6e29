"""What stands where a block had its attention or its MLP: nothing is computed or stored."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from secateur.errors import SecateurError


class RemovedSublayer(nn.Module):
    """Zeros for the residual stream, in the form in which the sub-layer returned its output.

    Given a key-value cache, it appends one zero a token to its block's entry: the length of the
    whole cache, and with it positions and masks, is read off the first block of each kind.
    """

    def __init__(
        self, width: int, tuple_length: int | None = None, layer_idx: int | None = None
    ) -> None:
        """Describe the sub-layer that was here.

        Args:
            width: features of its output.
            tuple_length: None where it returned a tensor, else the length of the tuple that began
                with it; what followed is None now.
            layer_idx: its block's entry in the key-value cache; None where it had none.

        Raises:
            SecateurError: a number is below 1, or the index below 0.
        """
        super().__init__()
        if width < 1 or (tuple_length is not None and tuple_length < 1):
            raise SecateurError(
                f"expected a width and a tuple length of at least 1, got {width} and {tuple_length}"
            )
        if layer_idx is not None and layer_idx < 0:
            raise SecateurError(f"expected an index of at least 0 in the cache, got {layer_idx}")
        self.width = width
        self.tuple_length = tuple_length
        self.layer_idx = layer_idx

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros [..., width] for hidden states [..., K], which come first or as `hidden_states`."""
        given = (*args, *kwargs.values())
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        if not isinstance(hidden, Tensor):
            raise SecateurError(
                "expected hidden states first or as `hidden_states`, got "
                f"{type(hidden).__name__} among {len(given)} arguments"
            )
        cache = _cache_in(given)
        if cache is not None and self.layer_idx is not None:
            _lengthen(cache, self.layer_idx, hidden)
        zeros = hidden.new_zeros((*hidden.shape[:-1], self.width))
        if self.tuple_length is None:
            return zeros
        return (zeros,) + (None,) * (self.tuple_length - 1)

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        return f"width={self.width}"


def _cache_in(values: Iterable[Any]) -> Any:
    """The first argument that is a key-value cache of transformers; None without one."""
    for value in values:
        own = getattr(value, "self_attention_cache", value)
        if callable(getattr(own, "update", None)) and hasattr(own, "get_seq_length"):
            return own
    return None


def _lengthen(cache: Any, layer_idx: int, hidden: Tensor) -> None:
    batch, length = hidden.shape[:2]
    heads = width = 1
    layers = getattr(cache, "layers", ())
    keys = getattr(layers[layer_idx], "keys", None) if layer_idx < len(layers) else None
    # A static cache may have been laid out beforehand, as wide as attention would be.
    if isinstance(keys, Tensor) and keys.ndim == 4:
        heads, width = keys.shape[1], keys.shape[3]
    nothing = hidden.new_zeros(batch, heads, length, width)
    cache.update(nothing, nothing, layer_idx)
