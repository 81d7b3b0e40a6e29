"""The weights that kernels are measured on: linear layers of known models, as engines fuse them."""

import random
from dataclasses import dataclass

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class WeightShape:
    """A weight [n, k] and the layers that have it."""

    n: int
    k: int
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.n} x {self.k}"

    @property
    def size(self) -> tuple[int, int]:
        """(N, K)."""
        return self.n, self.k

    @property
    def rank(self) -> int:
        """A quarter of the smaller side: factors of half the weight's size, if it is square."""
        return min(self.n, self.k) // 4


@dataclass(frozen=True)
class Model:
    """What decides the shapes of a decoder block; heads are of 128 features in all of these."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int = 128

    def weights(self) -> dict[str, tuple[int, int]]:
        """Layer -> (N, K), q/k/v and gate/up fused."""
        attention = self.heads * self.head_size
        fused = attention + 2 * self.key_value_heads * self.head_size
        return {
            "q/k/v": (fused, self.hidden),
            "o": (self.hidden, attention),
            "gate/up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }


MODELS = (
    Model("Llama-3-8B", 4096, 14336, 32, 8),
    Model("Llama-3-70B", 8192, 28672, 64, 8),
    Model("Qwen3-8B", 4096, 12288, 32, 8),
)


SMALL = (1024, 4096)
"""Too small to fill a large GPU: where "never slower than dense" is hardest."""


def _all_shapes() -> tuple[WeightShape, ...]:
    layers: dict[tuple[int, int], list[str]] = {}
    for model in MODELS:
        for layer, size in model.weights().items():
            layers.setdefault(size, []).append(f"{model.name} {layer}")
    layers.setdefault(SMALL, []).append("Llama-3-8B k or v alone")
    return tuple(WeightShape(*size, tuple(names)) for size, names in layers.items())


SHAPES = _all_shapes()

SEVEN = (
    (6144, 4096),
    (4096, 4096),
    (28672, 4096),
    (4096, 14336),
    (8192, 8192),
    (57344, 8192),
    (8192, 28672),
)
"""The shapes over which geometric means are taken, in the order of tables."""

LARGEST_FOUR = ((57344, 8192), (8192, 28672), (28672, 4096), (8192, 8192))
"""Whose share of the read ceiling is a goal."""

TINY = (WeightShape(96, 64), WeightShape(64, 128))
"""For runs that only show that the code works."""


def shape_of(n: int, k: int) -> WeightShape:
    """The shape with its layers, where it is one of a model."""
    return next((shape for shape in SHAPES if (shape.n, shape.k) == (n, k)), WeightShape(n, k))


SHAPES_BY_NAME = {
    "all": SHAPES,
    "seven": tuple(shape_of(*size) for size in SEVEN),
    "goals": tuple(shape_of(*size) for size in (*SEVEN, SMALL)),
    "tiny": TINY,
}


def drawn(seed: int, count: int = 20) -> list[tuple[WeightShape, int]]:
    """Shapes and numbers of tokens that nobody chose: N and K multiples of 64 in 512 to 32768."""
    generator = random.Random(seed)

    def size() -> int:
        return 64 * generator.randint(512 // 64, 32768 // 64)

    return [(WeightShape(size(), size()), generator.randint(1, 8192)) for _ in range(count)]
