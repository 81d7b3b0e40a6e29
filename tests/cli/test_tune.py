"""`secateur tune` on the CPU: the table it keeps, and bad input."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from secateur.cli.app import app
from secateur_kernels.dispatch import CPU, Entry, Measurement, Table
from secateur_kernels.dispatch.table import load_table, table_path
from secateur_kernels.version import __version__

COMMON = ["tune", "--device", "cpu", "--tokens", "1,2", "--rounds", "1"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*COMMON, *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return str(result.exception)
    return result.output


def test_keeps_what_it_measured(tmp_path: Path) -> None:
    output = ["--output", str(tmp_path)]
    text = run("--shape", "32x64", *output)
    assert "2 entries kept in" in text.replace("\n", "")
    for name in ("cuda", "triton"):
        assert f"left out: {name}: it needs an NVIDIA GPU\n" in text
    run("--shape", "32x64", "--op", "low-rank", "--dtype", "float32", *output)
    table = load_table(table_path(tmp_path, CPU))
    assert [(e.op, e.m, e.n, e.k, e.rank, e.dtype) for e in table.entries] == [
        ("sparse24_linear", 1, 32, 64, 0, "bfloat16"),
        ("sparse24_linear", 2, 32, 64, 0, "bfloat16"),
        ("low_rank_linear", 1, 32, 64, 8, "float32"),
        ("low_rank_linear", 2, 32, 64, 8, "float32"),
    ]


def test_what_another_version_measured_is_replaced(tmp_path: Path) -> None:
    path = table_path(tmp_path, CPU)
    strange = Measurement("cuda", {"knobs": 3}, 1.0)
    entry = Entry("sparse24_linear", 1, 32, 64, 0, 1, "bfloat16", (strange,))
    Table("cpu", (0, 0), {"secateur": __version__}, (entry,)).save(path)
    text = run("--shape", "32x64", "--output", str(tmp_path)).replace("\n", "")
    assert "this version could not use it" in text
    assert [e.m for e in load_table(path).entries] == [1, 2]
    assert "could not use" not in run("--shape", "32x64", "--output", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either a model or --shape"),
        (["--shape", "32by64"], "expected --shape NxK such as 14336x4096, got '32by64'"),
        (["--shape", "32x64", "--op", "4:8"], "expected --op 2:4, low-rank"),
        (["--shape", "32x64", "--dtype", "int8"], "expected dtype bfloat16"),
        (["--shape", "32x64", "--dtype", "float32"], "bfloat16 or float16 for --op 2:4, got fl"),
        (
            ["--shape", "32x64", "--tokens", "1,x"],
            "expected --tokens as numbers such as 1,16",
        ),
        (["--shape", "32x64", "--tokens", "²"], "expected --tokens as numbers such as 1,16"),
        (["--shape", "32x64", "--rounds", "0"], "expected --rounds of at least 1, got 0"),
        (["--shape", "32x64", "--device", "cuda"], "expected an NVIDIA GPU, found none"),
        (["--shape", "32x64", "--device", "meta"], "expected a device such as cuda or cpu"),
        (["--shape", "32x64", "--device", "abacus"], "expected a device such as cuda or cpu"),
        (["--shape", "32x62"], "K divisible by 4"),
        (["--shape", "32x64", "--output", "/dev/null/tables"], "cannot be written"),
        (["--shape", "64x64", "--rank", "8"], "--rank is for --op low-rank and 2:4+low-rank"),
    ],
)
def test_bad_input(arguments: list[str], message: str) -> None:
    assert message in run(*arguments)
