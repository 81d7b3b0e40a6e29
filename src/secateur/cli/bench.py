"""`secateur bench`: how fast are models, side by side?"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from secateur.checkpoint.load import DTYPES, usable_device
from secateur.cli.options import Device, Dtype, TrustRemoteCode, counts, names
from secateur.cli.waiting import shown_progress, waiting_for
from secateur.cli.written import say_wrote, write_whole
from secateur.errors import SecateurError
from secateur.report import throughput_words
from secateur.report.throughput_page import render_throughput
from secateur.report.throughput_record import ThroughputRecord, append_throughput
from secateur.throughput.candidates import Candidate, load_candidates, random_candidates
from secateur.throughput.shapes import SHAPES
from secateur.throughput.suite import ThroughputOptions, run_throughput
from secateur.throughput.turn import Workload

_DEFAULT_FORMS = "dense,2:4,low-rank,depth"
_RANK_FRACTION, _DEPTH_KEPT = 0.25, 0.75


def bench_command(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Folders or Hub ids, unless --shape is given."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help=f"Build a model of this shape with random weights: {', '.join(SHAPES)}."),
    ] = None,
    forms: Annotated[
        str | None,
        typer.Option(
            help="With --shape: forms to measure, separated by commas; 2:4, low-rank and depth may "
            f"be joined by +. Default: {_DEFAULT_FORMS}."
        ),
    ] = None,
    rank_fraction: Annotated[
        float,
        typer.Option(
            help="Low-rank forms: rank of MLP factors, as a fraction of the smaller side."
        ),
    ] = _RANK_FRACTION,
    depth_kept: Annotated[
        float, typer.Option(help="Depth forms: fraction of the blocks to keep.")
    ] = _DEPTH_KEPT,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,16",
    prompt_lengths: Annotated[
        str, typer.Option(help="Tokens in a prompt, separated by commas.")
    ] = "128,1024",
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate per sequence.")] = 64,
    rounds: Annotated[int, typer.Option(help="Timed turns for each model.")] = 5,
    baseline: Annotated[
        str | None,
        typer.Option(help="Model that the others are compared with. Default: the first."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="transformers: also measure the baseline in transformers' own generate, once with "
            "a key-value cache that grows (eager) and once with one of fixed size (static)."
        ),
    ] = None,
    attention: Annotated[
        str, typer.Option(help="Attention of the engine's decode steps on a GPU: sdpa or flex.")
    ] = "sdpa",
    json_lines: Annotated[
        Path | None, typer.Option("--json", help="Append a JSON line for each measurement.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write an HTML page with pictures.")] = None,
    note: Annotated[
        list[str] | None, typer.Option(help="Sentence to keep with the figures. Repeatable.")
    ] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure how fast models read prompts and generate, several side by side in turns."""
    if dtype not in DTYPES:
        raise SecateurError(f"expected dtype {', '.join(DTYPES)}, got {dtype!r}")
    if against not in (None, "transformers"):
        raise SecateurError(f"expected --against transformers, got {against!r}")
    if bool(models) == (shape is not None) or (forms is not None and shape is None):
        raise SecateurError("say what to measure: models, or --shape NAME with or without --forms")
    if shape is None and (rank_fraction, depth_kept) != (_RANK_FRACTION, _DEPTH_KEPT):
        raise SecateurError("--rank-fraction and --depth-kept are for the forms of a --shape")
    options = ThroughputOptions(
        workloads=tuple(
            Workload(rows, length, new_tokens)
            for rows in counts("--batch-sizes", batch_sizes)
            for length in counts("--prompt-lengths", prompt_lengths)
        ),
        rounds=rounds,
        against_transformers=against is not None,
        baseline=baseline,
        attention=attention,
        notes=tuple(note or ()),
    )
    for path in filter(None, (json_lines, page)):
        _require_writable(path)
    where = usable_device(device)
    with waiting_for("load the models"):
        if shape is None:
            candidates = load_candidates(models or [], dtype, where, trust_remote_code)
        else:
            wanted = names(forms or _DEFAULT_FORMS)
            candidates = random_candidates(
                shape, wanted, dtype, where, rank_fraction=rank_fraction, depth_kept=depth_kept
            )
    _measure(candidates, options, _Results(json_lines, page))


@dataclass
class _Results:
    """What was measured so far, kept in files as it comes and told however the run ends."""

    json_lines: Path | None
    page: Path | None
    record: ThroughputRecord | None = None
    workloads: int = 0
    """That are finished."""
    written: set[Path] = field(default_factory=set)

    def keep(self, record: ThroughputRecord) -> None:
        """Write what a workload adds to the record before."""
        before = len(self.record.measurements) if self.record else 0
        # Figures that cannot be written can still be told.
        self.record = record
        self.workloads += 1
        if self.json_lines is not None:
            new = replace(record, measurements=record.measurements[before:])
            append_throughput(new, self.json_lines)
            self.written.add(self.json_lines)
        if self.page is not None:
            write_whole(self.page, render_throughput(record))
            self.written.add(self.page)

    def tell(self, planned: int) -> None:
        """The figures, how many of the planned workloads they are, and where they are kept."""
        console = Console(emoji=False)
        if self.record is None:
            console.print(
                "stopped before a workload had ended: nothing was written", style="yellow"
            )
            return
        _print(console, self.record)
        if self.workloads < planned:
            console.print(f"stopped after {self.workloads} of {planned} workloads", style="yellow")
        for path in filter(None, (self.json_lines, self.page)):
            if path in self.written:
                say_wrote(console, path)


def _measure(candidates: list[Candidate], options: ThroughputOptions, results: _Results) -> None:
    with _ended_by_sigterm(), ExitStack() as at_the_end, shown_progress() as progress:
        workloads = run_throughput(candidates, options, progress)
        # Only now can anything be measured; told once the progress is off the screen.
        at_the_end.callback(results.tell, len(options.workloads))
        for record in workloads:
            results.keep(record)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the stack while this is open, as SIGINT does, instead of killing at once."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_writable(path: Path) -> None:
    """Found out before hours are spent."""
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise SecateurError(f"expected a file in a folder that exists, got {path}")


def _print(console: Console, record: ThroughputRecord) -> None:
    console.print(_table(record))
    console.print(throughput_words.headline(record), markup=False, highlight=False)
    for sentence in throughput_words.cautions(record):
        console.print(f"! {sentence}", style="yellow", markup=False, highlight=False)


def _table(record: ThroughputRecord) -> Table:
    """The figures for a terminal of 80 columns or more; a line between workloads."""
    table = Table(
        caption="Milliseconds. Decode, Prefill: against the baseline.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for title in ("Model", "Batch", "Prompt", "TTFT p50/p99", "TPOT p50/p99", "Decode", "Prefill"):
        table.add_column(title, justify="left" if title == "Model" else "right")
    rows = throughput_words.rows(record)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        name = row.model if row.runner == "engine" else f"{row.model}, {row.runner}"
        times = [cell.removesuffix(" ms") for cell in (row.first_token, row.per_token)]
        cells = (name, row.batch, row.prompt, *times, row.decode_ratio, row.prefill_ratio)
        last = following is None or (row.batch, row.prompt) != (following.batch, following.prompt)
        table.add_row(*map(Text, cells), end_section=last)
    return table
