"""`secateur attention`: which blocks of a model have lazy attention."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.cli.loading import Loading, source_name
from secateur.cli.option_groups import with_option_groups
from secateur.cli.options import JsonOutput, ModelArgument
from secateur.cli.waiting import shown_progress
from secateur.cli.written import say_wrote, write_whole
from secateur.lazy_attention import analyse_attention
from secateur.report import attention_words
from secateur.report.attention_page import render_attention
from secateur.report.attention_record import AttentionBlock, AttentionRecord
from secateur.report.table import printable


@with_option_groups
def attention_command(
    model: ModelArgument,
    *,
    text: Annotated[
        Path, typer.Option(help="A text or JSON-lines file, or a folder of them, to read.")
    ],
    max_seq_length: Annotated[int, typer.Option(help="Tokens in a window.")] = 256,
    num_samples: Annotated[int, typer.Option(help="Windows drawn from the text.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    threshold: Annotated[
        float,
        typer.Option(help="A block is lazy where the mean ranks of all its heads are below this."),
    ] = 1.5,
    html: Annotated[
        Path | None, typer.Option(help="Write the page here.", show_default=False)
    ] = None,
    loading: Loading,
    as_json: JsonOutput = False,
) -> None:
    """Find the blocks of MODEL whose attention is lazy: near rank 1 in every head (Inheritune)."""
    loaded = loading.load(model)
    with shown_progress() as progress:
        record = analyse_attention(
            loaded.model,
            loaded.tokenizer,
            text,
            num_samples=num_samples,
            max_seq_length=max_seq_length,
            seed=seed,
            threshold=threshold,
            source=source_name(model),
            progress=progress,
        )
    if html is not None:
        write_whole(html, render_attention(record))
    if as_json:
        typer.echo(record.to_json(), nl=False)
        return
    console = Console(emoji=False)
    console.print(attention_table(record))
    if html is not None:
        say_wrote(console, html)


def attention_table(record: AttentionRecord) -> RenderableType:
    """The result in words, a row a block, and what else was found."""
    heads = attention_words.head_counts(record.blocks)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("Block", "Highest rank", "Lowest rank", "Widest column mass"):
        table.add_column(column, justify="right")
    table.add_column("")
    for block in record.blocks:
        table.add_row(*_cells(block), "lazy" if block.block in record.lazy else "")
    text = record.text
    read = f"{text.num_samples} windows of {text.max_seq_length} tokens, {heads} heads a block"
    findings = attention_words.findings(record)
    return Group(
        Text(printable(attention_words.headline(record)), style="bold"),
        table,
        Text(f"{printable(record.model.source)} read {read}.", style="dim"),
        *(Text(printable(sentence)) for sentence in findings),
        *(Text(f"! {note}", style="yellow") for note in attention_words.cautions(record)),
    )


def _cells(block: AttentionBlock) -> tuple[str, ...]:
    values = (block.max_rank, min(block.ranks), block.max_mass)
    return (str(block.block), *map(attention_words.format_mean, values))
