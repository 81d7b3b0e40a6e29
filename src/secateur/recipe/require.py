"""How a stage refuses an option."""

from secateur.errors import SecateurError


def require(holds: bool, fault: str) -> None:
    """Raise SecateurError, saying `fault`, unless the condition holds."""
    if not holds:
        raise SecateurError(fault)
