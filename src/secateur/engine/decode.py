"""One token for every row: in compiled parts if asked for, replayed from CUDA graphs on a GPU.

A step is a forward pass, which depends on how many rows there are and how long they are, and the
choice of tokens, which depends on what the rows ask for. Each is prepared on its own, so that a
new kind of request costs no new forward pass.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from secateur.engine.block_masks import block_masks
from secateur.engine.compiled_parts import CompiledParts
from secateur.engine.device_rows import DeviceRows
from secateur.engine.family import RowModel
from secateur.engine.graphs import GraphCapture, Launch
from secateur.engine.sampling import SamplingKind, next_tokens
from secateur.engine.slot_cache import KeyValueStore, WindowCache

_SHORTEST = 512
_LENGTH_FACTOR = 4
_GRANULE = 64


@dataclass(frozen=True)
class DecodeShape:
    """What a forward pass is captured for."""

    batch: int
    length: int
    """Positions that attention looks at; the longest row has no more."""


class DecodeSteps:
    """Steps over the first rows, made ready once a shape and once a kind of sampling."""

    def __init__(
        self,
        model: RowModel,
        store: KeyValueStore,
        rows: DeviceRows,
        *,
        compiled: bool,
        capture: GraphCapture | None = None,
        flex: bool = False,
    ) -> None:
        """`flex`: attention by torch's flex attention, for which a length needs no shape."""
        self._model, self._store, self._rows = model, store, rows
        self._parts = CompiledParts(model.model) if compiled else None
        self._capture = capture
        self._flex = flex
        self.few_shapes = compiled or capture is not None
        """Whether steps are made for few shapes, and take long to make."""
        self._forwards: dict[DecodeShape, Launch] = {}
        self._choices: dict[tuple[int, SamplingKind], Launch] = {}

    def shape(self, batch: int, length: int) -> DecodeShape:
        """The shape that serves a batch whose longest row will have `length` positions.

        Where nothing is compiled or captured that is nearly the batch itself; else powers of two,
        up to all rows, and lengths of which each is four times the one before.
        """
        if not self.few_shapes:
            rounded = -(-length // _GRANULE) * _GRANULE
            return DecodeShape(batch, min(rounded, self._store.length))
        rows = 1 << (batch - 1).bit_length()
        longest = self._store.length if self._flex else _SHORTEST
        while longest < length:
            longest *= _LENGTH_FACTOR
        return DecodeShape(min(rows, self._store.rows), min(longest, self._store.length))

    def run(self, shape: DecodeShape, kind: SamplingKind) -> None:
        """Let every row of the shape's batch have its next token; idle rows stay idle."""
        self.prepare(shape, kind)
        self._forwards[shape]()
        self._choices[shape.batch, kind]()

    def prepare(self, shape: DecodeShape, kind: SamplingKind) -> None:
        """Compile and capture what a step needs, if it is not there; changes no row.

        Raises:
            SecateurError: the model's step cannot be captured.
        """
        if shape not in self._forwards:
            if not self.few_shapes:
                # Made anew at no cost, and there may be as many as a text has lengths.
                self._forwards.clear()
            self._forwards[shape] = self._ready(self._forward_of(shape))
        if (shape.batch, kind) not in self._choices:
            self._choices[shape.batch, kind] = self._ready(self._choice_of(shape.batch, kind))

    def _ready(self, step: Launch) -> Launch:
        if not self.few_shapes:
            return step
        with self._all_rows_idle():
            if self._capture is not None:
                return self._capture(step)
            step()
        return step

    @contextmanager
    def _all_rows_idle(self) -> Iterator[None]:
        """While this is open, a step touches nothing of any sequence."""
        rows = self._rows
        saved = [
            (tensor, tensor.clone())
            for tensor in (rows.tokens, rows.positions, *rows.scores.tensors())
        ]
        rows.positions.fill_(rows.idle_position)
        try:
            yield
        finally:
            for tensor, before in saved:
                tensor.copy_(before)

    def _forward_of(self, shape: DecodeShape) -> Launch:
        tokens = self._rows.tokens[: shape.batch].unsqueeze(1)
        positions = self._rows.positions[: shape.batch].unsqueeze(1)
        logits = self._rows.logits[: shape.batch]
        window = self._store.window(0, positions, shape.length)
        if self._parts is not None and not self._flex:
            _mark_dynamic(window)

        def step() -> None:
            with torch.no_grad(), self._model.attending():
                # Not in the programs, which would make them anew for every layer.
                masks = self._masks(window)
                with self._compiled(window):
                    logits.copy_(self._model.last_logits(tokens, window, masks))

        return step

    def _compiled(self, window: WindowCache) -> AbstractContextManager[None]:
        if self._parts is None:
            return nullcontext()
        return self._parts.running(window, any_batch=not self._flex)

    def _masks(self, window: WindowCache) -> Mapping[str, Tensor] | Mapping[str, BlockMask]:
        if self._flex:
            return block_masks(self._model.plan.windows, window.positions, window.length)
        masks = self._model.masks(window.positions, window.length)
        if self._parts is not None:
            for mask in masks.values():
                torch._dynamo.maybe_mark_dynamic(mask, 3)
        return masks

    def _choice_of(self, batch: int, kind: SamplingKind) -> Launch:
        rows = self._rows

        @torch.no_grad()
        def step() -> None:
            sampling = rows.sampling(0, rows.positions[:batch])
            tokens, scores = next_tokens(rows.logits[:batch], sampling, kind)
            rows.advance(batch, tokens, scores, kind.penalized)

        return step


def _mark_dynamic(window: WindowCache) -> None:
    """Have one program serve all lengths and batches; a single row has one of its own."""
    torch._dynamo.maybe_mark_dynamic(window.reach, 0)
    if len(window.positions) > 1:
        for tensor in window.tensors():
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
