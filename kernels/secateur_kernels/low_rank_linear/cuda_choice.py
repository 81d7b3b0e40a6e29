"""Which of the compiled low-rank kernels, and in which configuration."""

from dataclasses import replace
from itertools import islice

from secateur_kernels.low_rank_linear import cuda_config
from secateur_kernels.low_rank_linear.cuda_boxes import box_configs, side_by_side, takes_boxes
from secateur_kernels.low_rank_linear.cuda_config import (
    LowRankCudaConfig,
    LowRankShape,
    shared_bytes_of,
)

_CANDIDATES = 13
_OF_BOXES = 7
_SIDE_BY_SIDE = 2


def default_config(
    shape: LowRankShape, num_sms: int, capability: tuple[int, int]
) -> LowRankCudaConfig:
    """The best guess.

    Args:
        shape: the problem; `supports` it.
        num_sms: multiprocessors of the device.
        capability: compute capability of the device.
    """
    shared = shared_bytes_of(capability)
    if takes_boxes(shape, capability):
        return next(box_configs(shape, max(num_sms, 1), shared))
    return cuda_config.default_config(shape, num_sms, shared)


def candidate_configs(
    shape: LowRankShape, num_sms: int, capability: tuple[int, int]
) -> list[LowRankCudaConfig]:
    """At most 13 configs that are worth timing; the first is the default.

    Args:
        shape: the problem; `supports` it.
        num_sms: multiprocessors of the device; 0 stands for 132.
        capability: compute capability of the device.
    """
    num_sms, shared = num_sms or 132, shared_bytes_of(capability)
    found = dict.fromkeys([default_config(shape, num_sms, capability)])
    if takes_boxes(shape, capability):
        boxes = list(islice(box_configs(shape, num_sms, shared), _OF_BOXES))
        alone = replace(boxes[0], down_boxes=1)  # whatever clusters cost
        beside = side_by_side(shape, num_sms, shared)[:_SIDE_BY_SIDE]
        found |= dict.fromkeys([*boxes, alone, *beside])
    found |= dict.fromkeys(cuda_config.candidate_configs(shape, num_sms, shared))
    return list(found)[:_CANDIDATES]
