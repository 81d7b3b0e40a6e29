"""Which layout an op takes."""

from secateur_kernels.errors import SecateurError


def require_layout(weight: object, layout: type) -> None:
    """Raise SecateurError unless a weight is of a layout."""
    if not isinstance(weight, layout):
        raise SecateurError(f"expected a {layout.__name__}, got {type(weight).__name__}")
