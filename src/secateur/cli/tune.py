"""`secateur tune`: measure the kernels on this machine, so that dispatch need not guess."""

import re
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table as RichTable

from secateur.checkpoint.load import load_model
from secateur.cli.options import TrustRemoteCode, counts
from secateur.cli.waiting import shown_progress, waiting_for
from secateur.errors import SecateurError
from secateur.models.inventory import take_inventory
from secateur.models.swap import compressed_modules
from secateur_kernels.dispatch.decide import forget
from secateur_kernels.dispatch.problem import Op, device_facts
from secateur_kernels.dispatch.table import Entry, table_of_this_version, table_path
from secateur_kernels.settings import cache_folder
from secateur_kernels.tune import (
    DEFAULT_TOKENS,
    TuneShape,
    empty_table,
    kernels_not_there,
    tune_shape,
)

_OPS: dict[str, Op] = {
    "2:4": "sparse24_linear",
    "low-rank": "low_rank_linear",
    "2:4+low-rank": "sparse24_low_rank_linear",
}
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def tune_command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Model whose weight shapes are measured, unless --shape is given."
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Shape N x K of a weight, such as 14336x4096. Repeatable."),
    ] = None,
    op: Annotated[str, typer.Option(help=f"What to measure: {', '.join(_OPS)}.")] = "2:4",
    rank: Annotated[
        int | None, typer.Option(help="Rank of factors. Default: a quarter of the smaller side.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Token counts, separated by commas.")] = ",".join(
        map(str, DEFAULT_TOKENS)
    ),
    dtype: Annotated[
        str, typer.Option(help=f"Dtype of weights and inputs: {', '.join(_DTYPES)}.")
    ] = "bfloat16",
    device: Annotated[str, typer.Option(help="Where to measure.")] = "cuda",
    rounds: Annotated[int, typer.Option(help="Timed rounds for each candidate.")] = 15,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the table. Default: the cache that dispatch reads."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Time every backend and config of given shapes in turns, and keep the table."""
    where = _device(device)
    if dtype not in _DTYPES:
        raise SecateurError(f"expected dtype {', '.join(_DTYPES)}, got {dtype!r}")
    if dtype == "float32" and op != "low-rank":
        raise SecateurError(f"expected dtype bfloat16 or float16 for --op {op}, got float32")
    if rounds < 1:
        raise SecateurError(f"expected --rounds of at least 1, got {rounds}")
    numbers = sorted(counts("--tokens", tokens))
    shapes = _shapes(model, shape or [], op, rank, trust_remote_code)
    path = table_path(_folder(output or cache_folder()), device_facts(where))
    entries, failures = _measure(shapes, numbers, _DTYPES[dtype], where, rounds)
    table = empty_table(where).with_entries(entries)
    before, why_not = table_of_this_version(path)
    (before.merged(table) if before else table).save(path)
    forget()
    console = Console(emoji=False)
    if why_not:
        gone = f"replaced what {path} held: this version could not use it"
        console.print(gone, markup=False, highlight=False)
    console.print(_rich_table(entries))
    for name, why in kernels_not_there(device_facts(where)).items():
        console.print(f"left out: {name}: {why}", markup=False, highlight=False)
    for failure in dict.fromkeys(failures):
        console.print(f"could not run: {failure}", markup=False, highlight=False)
    console.print(f"{len(entries)} entries kept in {path}", markup=False, highlight=False)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SecateurError(f"expected a device such as cuda or cpu, got {name!r}") from error
    if device.type not in ("cuda", "cpu"):
        raise SecateurError(f"expected a device such as cuda or cpu, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SecateurError(
            "expected an NVIDIA GPU, found none; --device cpu times what there is here, to try the "
            "command"
        )
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def _folder(path: Path) -> Path:
    """The folder, which is there then: found out before anything is measured."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SecateurError(f"{path} cannot be written: {error}") from None
    return path


def _shapes(
    model: str | None, shapes: list[str], op: str, rank: int | None, trust_remote_code: bool
) -> list[TuneShape]:
    if op not in _OPS:
        raise SecateurError(f"expected --op {', '.join(_OPS)}, got {op!r}")
    if op == "2:4" and rank is not None:
        raise SecateurError("--rank is for --op low-rank and 2:4+low-rank, not for 2:4")
    if (model is None) == (not shapes):
        raise SecateurError("expected either a model or --shape, such as --shape 14336x4096")
    sizes = (
        [_size(text) for text in shapes] if model is None else _sizes_of(model, trust_remote_code)
    )
    return [TuneShape(_OPS[op], n, k, _rank(op, n, k, rank)) for n, k in sizes]


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text.replace(" ", ""))
    if match is None:
        raise SecateurError(f"expected --shape NxK such as 14336x4096, got {text!r}")
    return int(match[1]), int(match[2])


def _sizes_of(model: str, trust_remote_code: bool) -> list[tuple[int, int]]:
    with waiting_for(f"load {model}"):
        loaded = load_model(model, trust_remote_code=trust_remote_code)
    dense = {site.shape for site in take_inventory(loaded.model).all_sites}
    layers = compressed_modules(loaded.model).values()
    return sorted(dense | {(layer.out_features, layer.in_features) for layer in layers})


def _rank(op: str, n: int, k: int, rank: int | None) -> int:
    if op == "2:4":
        return 0
    return max(1, min(n, k) // 4) if rank is None else rank


def _measure(
    shapes: list[TuneShape],
    tokens: list[int],
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
) -> tuple[list[Entry], list[str]]:
    entries: list[Entry] = []
    failures: list[str] = []
    with shown_progress() as progress:
        progress.begin("time the candidates", len(shapes) * len(tokens))
        for shape in shapes:
            for entry, failed in tune_shape(shape, tokens, dtype, device, rounds):
                entries.append(entry)
                failures += failed
                progress.advance(f"{shape}, {entry.m} tokens")
    return entries, failures


def _rich_table(entries: list[Entry]) -> RichTable:
    table = RichTable(title="Microseconds of the best config", title_justify="left")
    names = sorted({m.backend for entry in entries for m in entry.measurements})
    table.add_column("weight")
    for heading in ("tokens", *names, "fastest"):
        table.add_column(heading, justify="right")
    for entry in entries:
        best = {
            name: min(m.microseconds for m in entry.measurements if m.backend == name)
            for name in {m.backend for m in entry.measurements}
        }
        rank = f" rank {entry.rank}" if entry.rank else ""
        cells = [f"{best[name]:.1f}" if name in best else "-" for name in names]
        fastest = min(best, key=lambda name: best[name])
        table.add_row(f"{entry.n} x {entry.k}{rank}", str(entry.m), *cells, fastest)
    return table
