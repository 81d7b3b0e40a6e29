"""What a factor stage did, in words."""

from secateur.report.record import FactorRecord


def method_words(stage: FactorRecord) -> str:
    """`svd-whitened (importance loss)`, or the method alone where nothing was weighed."""
    return f"{stage.method} (importance {stage.importance})" if stage.importance else stage.method


def factored_words(stage: FactorRecord) -> str:
    """`46 of 56 matrices factored by svd, 56.6% of their values kept`; all of them, `56 matrices`.

    The values are of the factored matrices alone, so that stages that were offered more or fewer
    matrices compare.
    """
    total, factored = len(stage.layers), len(stage.factored)
    count = str(total) if factored == total else f"{factored or 'none'} of {total}"
    words = f"{count} {'matrix' if total == 1 else 'matrices'} factored by {method_words(stage)}"
    if not factored:
        return words
    whose = "its" if factored == 1 else "their"
    return f"{words}, {stage.kept_of_factored:.1%} of {whose} values kept"


def budget_words(stage: FactorRecord) -> str:
    """The same, and what that is with the matrices that stay dense, which a budget counts too."""
    asked = "" if stage.budget is None else f" (asked for: {1 - stage.budget:.1%})"
    if len(stage.factored) == len(stage.layers):
        return factored_words(stage) + asked
    return f"{factored_words(stage)}; {stage.kept_fraction:.1%} with those left dense{asked}"
