"""Goals and predictions, on records that are made up."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench.goal_measures import Records, errors, floor_of_dense, read_all
from bench.goals import GOALS, Goal, goals_table, main, rows, summary
from bench.kernel_choices import cases, table
from bench.kernel_choices import main as choices_main
from bench.kernel_plots import main as plots_main
from bench.kernel_summary import DEVICE, whose
from bench.linear_operands import LOW_RANK, SPARSE
from bench.linears import CHAIN_TOKENS
from bench.predictions import comparison, predictions
from bench.predictions import main as predictions_main
from bench.shapes import SEVEN, SMALL, TOKENS, drawn

CEILING = 4e12


def linear(
    size: tuple[int, int],
    m: int,
    mode: str = "chain",
    speed_up: float = 2.0,
    op: str = SPARSE,
    seed: int | None = None,
    **others: float,
) -> dict[str, Any]:
    """A record whose time of ours is what the weight takes at the read ceiling."""
    num_bytes = size[0] * size[1] * 1.125
    ours = num_bytes / CEILING * 1e6
    times = {"dense cublas": ours * speed_up, "ours auto": ours}
    times |= {name.replace("_", " "): ours * value for name, value in others.items()}
    return {
        "machine": {"device": DEVICE},
        "versions": {"secateur": "1", "torch": "2", "triton": "3"},
        "op": op,
        "mode": mode,
        "shape": list(size),
        "tokens": m,
        "dtype": "bfloat16",
        "seed": seed,
        "weight_bytes": num_bytes,
        "read_ceiling": CEILING,
        "microseconds": times,
        "baseline": {"name": "dense cublas", "microseconds": ours * speed_up},
        "errors": {"ours auto": 0.00104, "dense cublas": 0.001},
        "notes": {"ours auto": "cuda: because"},
    }


def complete(speed_up: float) -> list[dict[str, Any]]:
    """Every case of both ops, and the drawn ones."""
    found = [
        linear(size, m, mode, speed_up, op, two_products=1.3, cusparselt_4=1.0)
        for op in (SPARSE, LOW_RANK)
        for size in (*SEVEN, SMALL)
        for mode in ("isolated", "chain")
        for m in TOKENS
        if mode == "isolated" or m <= CHAIN_TOKENS
    ]
    shapes = [((shape.n, shape.k), m) for shape, m in drawn(1)]
    return found + [linear(size, m, "isolated", speed_up, seed=1) for size, m in shapes]


def packing(microseconds: float) -> dict[str, Any]:
    return {
        "shape": [14336, 4096],
        "work": "Wanda 2:4, score to packed",
        "microseconds": microseconds,
        "bytes": 14336 * 4096 * 3.125,
        "copy_ceiling": 4.3e12,
        "published_ms": 48.1,
    }


def verdicts(records: Records) -> dict[str, str]:
    return {row[0]: row[3] for row in rows(records)}


def test_without_records_nothing_was_measured() -> None:
    table = rows(Records([], []))
    assert len({goal.name for goal in GOALS}) == len(GOALS) == len(table)
    assert {row[3] for row in table} == {"not measured"}
    assert summary(table) == f"{len(GOALS)} not measured"


def test_everything_reached() -> None:
    found = rows(Records(complete(2.0), [packing(55.0)]))
    assert {row[3] for row in found} == {"reached"}, [row for row in found if row[3] != "reached"]
    assert ["2:4 chain, M = 1, mean", ">= 1.85", "2.00", "reached", ""] in found
    assert ["score, select, pack, times as fast as published", ">= 840", "875", "reached", ""] in (
        found
    )


def test_a_little_too_slow_everywhere() -> None:
    said = verdicts(Records(complete(0.97), [packing(70.0)]))
    assert said["never below 0.98 of dense, drawn shapes"] == "missed"
    assert said["2:4 isolated, M = 4096, mean, stretch"] == "missed"
    assert said["score, select, pack, share of copy ceiling"] == "missed"
    # What does not depend on the dense product.
    assert said["2:4 chain, time at M = 8 over M = 1"] == "reached"
    assert said["low rank, never slower than two products"] == "reached"


def test_means_need_all_seven_shapes_and_bounds_do_not() -> None:
    records = Records([linear(size, 16) for size in SEVEN[:6]], [])
    table = {row[0]: row for row in rows(records)}
    assert table["2:4 chain, M = 16, mean"][3] == "not measured"
    slowest = table["2:4 chain, M = 16, slowest shape"]
    assert slowest[3:] == ["so far", "28672 x 4096; 6 of 7 measured"]
    slow = Records([linear(size, 16, speed_up=1.1) for size in SEVEN[:1]], [])
    assert verdicts(slow)["2:4 chain, M = 16, slowest shape"] == "missed"


def test_the_slowest_case_is_named() -> None:
    records = [linear(size, 8, speed_up=1.5) for size in SEVEN]
    records.append(linear((1024, 4096), 4, "isolated", 0.9))
    found = floor_of_dense(False)(Records(records, []))
    assert found is not None
    assert (round(found.value, 3), found.where) == (0.9, "1024 x 4096, M = 4, isolated")
    assert (found.cases, found.of) == (8, 8 * 22)


def test_what_eight_tokens_take_over_one() -> None:
    slow = linear(SEVEN[2], 8)
    slow["microseconds"]["ours auto"] *= 1.2
    records = [linear(size, 1) for size in SEVEN] + [
        linear(size, 8) for size in SEVEN if size != SEVEN[2]
    ]
    table = {row[0]: row for row in rows(Records([*records, slow], []))}
    row = table["2:4 chain, time at M = 8 over M = 1"]
    assert row[1:] == ["<= 1.05", "1.20", "missed", "28672 x 4096"]


def test_another_kind_of_candidate_can_count() -> None:
    records = [linear(size, 1, ours_cuda=0.5) for size in SEVEN]
    table = {row[0]: row for row in rows(Records(records, [], kind="ours"))}
    assert table["2:4 chain, M = 1, mean"][2] == "4.00"
    assert table["read ceiling, chain, mean of four"][2] == "200%"


def test_a_bound_from_above() -> None:
    goal = Goal("errors", 1.05, errors, at_most=True)
    good = Records([linear(SEVEN[0], 1)], [])
    assert goal.verdict(goal.measure(good)) == "reached"
    bad = linear(SEVEN[0], 1)
    bad["errors"]["ours auto"] = 0.0011
    assert goal.verdict(goal.measure(Records([bad], []))) == "missed"


def test_records_are_read_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = linear(SEVEN[0], 1) | {"dtype": "float16"}
    lines = [json.dumps(record) for record in [*complete(2.0), half]]
    (tmp_path / "linears.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert all(r["dtype"] == "bfloat16" for r in read_all(tmp_path).linears)
    main(["--results", str(tmp_path)])
    assert "41 reached, 2 not measured" in capsys.readouterr().out
    predictions_main(["--results", str(tmp_path)])
    # 1.125 of 4 TB/s is slower than the bound.
    assert "| 4096 x 4096, M = 1 | 4.5, memory | 1.59 | 2.00 | 4.7 us, 95% | 2.09 | 2.00 |" in (
        capsys.readouterr().out
    )


H100 = "NVIDIA H100 80GB HBM3"


def test_figures_of_another_gpu_meet_no_goal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither alone, nor after those of the GPU that the goals are for: those stay as they are."""
    others = [linear(size, 1, speed_up=1.2) | {"machine": {"device": H100}} for size in SEVEN]
    path = tmp_path / "linears.jsonl"
    path.write_text("\n".join(map(json.dumps, others)), encoding="utf-8")
    assert goals_table(tmp_path) == "not measured yet"
    main(["--results", str(tmp_path)])
    said = f"no records of {DEVICE}, but of {H100}: say which by --device"
    assert said in capsys.readouterr().out
    main(["--results", str(tmp_path), "--device", H100])
    out = capsys.readouterr().out
    assert out.startswith(H100)
    assert "| 2:4 chain, M = 1, mean | >= 1.85 | 1.20 | another GPU |  |" in out
    assert "5 another GPU" in out.splitlines()[-1]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join("\n" + json.dumps(linear(size, 1)) for size in SEVEN))
        file.write("\n" + json.dumps(others[0]))
    assert "| 2:4 chain, M = 1, mean | >= 1.85 | 2.00 | reached |  |" in goals_table(tmp_path)
    for command in (predictions_main, choices_main, plots_main):
        output = ["--output", str(tmp_path / H100)] if command is plots_main else []
        command(["--results", str(tmp_path), "--device", H100, *output])
    assert "1.20" in capsys.readouterr().out
    assert (tmp_path / H100 / "bandwidth-chain.svg").is_file()
    with pytest.raises(SystemExit):
        plots_main(["--results", str(tmp_path), "--device", H100])
    assert f"are an {DEVICE}'s" in capsys.readouterr().err
    assert whose([], DEVICE) == DEVICE


def test_the_readme_shows_what_was_measured(tmp_path: Path) -> None:
    assert goals_table(tmp_path) == "not measured yet"
    text = "\n".join(json.dumps(linear(size, 1)) for size in SEVEN)
    (tmp_path / "linears.jsonl").write_text(text, encoding="utf-8")
    shown = goals_table(tmp_path)
    assert "| 2:4 chain, M = 1, mean | >= 1.85 | 2.00 | reached |  |" in shown
    assert "not measured |" not in shown
    assert shown.endswith("4 reached, 1 so far, 38 not measured.")


def test_which_kernel_is_the_fastest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = linear(SEVEN[0], 8, ours_skinny=0.9, ours_wide=1.2)
    two = linear(SEVEN[0], 64, ours_skinny=2.0, ours_wide=1.0)
    alone = linear(SEVEN[0], 1)
    found = list(cases([two, one, alone]))
    assert [(case.fastest, round(case.loss, 2)) for case in found] == [
        ("auto", 1.0),
        ("skinny", 1.11),
        ("wide", 1.0),
    ]
    assert found[1].others == "skinny 2.22, wide 1.67"
    assert table([]) == "not measured yet"
    text = "\n".join(json.dumps(record) for record in (one, two))
    (tmp_path / "linears.jsonl").write_text(text, encoding="utf-8")
    choices_main(["--results", str(tmp_path)])
    assert "took 1.054 times as long" in capsys.readouterr().out


def test_predictions_cover_the_seven_shapes() -> None:
    expected = predictions()
    assert {size for size, _ in expected} == set(SEVEN)
    assert expected[(4096, 4096), 64].limit == "L2"
    one = expected[(8192, 8192), 256]
    assert (one.bound, one.limit, one.isolated, one.chain) == (29.9, "tensor cores", 1.4, 1.4)
    assert comparison([]).count("\n") == 1 + len(SEVEN) * 9
