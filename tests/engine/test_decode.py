from types import SimpleNamespace
from typing import Any

import pytest

from secateur.engine.decode import DecodeShape, DecodeSteps


@pytest.mark.parametrize(
    ("more", "batch", "length", "expected"),
    [
        # Nearly the batch itself.
        ({}, 3, 1, (3, 64)),
        ({}, 3, 64, (3, 64)),
        ({}, 3, 65, (3, 128)),
        ({}, 6, 2990, (6, 3000)),
        # Few shapes.
        ({"capture": object()}, 1, 1, (1, 512)),
        ({"capture": object()}, 3, 512, (4, 512)),
        ({"capture": object()}, 5, 513, (6, 2048)),
        ({"capture": object()}, 2, 2049, (2, 3000)),
        ({"capture": object(), "flex": True}, 4, 1, (4, 3000)),
    ],
)
def test_the_shape_that_serves_a_batch(
    more: dict[str, Any], batch: int, length: int, expected: tuple[int, int]
) -> None:
    store: Any = SimpleNamespace(rows=6, length=3000)
    nothing: Any = None
    steps = DecodeSteps(nothing, store, nothing, compiled=False, **more)
    assert steps.shape(batch, length) == DecodeShape(*expected)
