"""One token for every row: compiled if asked for, replayed from a CUDA graph on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.block_masks import block_masks
from secateur.engine.device_rows import DeviceRows
from secateur.engine.family import RowModel
from secateur.engine.sampling import SamplingKind, next_tokens
from secateur.engine.slot_cache import KeyValueStore, WindowCache
from secateur.errors import SecateurError

_SHORTEST = 512
_LENGTH_FACTOR = 4
_GRANULE = 64
# Every shape is compiled once for all; torch gives up after 8 without being told.
_MANY_SHAPES = 256


@dataclass(frozen=True)
class DecodeShape:
    """What a step is compiled and captured for."""

    batch: int
    length: int
    """Positions that attention looks at; the longest row has no more."""
    kind: SamplingKind


class DecodeSteps:
    """Steps over the first rows, one compiled program and one graph a shape."""

    def __init__(
        self,
        model: RowModel,
        store: KeyValueStore,
        rows: DeviceRows,
        *,
        compiled: bool,
        graphs: bool,
        flex: bool = False,
    ) -> None:
        """`flex`: attention by torch's flex attention, for which a length needs no shape."""
        self._model, self._store, self._rows = model, store, rows
        self._few_shapes = compiled or graphs
        self._graphs = graphs
        self._flex = flex
        self._ready: dict[DecodeShape, Callable[[], None]] = {}
        self._pool = torch.cuda.graph_pool_handle() if graphs else None
        self._logits: Callable[[WindowCache, Tensor], Tensor] = self._forward
        self._choose = next_tokens
        if compiled:
            self._logits = torch.compile(self._forward, fullgraph=True, dynamic=False)
            self._choose = torch.compile(next_tokens, fullgraph=True, dynamic=False)

    def shape(self, batch: int, length: int, kind: SamplingKind) -> DecodeShape:
        """The shape that serves a batch whose longest row will have `length` positions.

        Where nothing is compiled or captured that is nearly the batch itself; else powers of two,
        up to all rows, and lengths of which each is four times the one before.
        """
        if not self._few_shapes:
            rounded = -(-length // _GRANULE) * _GRANULE
            return DecodeShape(batch, min(rounded, self._store.length), kind)
        rows = 1 << (batch - 1).bit_length()
        longest = self._store.length if self._flex else _SHORTEST
        while longest < length:
            longest *= _LENGTH_FACTOR
        return DecodeShape(min(rows, self._store.rows), min(longest, self._store.length), kind)

    def run(self, shape: DecodeShape) -> None:
        """Let every row of the shape's batch have its next token; idle rows stay idle."""
        step = self._ready.get(shape)
        if step is None:
            step = self._ready[shape] = self._made(shape)
        step()

    def prepare(self, shape: DecodeShape) -> None:
        """Compile and capture a shape beforehand; changes no row.

        Raises:
            SecateurError: the model's step cannot be captured.
        """
        if shape not in self._ready:
            self._ready[shape] = self._made(shape)

    def _made(self, shape: DecodeShape) -> Callable[[], None]:
        positions = self._rows.positions[: shape.batch].unsqueeze(1)
        window = self._store.window(0, positions, shape.length)

        def step() -> None:
            self._step(shape, window)

        if self._few_shapes:
            self._rehearse(step)
        return self._captured(step, shape) if self._graphs else step

    def _step(self, shape: DecodeShape, window: WindowCache) -> None:
        rows = self._rows
        patch = torch._dynamo.config.patch(
            recompile_limit=_MANY_SHAPES, accumulated_recompile_limit=4 * _MANY_SHAPES
        )
        with torch.no_grad(), self._model.attending(), patch:
            logits = self._logits(window, rows.tokens[: shape.batch].unsqueeze(1))
            sampling = rows.sampling(0, rows.positions[: shape.batch])
            tokens, logprobs = self._choose(logits, sampling, shape.kind)
            rows.advance(shape.batch, tokens, logprobs)

    def _forward(self, window: WindowCache, tokens: Tensor) -> Tensor:
        plan, dtype = self._model.plan, self._model.mask_dtype
        if self._flex:
            blocks = block_masks(plan.windows, window.positions, window.length)
            return self._model.last_logits(tokens, window, blocks)
        masks = plan.masks(window.positions, window.length, dtype)
        return self._model.last_logits(tokens, window, masks)

    def _rehearse(self, step: Callable[[], None]) -> None:
        """Compile and warm up with all rows idle, so that nothing of theirs is touched."""
        rows = self._rows
        saved = (rows.tokens.clone(), rows.positions.clone(), rows.logprobs.clone())
        rows.positions.fill_(rows.idle_position)
        try:
            if self._graphs:
                _on_side_stream(step)
            else:
                step()
        finally:
            for tensor, before in zip(
                (rows.tokens, rows.positions, rows.logprobs), saved, strict=True
            ):
                tensor.copy_(before)

    def _captured(self, step: Callable[[], None], shape: DecodeShape) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of a server may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            first_line = str(error).strip().partition("\n")[0]
            raise SecateurError(
                f"a decode step of {shape.batch} rows cannot be captured in a CUDA graph; with "
                f"cuda_graphs=False it runs without: {first_line}"
            ) from error
        return graph.replay


def _on_side_stream(step: Callable[[], None]) -> None:
    """As PyTorch asks before a capture: libraries set themselves up outside of it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
