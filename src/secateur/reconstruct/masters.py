"""Full-precision masters of a block's parameters while it is tuned, and the way back.

A step of 3e-7 is lost in a bfloat16 weight of 0.02, whose neighbours are 1.2e-4 away: steps add up
in fp32, and the sum is rounded once, when the block is done.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from secateur.models.rounding import narrow


@contextmanager
def master_weights(block: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """While this is open the block's 16-bit floating parameters are fp32; then they are narrowed.

    Args:
        block: every floating parameter narrower than fp32 is replaced (its `data`) and comes back
            in its own dtype, whatever happens; wider ones stay as they are.
        masks: by parameter name, True = keep, read at the end: so the caller may replace entries
            while the block is tuned. Masked weights come back as exact zeros.
    """
    narrowed = {
        name: parameter.dtype
        for name, parameter in block.named_parameters()
        if parameter.is_floating_point() and parameter.element_size() < 4
    }
    parameters = dict(block.named_parameters())
    for name in narrowed:
        parameters[name].data = parameters[name].data.float()
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.grad = None
            value, keep = parameter.data, masks.get(name)
            if name in narrowed:
                parameter.data = narrow(value, narrowed[name], keep)
            elif keep is not None:
                value.masked_fill_(~keep.to(value.device), 0.0)
