"""What can go wrong, by exit code: see `secateur --help` and docs/evaluate.md for the table."""

from secateur_kernels.errors import SecateurError


class QualityDropError(SecateurError):
    """A model is worse than its baseline by more than was allowed."""

    exit_code = 3


class VerificationError(SecateurError):
    """A written checkpoint is not what was recorded when it was made."""

    exit_code = 4


class OutOfSpaceError(SecateurError):
    """The output does not fit on the disk; the old output, if any, is intact."""

    exit_code = 5


__all__ = ["OutOfSpaceError", "QualityDropError", "SecateurError", "VerificationError"]
