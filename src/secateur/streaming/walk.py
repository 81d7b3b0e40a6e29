"""Open the blocks of a streaming job one at a time, and run a whole model so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.calibration.inputs import BlockInputs
from secateur.integrations.layer_specs import CompactLayers
from secateur.models.inventory import Inventory
from secateur.models.measure import require_finite_weights
from secateur.models.swap import pack_layers
from secateur.models.trace import Trace, check_alone, shared_inputs_of
from secateur.streaming.finished import BlockJournal
from secateur.streaming.form import as_worked_on, forget_block
from secateur.streaming.memory import return_free_memory
from secateur.streaming.skeleton import Skeleton, release
from secateur.streaming.source import BlockSource


class BlockWalk:
    """Opens blocks where they run: finished ones from the job, others from the checkpoint."""

    def __init__(
        self,
        skeleton: Skeleton,
        inventory: Inventory,
        source: BlockSource,
        journal: BlockJournal[Any],
        device: torch.device,
    ) -> None:
        """`inventory` is that of the skeleton."""
        self._skeleton = skeleton
        self._inventory = inventory
        self._source = source
        self._journal = journal
        self._device = device
        self._inputs: BlockInputs | None = None
        self._trace: Trace | None = None

    def watch(self, inputs: BlockInputs | None, trace: Trace) -> None:
        """From now on, note in the trace which linears of an opened block share inputs.

        `inputs`: to see it by; None to let go of those that were given before.
        """
        self._inputs, self._trace = inputs, trace

    @contextmanager
    def opened(self, index: int) -> Iterator[None]:
        """While this is open, a block has its weights on the device; then they are forgotten.

        Raises:
            SecateurError: the checkpoint does not fill the block, or not with finite weights.
        """
        model, blocks = self._skeleton.model, self._skeleton.blocks
        block = blocks.modules[index]
        written: CompactLayers | None = None
        try:
            if self._journal.is_finished(index):
                written = self._journal.layers(index)
                written.build_in(model)
                self._source.fill_block(index, self._journal.tensors(index))
                block.to(self._device)
                as_worked_on(model, blocks, index, written)
            else:
                self._source.load_block(index, self._next_unfinished(index))
                block.to(self._device)
                # There it is fast.
                require_finite_weights(block, blocks.block_name(index))
                self._note_shared_inputs(index)
            yield
        finally:
            forget_block(model, blocks, index, written)
            # Sites know the layers that compressed ones took the place of, and these their weights.
            release(site.module for site in self._inventory.sites[index])
            return_free_memory()

    def _next_unfinished(self, index: int) -> int | None:
        """The next block, if that is to be read from the checkpoint, too."""
        is_last = index + 1 == len(self._skeleton.blocks)
        return None if is_last or self._journal.is_finished(index + 1) else index + 1

    def _note_shared_inputs(self, index: int) -> None:
        if self._inputs is None or self._trace is None:
            return
        linears = {s.name: s.module for s in self._inventory.sites[index] if s.expert is None}
        # One sample shows it, and fits wherever calibration will.
        call = self._inputs.calls[0][index].rows(0, 1).to(self._device)
        hidden = self._inputs.hidden[0][:1].to(self._device)
        blocks = self._skeleton.blocks
        check_alone(blocks, index, call, self._trace.handed_on, hidden)
        block = blocks.modules[index]
        self._trace.shared_inputs.update(shared_inputs_of(block, call, hidden, linears))


@contextmanager
def blocks_on_demand(skeleton: Skeleton, source: BlockSource) -> Iterator[None]:
    """While this is open the model can be run on the CPU: each block is read when it is called.

    2:4 layers are packed for it, as in a model that is loaded. What belongs to no block must have
    its weights.
    """
    model, blocks = skeleton.model, skeleton.blocks
    count = len(blocks)

    def entering(index: int) -> Callable[..., None]:
        def hook(block: nn.Module, *_: Any) -> None:
            source.load_block(index, index + 1 if index + 1 < count else None)
            pack_layers(block)

        return hook

    def leaving(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            forget_block(model, blocks, index)

        return hook

    hooks = [
        hook
        for index, block in enumerate(blocks.modules)
        for hook in (
            block.register_forward_pre_hook(entering(index)),
            block.register_forward_hook(leaving(index)),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
