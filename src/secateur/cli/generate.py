"""`secateur generate`: let a model continue a prompt."""

from typing import Annotated

import typer

from secateur.cli.loading import Loading
from secateur.cli.option_groups import with_option_groups
from secateur.cli.options import ModelArgument
from secateur.cli.waiting import waiting_for
from secateur.evaluate.generate import generate_text


@with_option_groups
def generate_command(
    model: ModelArgument,
    *,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample among the likeliest tokens that make up this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    loading: Loading,
) -> None:
    """Print the prompt with its continuation."""
    loaded = loading.load(model)
    with waiting_for("generate"):
        text = generate_text(
            loaded.model, loaded.tokenizer, prompt, max_new_tokens, temperature, top_p, seed
        )
    typer.echo(prompt + text)
