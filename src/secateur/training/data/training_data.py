"""Windows that are trained on or measured on, and what is known about them."""

from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

from secateur.errors import SecateurError


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Windows as torch wants them, with counts. While streaming, counts are 0 and `sha256` empty.

    Counts of tokens are of these windows; documents, cuts and drops are of all that was read.
    """

    dataset: Dataset[dict[str, Tensor]]
    """Items: `input_ids` and `labels`, int64 [max_seq_length], labels -100 where no loss is taken;
    `position_ids`, of that kind too, where examples are packed. Map-style, or iterable while
    streaming."""
    source: str
    max_seq_length: int
    num_windows: int = 0
    num_documents: int = 0
    """Documents or examples."""
    num_tokens: int = 0
    """Without padding."""
    num_loss_tokens: int = 0
    """Those with a label."""
    num_cut: int = 0
    """Examples that were longer than a window and lost their end."""
    num_dropped: int = 0
    """Examples without a response, or without one that begins within a window."""
    sha256: str = ""
    """Of the token ids of all windows and of where loss is taken and examples begin."""
    notes: tuple[str, ...] = ()
    """Of the tokenizer, for a reader of a report."""

    @property
    def is_streamed(self) -> bool:
        """Whether nothing is known before training."""
        return not self.sha256

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of a report should know of how the windows were made."""
        cut = "examples cut at the end of a window", self.num_cut
        dropped = "examples left out for want of a response", self.num_dropped
        of = f"of {self.num_documents:,} in {self.source}"
        counted = (f"{what}: {number:,} {of}" for what, number in (cut, dropped) if number)
        return (*counted, *self.notes)


def check_token(token: int, vocab_size: int, source: str) -> None:
    """Raise `SecateurError` where a token id is not below `vocab_size`."""
    if token >= vocab_size:
        raise SecateurError(
            f"{source} holds the token id {token}, but the model's vocabulary has {vocab_size} "
            "tokens; is the tokenizer another model's?"
        )
