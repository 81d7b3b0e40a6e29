"""The form in which a checkpoint stores layers: dense, or compact."""

from typing import Literal, get_args

from torch import nn

from secateur.checkpoint.compact import describe_when_saved, make_compact, needs_own_format
from secateur.errors import SecateurError
from secateur.models.swap import to_dense

CheckpointFormat = Literal["auto", "dense", "compact"]
"""`auto`: compact where a plain model cannot hold what the stages made."""


def require_known_format(checkpoint_format: str) -> None:
    """Raise SecateurError unless it is a `CheckpointFormat`."""
    if checkpoint_format not in get_args(CheckpointFormat):
        raise SecateurError(
            f"expected format auto, dense or compact, got {checkpoint_format!r} (checkpoint_format)"
        )


def give_form(model: nn.Module, checkpoint_format: CheckpointFormat, will_be_written: bool) -> None:
    """Make the layers of a model what its checkpoint will hold.

    Args:
        model: after its stages, changed in place.
        checkpoint_format: as of `compress_with_report`.
        will_be_written: without an output, `auto` leaves the layers as they are, for
            `save_pretrained` to describe.

    Raises:
        SecateurError: the model cannot take the form.
    """
    is_compact = checkpoint_format == "auto" and needs_own_format(model)
    if checkpoint_format == "compact" or (is_compact and will_be_written):
        make_compact(model)
    elif is_compact:
        describe_when_saved(model)
    elif checkpoint_format == "dense":
        to_dense(model)
