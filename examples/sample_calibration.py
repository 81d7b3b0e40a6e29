"""Sample the bundled calibration text from the bundled model: nobody else's words are needed.

    python examples/sample_calibration.py examples/books-8m examples/books-8m/calibration.txt

The draw is from the model's own distribution (temperature 1) with a fixed seed. Another version
of torch may draw other words from the same seed.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    output: Annotated[Path, typer.Argument(help="Text file to write.")],
    num_samples: Annotated[int, typer.Option(help="Texts to sample.")] = 80,
    length: Annotated[int, typer.Option(help="Tokens in a text.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 2,
) -> None:
    """Write `num_samples` sampled texts, a blank line between two."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    torch.manual_seed(seed)
    start = torch.full((num_samples, 1), tokenizer.bos_token_id)
    sampled = network.generate(
        start,
        attention_mask=torch.ones_like(start),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=length,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(sampled, skip_special_tokens=True)
    output.write_text("\n\n".join(text.strip() for text in texts) + "\n", encoding="utf-8")
    typer.echo(f"wrote {sampled.numel()} tokens as text to {output}")


if __name__ == "__main__":
    typer.run(main)
