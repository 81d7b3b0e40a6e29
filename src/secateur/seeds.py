"""Seeds: the numbers that every generator of random numbers takes."""

from secateur.errors import SecateurError

_END = 2**32


def require_seed(seed: int, whose: str = "") -> None:
    """Raise SecateurError unless numpy and torch take `seed`: 32 bits, no sign.

    `whose` begins the message, such as `training: `.
    """
    if not 0 <= seed < _END:
        raise SecateurError(f"{whose}expected 0 <= seed < 2^32, got {seed}")
