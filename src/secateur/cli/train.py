"""One training of a model, for the commands that train."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secateur.cli.loading import Loading
from secateur.cli.stage_options import recipe_of_stages
from secateur.cli.written import show_report
from secateur.compress import compress_with_report


def train(
    model: str,
    stage: Mapping[str, Any],
    output: Path,
    loading: Loading,
    *,
    overwrite: bool,
    resume: bool,
) -> None:
    """Run a stage that trains, write the model, and say what became of it.

    Args:
        model: folder or Hub id.
        stage: its values in a recipe.
        output: folder to write.
        loading: how the model is loaded.
        overwrite: replace what is in the folder.
        resume: go on from checkpoints.
    """
    recipe = recipe_of_stages([stage])
    _, report = compress_with_report(
        model, recipe, output=output, overwrite=overwrite, resume=resume, **asdict(loading)
    )
    show_report(report, output)
