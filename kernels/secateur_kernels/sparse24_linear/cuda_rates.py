"""What one GPU was measured to do, for the estimates that order configs of the compiled kernels.

Of an H200: 132 multiprocessors, 4.8 TB/s. Other devices differ by factors that all configs share,
more or less. Bytes a nanosecond are GB/ms, or TB/s times 1000.
"""

MEMORY = 4600.0
"""Bytes a nanosecond that rings of bulk copies read, all together."""
LATENCY_NS = 1800.0
"""From the request for a stage to its arrival, with all multiprocessors asking at full rate."""
START_NS = 700.0
"""Of a kernel that began to fetch while the one in front still ran."""
_AHEAD_BYTES = (64 * 1024, 160 * 1024)
"""Of weights in the L2 cache, a multiprocessor: what memory gives it in 2 and 5 microseconds."""
_LOST_PLACES = 3
"""Clusters of four that find no place: multiprocessors come in groups that four does not divide."""


def clusters_at_once(num_sms: int, size: int) -> int:
    """Clusters of `size` thread blocks that run at the same time, one block a multiprocessor."""
    whole = num_sms // size
    # Of 33 and 16 on 132 multiprocessors 32 and 16 took twice the time of 28 and 14.
    lost = 0 if size <= 2 else _LOST_PLACES if size == 4 else _LOST_PLACES - 1
    return max(1, whole - lost)


def ahead_choices(step_bytes: int, left: int, blocks: int, num_sms: int) -> list[int]:
    """Numbers of steps to ask for ahead of the ring that are worth timing; none is among them.

    Args:
        step_bytes: of the weights that a thread block fetches in a step.
        left: steps of a thread block that its ring has no room for at first.
        blocks: thread blocks.
        num_sms: multiprocessors of the device.
    """
    share = -(-blocks // num_sms)
    steps = (size // (share * step_bytes) for size in _AHEAD_BYTES)
    return list(dict.fromkeys([0, *(min(left, many) for many in steps if left > 0)]))
