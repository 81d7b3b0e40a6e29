"""What training minimises: next-token cross-entropy, and distances from the dense model."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100


def _shifted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of logits [P, vocabulary] in fp32 and their targets [P], ignored positions left out."""
    targets = labels[..., 1:].reshape(-1)
    rows = logits[..., :-1, :].reshape(-1, logits.shape[-1])
    counted = targets != IGNORED
    if not bool(counted.all()):
        rows, targets = rows[counted], targets[counted]
    return rows.float(), targets


def cross_entropy(logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Mean negative log-likelihood of each token given those before it, in nats.

    Args:
        logits: floating [batch, length, vocabulary].
        labels: int64 [batch, length]; -100 is not counted.
        num_items: divide the sum by this many predictions, those of the whole optimizer step; None:
            by those of this batch.
    """
    rows, targets = _shifted(logits, labels)
    total = functional.cross_entropy(rows, targets, reduction="sum")
    return total / (num_items if num_items is not None else max(1, targets.numel()))


def window_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every window by itself, [batch]; NaN for one without counted tokens."""
    losses = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none"
    )
    return losses.sum(1) / (labels[:, 1:] != IGNORED).sum(1)


def distillation(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """temperature^2 * mean KL(teacher || student) of next-token distributions (Hinton et al.).

    Args:
        logits: floating [batch, length, vocabulary], of the student.
        teacher_logits: of the same shape.
        labels: int64 [batch, length]; positions that predict -100 are not counted.
        temperature: divides both logits. The square keeps gradients at the same size.
        num_items: as for `cross_entropy`.
    """
    rows, targets = _shifted(logits, labels)
    teacher_rows, _ = _shifted(teacher_logits, labels)
    total = functional.kl_div(
        functional.log_softmax(rows / temperature, dim=-1),
        functional.log_softmax(teacher_rows / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    return temperature**2 * total / (num_items if num_items is not None else max(1, len(targets)))


def block_distance(
    hidden: Sequence[Tensor], teacher_hidden: Sequence[Tensor], teacher_places: Sequence[int]
) -> Tensor:
    """Mean over blocks of ||student - teacher||^2 / ||teacher||^2 of what leaves them.

    Args:
        hidden: of the student, num_blocks + 1 tensors [batch, length, width]: what enters block 0,
            and what leaves each block.
        teacher_hidden: the same of the teacher.
        teacher_places: by the student's block, the place in `teacher_hidden` that it is to match.
    """
    distances = [
        (one.float() - teacher_hidden[place].float()).square().sum()
        / teacher_hidden[place].float().square().sum()
        for one, place in zip(hidden[1:], teacher_places, strict=True)
    ]
    return torch.stack(distances).mean()


def matching_places(kept: Sequence[int], num_teacher_blocks: int) -> tuple[int, ...]:
    """Which of the teacher's hidden states each block of the student has to make.

    A block before a cut makes what entered the next kept block, so that it stands for the dropped
    ones too; the last block makes what left the teacher's last block.

    Args:
        kept: the teacher's index of each of the student's blocks, ascending.
        num_teacher_blocks: the teacher's blocks.

    Returns:
        places in hidden states that begin with what enters block 0.
    """
    return (*kept[1:], num_teacher_blocks)
