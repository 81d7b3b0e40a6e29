"""What a factor stage did, in words."""

from secateur.report.record import FactorRecord


def method_words(stage: FactorRecord) -> str:
    """`svd-whitened (importance loss)`, or the method alone where nothing was weighed."""
    return f"{stage.method} (importance {stage.importance})" if stage.importance else stage.method


def factored_words(stage: FactorRecord) -> str:
    """`46 of 56 matrices factored by svd, 56.6% of their values kept`; all of them, `56 matrices`.

    The values are of the factored matrices alone, so that stages that were offered more or fewer
    matrices compare. Where they stay dense: `1 matrix cut in rank by laser, all its values still
    stored`.
    """
    total, factored = len(stage.layers), len(stage.factored)
    count = str(total) if factored == total else f"{factored or 'none'} of {total}"
    done = "cut in rank" if stage.stored_dense else "factored"
    words = f"{count} {'matrix' if total == 1 else 'matrices'} {done} by {method_words(stage)}"
    if not factored:
        return words
    whose = "its" if factored == 1 else "their"
    if stage.stored_dense:
        return f"{words}, all {whose} values still stored"
    return f"{words}, {stage.kept_of_factored:.1%} of {whose} values kept"


def budget_words(stage: FactorRecord) -> str:
    """The same, and what that is with the matrices that stay dense, which a budget counts too."""
    words, asked = factored_words(stage), ""
    if stage.budget is not None:
        of = "factors of " if stage.stored_dense else ""
        asked = f" (asked for: {of}{1 - stage.budget:.1%})"
    if not stage.stored_dense and len(stage.factored) < len(stage.layers):
        words += f"; {stage.kept_fraction:.1%} with those left dense"
    return words + asked
