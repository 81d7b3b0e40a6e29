"""Whether a model can work with rows of different lengths, and what it wants for that."""

import inspect
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from secateur.engine.attention import ATTENTION, MaskPlan, Masks, attention_set_to
from secateur.engine.slot_cache import KeyValueStore, WindowCache
from secateur.errors import SecateurError
from secateur.models.blocks import text_config
from secateur.models.cache_name import cache_name
from secateur.models.device import input_embedding
from secateur.modules.removed_sublayer import RemovedSublayer

_LAYER_KINDS = ("full_attention", "sliding_attention")
# Their frequencies depend on the longest sequence of the batch.
_ROPE_OF_THE_WHOLE_BATCH = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True)
class RowModel:
    """A causal language model called with positions and masks of its rows."""

    model: nn.Module
    plan: MaskPlan
    configs: tuple[Any, ...]
    cache: str
    """Its name for the cache."""
    keeps_logits: bool
    """Whether it can leave out the logits of all positions but the last."""
    num_layers: int
    without_attention: frozenset[int]
    """Layers that keep nothing: attention was removed, or is to what earlier ones keep."""

    def store(self, rows: int, length: int) -> KeyValueStore:
        """Keys and values for so many rows."""
        return KeyValueStore(self.num_layers, rows, length, self.without_attention)

    def last_logits(
        self,
        token_ids: Tensor,
        window: WindowCache,
        masks: Mapping[str, Tensor] | Mapping[str, BlockMask],
    ) -> Tensor:
        """Logits [B, vocabulary] behind the last of tokens int64 [B, T]; within `attending`."""
        return self._logits(token_ids, window, masks, 1)[:, -1]

    def all_logits(
        self, token_ids: Tensor, window: WindowCache, masks: Mapping[str, Tensor]
    ) -> Tensor:
        """The same behind every token, [B, T, vocabulary]."""
        return self._logits(token_ids, window, masks, 0)

    def _logits(
        self,
        token_ids: Tensor,
        window: WindowCache,
        masks: Mapping[str, Tensor] | Mapping[str, BlockMask],
        kept: int,
    ) -> Tensor:
        """Those of the last `kept` tokens at least; 0 for all."""
        # A model with layers of one kind takes the mask itself.
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        more = {"logits_to_keep": kept} if self.keeps_logits else {}
        output = self.model(
            input_ids=token_ids,
            position_ids=window.position_ids,
            attention_mask=mask,
            use_cache=True,
            **{self.cache: window},
            **more,
        )
        logits: Tensor = output.logits
        return logits

    def attending(self) -> AbstractContextManager[None]:
        """While this is open, the model's attention is the one that the masks are made for."""
        return attention_set_to(self.configs, "eager" if self.plan.own_attention else ATTENTION)

    def masks(self, positions: Tensor, length: int) -> Masks:
        """As `MaskPlan.masks`, in the model's dtype."""
        return self.plan.masks(positions, length, input_embedding(self.model).dtype)

    def causal_masks(self, positions: Tensor, length: int) -> Masks:
        """As `MaskPlan.causal_masks`, in the model's dtype."""
        return self.plan.causal_masks(positions, length, input_embedding(self.model).dtype)


def row_model(model: nn.Module) -> RowModel:
    """Describe a model, or refuse it.

    Raises:
        SecateurError: it is no causal language model of transformers, or its family keeps what
            a cache of keys and values by position cannot hold; says what.
    """
    config = text_config(model)
    input_embedding(model)
    parameters = inspect.signature(model.forward).parameters
    cache = cache_name(model)
    names = ("input_ids", "attention_mask", "position_ids", cache)
    missing = [name for name in names if name not in parameters]
    if missing:
        raise _refusal(model, f"its forward takes no {', '.join(missing)}")
    own = getattr(model, "config", config)
    return RowModel(
        model=model,
        plan=MaskPlan(_windows(model, config), not _takes_attention(model)),
        configs=(own,) if own is config else (own, config),
        cache=cache,
        keeps_logits="logits_to_keep" in parameters,
        num_layers=int(getattr(config, "num_hidden_layers", 0)),
        without_attention=frozenset(
            index
            for module in model.modules()
            if isinstance(index := getattr(module, "layer_idx", None), int)
            and _keeps_nothing(module)
        ),
    )


def _keeps_nothing(module: nn.Module) -> bool:
    """Removed attention, or attention to what an earlier layer keeps (Gemma 4)."""
    return isinstance(module, RemovedSublayer) or bool(getattr(module, "is_kv_shared_layer", False))


def _takes_attention(model: nn.Module) -> bool:
    """Whether its attention asks transformers by which function it is computed.

    It also has to be plain: families with more in it than torch's (scores that are capped, as of
    Gemma 2, or sinks, as of GPT-OSS) say that they cannot do SDPA.
    """
    if not getattr(model, "_supports_sdpa", False):
        return False
    if getattr(model, "_supports_attention_backend", False):
        return True
    # Not every family that asks says so, and some that can do SDPA do it themselves (Falcon).
    homes = {type(module).__module__ for module in model.modules()}
    asks = any(hasattr(sys.modules.get(home), "ALL_ATTENTION_FUNCTIONS") for home in homes)
    return asks


def _windows(model: nn.Module, config: Any) -> dict[str, int | None]:
    if found := _ropes(config) & _ROPE_OF_THE_WHOLE_BATCH:
        reason = f"its rotary positions ({min(found)}) depend on the longest sequence"
        raise _refusal(model, reason)
    if getattr(config, "attention_chunk_size", None) is not None:
        raise _refusal(model, "it attends to chunks of the text")
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return {"full_attention" if window is None else "sliding_attention": window}
    if other := sorted(set(kinds) - set(_LAYER_KINDS)):
        raise _refusal(model, f"it has layers of the kind {other[0]}")
    windows = {"full_attention": None, "sliding_attention": window}
    return {kind: windows[kind] for kind in _LAYER_KINDS if kind in kinds}


def _ropes(config: Any) -> set[str]:
    """Kinds of rotary positions, also where every kind of layer has its own."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [inner for inner in parameters.values() if isinstance(inner, dict)]
    return {str(one.get("rope_type")) for one in (parameters, *nested)}


def _refusal(model: nn.Module, reason: str) -> SecateurError:
    return SecateurError(
        f"expected a model whose layers keep keys and values by position, but "
        f"{type(model).__name__} cannot be served by the engine: {reason}"
    )


@torch.no_grad()
def check_agrees(rows: RowModel, store: KeyValueStore) -> Tensor:
    """Run a few tokens as the engine does, and compare with the model's own forward pass.

    Takes the memory of `store`, which a model that passes has written in every layer.

    Returns:
        Logits [1, vocabulary], as an example of what the model gives.

    Raises:
        SecateurError: the model fails, leaves a layer of the cache unused, or answers otherwise.
    """
    device = input_embedding(rows.model).device
    vocabulary = len(input_embedding(rows.model))
    tokens = torch.arange(3, 9, device=device).unsqueeze(0) % vocabulary
    try:
        # Twice several tokens and once a single one: every way in which a chunk is computed.
        for first, last in ((0, 3), (3, 5), (5, 6)):
            logits = _chunk(rows, store, tokens, first, last)
        # As beside longer rows: keys that are not its own lie behind it.
        among_longer = _chunk(rows, store, tokens, 5, 6, store.length)
        expected = rows.model(input_ids=tokens, use_cache=False).logits[:, -1]
        change = _change_of_first(rows, store, tokens)
    except SecateurError:
        raise
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise _refusal(rows.model, f"{type(error).__name__}: {first_line}") from error
    unused = [
        index
        for index, keys in enumerate(store.keys)
        if keys is None and index not in rows.without_attention
    ]
    if unused:
        raise _refusal(rows.model, f"layer {unused[0]} writes nothing to the cache")
    # Nothing but rounding, as experts are given other tokens beside it.
    if not change <= min(0.2, 4 * torch.finfo(logits.dtype).eps ** 0.5):
        reason = f"its first token sees those behind it, which change its keys by {change:.2g}"
        raise _refusal(rows.model, reason)
    agreement = min(
        torch.cosine_similarity(found.double(), expected.double()).item()
        for found in (logits, among_longer)
    )
    # 16-bit values and other kernels leave it above 0.99; a wrong position does not.
    if not agreement > 0.98:
        raise _refusal(
            rows.model,
            f"with a cache its logits are not those without (cosine {agreement:.3f})",
        )
    return logits


def _change_of_first(rows: RowModel, store: KeyValueStore, tokens: Tensor) -> float:
    """By what part of them the last keys of the first token change with the tokens behind it.

    Logits do not tell a mask that nobody heeds: the last token sees all tokens in any case.
    """
    first, second = (
        _keys_of_first(rows, store, torch.cat([tokens[:, :1], rest], dim=1))
        for rest in (tokens[:, 1:3], tokens[:, 3:5])
    )
    change: float = ((first - second).norm() / first.norm().clamp_min(1e-30)).item()
    return change


def _keys_of_first(rows: RowModel, store: KeyValueStore, tokens: Tensor) -> Tensor:
    _chunk(rows, store, tokens, 0, tokens.shape[1])
    kept = [keys for keys in store.keys if keys is not None]
    # Without any attention no token knows of another.
    return kept[-1][0, 0].double().flatten() if kept else torch.ones(1)


def _chunk(
    rows: RowModel,
    store: KeyValueStore,
    tokens: Tensor,
    first: int,
    last: int,
    length: int | None = None,
) -> Tensor:
    """Logits behind tokens `first` to `last`, among so many keys; by default up to their own."""
    positions = torch.arange(first, last, device=tokens.device).unsqueeze(0)
    window = store.window(0, positions, length or last)
    masks = rows.masks(positions, length) if length else rows.causal_masks(positions, last)
    with rows.attending():
        return rows.last_logits(tokens[:, first:last], window, masks)
