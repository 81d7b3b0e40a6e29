"""`secateur generate`: let a model continue a prompt."""

from typing import Annotated

import typer

from secateur.checkpoint.load import load_with_tokenizer
from secateur.cli.options import Device, Dtype, ModelArgument, Revision, TrustRemoteCode
from secateur.cli.waiting import waiting_for
from secateur.evaluate.generate import generate_text


def generate_command(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="At most this many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest of this mass.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Print the prompt with its continuation."""
    with waiting_for(f"load {model}"):
        loaded = load_with_tokenizer(model, revision, dtype, trust_remote_code, device)
    with waiting_for("generate"):
        text = generate_text(
            loaded.model, loaded.tokenizer, prompt, max_new_tokens, temperature, top_p, seed
        )
    typer.echo(prompt + text)
