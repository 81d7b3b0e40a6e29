"""Losses of factors as the mean of what was measured and of a first-order estimate.

A single change moves the loss on few held-out tokens by less than chance does. The importance of a
matrix for the loss, times the share of its output that a rank leaves out, comes from other tokens
and other arithmetic: it errs in other places.
"""

from collections.abc import Mapping
from dataclasses import replace

from secateur.plan.losses import Losses


def averaged(losses: Losses, importance: Mapping[str, float]) -> Losses:
    """Losses with those of factors averaged with their estimates.

    Args:
        losses: of single changes to the dense model.
        importance: by site, in any unit (see `measure_importance`): estimates are scaled to add
            up to what was measured. A site without one keeps what was measured.
    """
    estimates = {
        (site, form): importance[site] * share
        for (site, form), share in losses.left_out.items()
        if site in importance
    }
    total = sum(estimates.values())
    if not total > 0:
        return losses
    rises = {key: losses.rise(losses.forms[key]) for key in estimates}
    scale = sum(rises.values()) / total
    means = {
        key: losses.start + 0.5 * (rises[key] + scale * estimate)
        for key, estimate in estimates.items()
    }
    return replace(losses, forms=losses.forms | means)
