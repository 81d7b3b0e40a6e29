"""Tables and pictures from records that are made up, and from none."""

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench.kernel_plots import main, pictures, write_pictures
from bench.kernel_summary import geometric_means, latest, shares_of_ceiling, speed_ups
from bench.kernel_tables import NOT_MEASURED, tables
from bench.linear_operands import LOW_RANK, SPARSE
from bench.linear_timing import MODES
from bench.shapes import SEVEN, TOKENS

Record = dict[str, Any]


def record(
    size: tuple[int, int], tokens: int, ratio: float, device: str = "NVIDIA H200", **more: Any
) -> Record:
    """One line as `bench.linears` writes it: dense takes 100 us, ours 100 / ratio."""
    n, k = size
    return {
        "machine": {"device": device, "driver_version": "580.1"},
        "versions": {"secateur": "0.1.0", "torch": "2.11.0", "triton": "3.6.0"},
        "op": SPARSE,
        "mode": "isolated",
        "shape": [n, k],
        "tokens": tokens,
        "dtype": "bfloat16",
        "seed": None,
        "weight_bytes": 1000 * n,
        "read_ceiling": 2e9 * n,
        "baseline": {"name": "dense cublas", "microseconds": 100.0},
        "microseconds": {
            "dense cublas": 101.0,
            "ours auto": 100 / ratio,
            "ours triton": 400.0,
            "cusparselt searched [M, N]": 125.0,
            "cusparselt default [M, N]": 500.0,
        },
        "errors": {"dense cublas": 1e-3, "ours auto": 1.02e-3 if tokens == 8 else 1e-3},
        "notes": {"ours auto": "triton with a config: because"},
    } | more


def every_record() -> list[Record]:
    made = []
    for mode in MODES:
        for index, size in enumerate((*SEVEN, (1024, 4096))):
            for tokens in TOKENS if mode == "isolated" else TOKENS[:8]:
                made.append(record(size, tokens, 1.5 + 0.1 * index, mode=mode))
    times = {"dense cublas": 100.0, "ours auto": 50.0, "two products cublas": 80.0}
    made += [record(size, 1, 2.0, op=LOW_RANK, microseconds=times, errors={}) for size in SEVEN]
    made += [record((576, 640), 77, 0.9, seed=5), record((4096, 640), 3, 1.1, seed=5)]
    return made


def packing_record() -> Record:
    return {
        "machine": {"device": "NVIDIA H200"},
        "versions": {"secateur": "0.1.0", "torch": "2.11.0"},
        "work": "Wanda 2:4, score to packed",
        "shape": [14336, 4096],
        "microseconds": 50.0,
        "bytes": 183_500_800,
        "copy_ceiling": 4.3e12,
        "published_ms": 48.0,
    }


def written(folder: Path, linears: list[Record], packing: list[Record]) -> Path:
    for name, records in (("linears", linears), ("packing", packing)):
        text = "".join(json.dumps(line) + "\n" for line in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_without_records_nothing_is_claimed_or_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(tables(tmp_path).values()) == {NOT_MEASURED}
    assert pictures([]) == {}
    main(["--results", str(tmp_path), "--output", str(tmp_path / "plots")])
    assert capsys.readouterr().out == "not measured yet\n"
    assert not (tmp_path / "plots").exists()


def test_tables_hold_the_ratios(tmp_path: Path) -> None:
    named = tables(written(tmp_path, every_record(), [packing_record()]))
    assert named["kernels-machine"] == (
        "NVIDIA H200, driver 580.1; secateur 0.1.0, torch 2.11.0, triton 3.6.0"
    )
    lines = named["sparse24-isolated"].splitlines()
    assert lines[0] == "| N x K | " + " | ".join(f"M = {m}" for m in TOKENS) + " |"
    assert lines[2] == "| 6144 x 4096 | " + " | ".join(["1.50"] * 14) + " |"
    assert lines[9].startswith("| 1024 x 4096 | 2.20 |")
    mean = math.prod(1.5 + 0.1 * i for i in range(7)) ** (1 / 7)
    assert lines[10].startswith(f"| **geometric mean of the seven** | **{mean:.2f}** |")
    assert lines[11].startswith("| cuSPARSELt, searched, mean | 0.80 |")
    assert len(named["sparse24-chain"].splitlines()[0].split("|")) == 2 + 1 + 8
    assert "| two cuBLAS calls, mean | 1.25 |" in named["low-rank-isolated"]
    assert named["low-rank-chain"] == NOT_MEASURED
    # 1000 N bytes in 100 us / ratio, of 2e9 N bytes a second: 0.5% times the ratio.
    assert named["bandwidth"].splitlines()[2] == "| isolated | 1% | 1% | 1% | 1% |"
    assert named["drawn-shapes"].splitlines()[0].startswith("| 1 of 2 below 0.98 |")
    assert "| 576 x 640, M = 77, seed 5 | 0.90 | triton with a config |" in named["drawn-shapes"]
    assert "at most 1.020 over" in named["kernel-errors"]
    assert named["packing"].splitlines()[2] == (
        "| Wanda 2:4, score to packed, 14336 x 4096 | 50.0 | 85% | 960 |"
    )


def test_a_later_record_wins_and_machines_stay_apart() -> None:
    old, new = record(SEVEN[0], 1, 1.2), record(SEVEN[0], 1, 1.4)
    other = record(SEVEN[1], 1, 9.0, device="NVIDIA A100")
    assert latest([other, old, new]) == [new]
    assert latest([old, new, other]) == [new]
    assert latest([old, new, other], "NVIDIA A100") == [other]
    assert latest([]) == []


def test_builds_of_the_library_are_counted(tmp_path: Path) -> None:
    made = [record(size, 1, 1.5) for size in SEVEN[:2]]
    for one, fingerprint in zip(made, "ab", strict=True):
        one["machine"]["library_fingerprint"] = fingerprint
    line = tables(written(tmp_path, made, []))["kernels-machine"]
    assert line.endswith("triton 3.6.0; 2 builds of the compiled library")


def test_a_mean_is_given_where_all_seven_are_there() -> None:
    six = [record(size, 1, 2.0) for size in SEVEN[1:]]
    assert geometric_means(speed_ups(six, SPARSE, "isolated")) == {}
    seven = [*six, record(SEVEN[0], 1, 2.0)]
    assert geometric_means(speed_ups(seven, SPARSE, "isolated")) == {1: pytest.approx(2.0)}
    assert shares_of_ceiling(seven, SPARSE, "isolated")[SEVEN[0]][1] == pytest.approx(0.01)


def test_a_line_that_a_crash_cut_is_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path, [record(SEVEN[0], 1, 1.5)], [])
    with (folder / "linears.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"op": "sparse24_li')
    assert "| 6144 x 4096 | 1.50 |" in tables(folder)["sparse24-isolated"]


def test_pictures_are_drawn_from_what_is_there(tmp_path: Path) -> None:
    folder = written(tmp_path, every_record(), [])
    paths = write_pictures(folder, tmp_path / "plots")
    assert {path.name for path in paths} == {
        "speed-up-sparse24-linear-isolated.svg",
        "speed-up-sparse24-linear-chain.svg",
        "speed-up-low-rank-linear-isolated.svg",
        "bandwidth-isolated.svg",
        "bandwidth-chain.svg",
    }
    text = (tmp_path / "plots" / "speed-up-sparse24-linear-isolated.svg").read_text()
    words = {"".join(node.itertext()).strip() for node in ElementTree.fromstring(text).iter()}
    for word in ("6144 x 4096", "geometric mean", "cuSPARSELt, searched, mean", "8192"):
        assert word in words
    assert "1024 x 4096" not in words
    again = pictures(latest(every_record()))
    assert again["speed-up-sparse24-linear-isolated.svg"] == text


def test_the_command_prints_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--results", str(written(tmp_path, every_record(), [])), "--print"])
    out = capsys.readouterr().out
    assert "sparse24-isolated\n| N x K | M = 1 |" in out
    assert "packing\nnot measured yet" in out
