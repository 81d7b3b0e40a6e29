"""What the benchmark of compilation counts and records; seconds mean nothing here."""

import json
from pathlib import Path

import pytest
from bench.compile_time import Form, Way, main, seconds_to_compile

pytestmark = pytest.mark.compiled


@pytest.mark.parametrize(
    ("form", "way", "programs"),
    [
        # Rotary positions and the last norm are programs, too.
        ("ranks", "by block", 3),
        ("ranks", "by block and rank", 4),
        ("dense", "one program", 1),
    ],
)
def test_programs_are_counted(form: Form, way: Way, programs: int) -> None:
    assert seconds_to_compile(form, way, 2, "eager")[1] == programs


def test_cases_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--most-blocks", "2", "--compiler", "eager", "--results", str(tmp_path)])
    lines = (tmp_path / "compile_time.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [(r["form"], r["way"], r["num_blocks"], r["programs"]) for r in found] == [
        ("dense", "by block", 2, 3),
        ("dense", "one program", 2, 1),
    ]
    assert all(r["cpu_seconds"] > 0 and "torch" in r["versions"] for r in found)
    assert "dense    2 blocks, one program: " in capsys.readouterr().out
