"""Tables and pictures of trainings, from bench/results; nothing is typed by hand.

python -m bench.training_tables   write the pictures to bench/plots
"""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from matplotlib import style
from matplotlib.figure import Figure

from bench.kernel_pictures import INK, MUTED, STYLE
from bench.records import RESULTS

PLOTS = Path(__file__).parent / "plots"
NOT_MEASURED = "Not measured yet."
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_NAMES = {
    "gates": "gates (MLP matrices)",
    "linears": "all matrices of blocks",
    "all": "all weights",
    "lora": "LoRA, rank 8",
    "head_and_last_blocks": "head and last three blocks",
}
_STARTS = {
    "inherited": "inherited, grown once",
    "random": "random, final size at once",
    "stacked": "random, grown by copies of itself",
    "distilled": "random, learning from the parent",
    "attention": "attention inherited, MLP random, grown once",
    "mlp": "MLP inherited, attention random, grown once",
}
Record = Mapping[str, Any]


def read(name: str) -> list[Record]:
    """All records of a file, oldest first."""
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def latest(records: Iterable[Record], *keys: str) -> list[Record]:
    """The last record for every combination of keys."""
    found = {tuple(str(record.get(key)) for key in keys): record for record in records}
    return list(found.values())


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def recovery_table(purpose: str = "methods") -> str:
    """What every method won back, best first."""
    records = [r for r in read("recovery") if r["purpose"] == purpose]
    chosen = latest(records, "model", "dropped_blocks", "method", "loss")
    if not chosen:
        return NOT_MEASURED
    chosen = sorted(chosen, key=lambda record: -record["recovered"])
    rows = [
        [
            _NAMES[record["method"]],
            record["loss"].replace("_", "-"),
            f"{record['num_trained_parameters'] / 1e6:.2f}M",
            f"{record['num_tokens'] / 1e6:.2f}M",
            f"{record['seconds_of_steps'] / 60:.1f} min",
            f"{record['loss_after']:.4f}",
            f"{record['recovered']:.0%}",
        ]
        for record in chosen
    ]
    first = chosen[0]
    words = (
        f"{first['model']}, {first['dropped_blocks']} of 8 blocks dropped: loss "
        f"{first['loss_before']:.4f}, dense {first['dense_loss']:.4f} nats a token on "
        f"{first['num_held_out_windows']} windows of {first['max_seq_length']} tokens of "
        f"{first['evaluation']}, trained on {first['data']}."
    )
    heads = ["trained", "loss", "parameters", "tokens", "time of steps", "loss after", "won back"]
    return f"{words}\n\n{table(heads, rows)}"


def inheritance_table() -> str:
    """The final losses by start, and how much of random's gap to the parent each closes."""
    records = latest(read("inheritance"), "model", "start")
    by_start = {record["start"]: record for record in records}
    random = by_start.get("random")
    if random is None:
        return NOT_MEASURED
    rows = []
    for start, record in by_start.items():
        parent = record["parent_loss"]
        closed = (random["loss"] - record["loss"]) / (random["loss"] - parent)
        rows.append(
            [
                _STARTS[start],
                " → ".join(str(count) for count in record["blocks"]),
                f"{record['num_tokens'] / 1e6:.2f}M",
                f"{record['learning_rate']:g}",
                f"{record['loss']:.4f}",
                f"{closed:.0%}",
            ]
        )
    words = (
        f"The parent, {random['model']} with {random['parent_blocks']} blocks, has "
        f"{random['parent_loss']:.4f} on {random['num_held_out_windows']} windows of "
        f"{random['max_seq_length']} tokens of {random['evaluation']}."
    )
    heads = ["start", "blocks", "tokens", "rate", "loss", "of random's gap to the parent closed"]
    return f"{words}\n\n{table(heads, rows)}"


def long_run_sentence() -> str:
    """Whether the longer run reached the dense model's loss."""
    records = [r for r in read("recovery") if r["purpose"] == "long run"]
    if not records:
        return NOT_MEASURED
    record = records[-1]
    points = record["points"]
    gap = record["loss_after"] - record["dense_loss"]
    half = points[len(points) // 2]
    late = half["held_out_loss"] - points[-1]["held_out_loss"]
    verdict = "reached" if gap <= 0 else "did not reach"
    return (
        f"A longer run of {_NAMES[record['method']]} ({record['loss'].replace('_', '-')}, "
        f"{record['num_tokens'] / 1e6:.1f}M tokens) {verdict} the dense model: "
        f"{record['loss_after']:.4f} against {record['dense_loss']:.4f}, {record['recovered']:.0%} "
        f"of the loss won back. The second half of the tokens brought {late:.4f} of the "
        f"{record['loss_before'] - record['loss_after']:.4f} gained."
    )


def curves_svg(records: Sequence[Record], title: str) -> str:
    """Loss against tokens, a curve a record, with the dense model's line."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(9.2, 4.4), layout="constrained", facecolor="#ffffff")
        axes = figure.subplots()
        for index, record in enumerate(records):
            points = record["points"]
            axes.plot(
                [point["num_tokens"] / 1e6 for point in points],
                [point["held_out_loss"] for point in points],
                marker="os^Dv<"[index % 6],
                markersize=4,
                linewidth=1.6,
                color=_COLOURS[index % 6],
                label=f"{_NAMES[record['method']]}, {record['loss'].replace('_', '-')}",
            )
        dense = records[0]["dense_loss"]
        axes.axhline(dense, color=INK, linewidth=1, linestyle=(0, (5, 3)))
        axes.annotate(
            f"dense {dense:.3f}",
            (axes.get_xlim()[1], dense),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=MUTED,
        )
        axes.set(title=title, xlabel="Tokens trained on (millions)", ylabel="Loss, nats a token")
        axes.grid(axis="y")
        axes.legend(frameon=False)
        buffer = io.StringIO()
        keys = ("Date", "Creator", "Format", "Type")
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(keys))
    text = re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE)
    return re.sub(r"font-family: [^;\"]*", "font-family: 'DejaVu Sans', Verdana, sans-serif", text)


def pictures() -> dict[str, str]:
    """File name -> SVG, of what was measured."""
    records = read("recovery")
    methods = latest([r for r in records if r["purpose"] == "methods"], "method", "loss")
    long = [r for r in records if r["purpose"] == "long run"][-1:]
    titles = {
        "recovery-methods.svg": (methods, "Two of eight blocks dropped: what training wins back"),
        "recovery-long.svg": (long, "Does a model without two blocks catch up?"),
    }
    return {name: curves_svg(found, title) for name, (found, title) in titles.items() if found}


def main() -> None:
    PLOTS.mkdir(exist_ok=True)
    for name, text in pictures().items():
        (PLOTS / name).write_text(text, encoding="utf-8")
        print(f"wrote {PLOTS / name}")


if __name__ == "__main__":
    typer.run(main)
