"""Windows on their way from an encoder to where they are kept, and what was counted meanwhile."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.training.data.tokenizer import TokenIds


@dataclass(frozen=True)
class WindowBlock:
    """Some windows, in order."""

    tokens: TokenIds
    """int64 [num_windows, max_seq_length]"""
    loss: NDArray[np.bool_] | None = None
    """Of that shape: where the loss is taken. None: everywhere."""
    starts: NDArray[np.bool_] | None = None
    """Of that shape: where an example, or padding, begins. None: a window is one stretch."""


@dataclass
class Tally:
    """What an encoder has counted so far."""

    num_documents: int = 0
    num_read: int = 0
    """Tokens, also those that are in no window."""
    num_tokens: int = 0
    """In windows, without padding."""
    num_cut: int = 0
    num_dropped: int = 0
