"""Tables of measured times: kept, merged, refused where they cannot be read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from secateur_kernels import SecateurError
from secateur_kernels.dispatch import CPU, Entry, Measurement, Problem, Table
from secateur_kernels.dispatch.decide import decide, forget
from secateur_kernels.dispatch.table import load_table, load_tables, table_path

PROBLEM = Problem("low_rank_linear", 8, 64, 64, torch.float32, rank=16)
ENTRY = Entry.of(
    PROBLEM, [Measurement("two_gemms", None, 2.0), Measurement("reference", None, 1.0)]
)
TABLE = Table("cpu", (0, 0), {"torch": "2"}, (ENTRY,))


def test_round_trip(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "new" / "times.json")
    assert load_table(tmp_path / "new" / "times.json") == TABLE
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["times.json"]


def test_an_entry_says_what_was_left_out(tmp_path: Path) -> None:
    part = Entry.of(PROBLEM, ENTRY.measurements, ["triton"])
    TABLE.with_entries([part]).save(tmp_path / "times.json")
    assert load_table(tmp_path / "times.json").entries == (part,)
    # Tables from before it was noted are whole.
    TABLE.save(tmp_path / "old.json")
    text = (tmp_path / "old.json").read_text()
    (tmp_path / "old.json").write_text(text.replace(',\n   "left_out": []', ""))
    assert "left_out" not in (tmp_path / "old.json").read_text()
    assert load_table(tmp_path / "old.json") == TABLE


def test_newer_entries_win() -> None:
    newer = replace(ENTRY, measurements=(Measurement("dense", None, 3.0),))
    other = replace(ENTRY, m=9)
    merged = TABLE.merged(TABLE.with_entries([newer, other]))
    assert merged.entries == (newer, other)
    with pytest.raises(SecateurError, match="expected a table of cpu, got one of gpu"):
        TABLE.merged(replace(TABLE, device="gpu"))


def test_tables_of_several_folders_add_up(tmp_path: Path) -> None:
    other = replace(ENTRY, m=9)
    TABLE.save(table_path(tmp_path / "a", CPU))
    TABLE.with_entries([other]).save(table_path(tmp_path / "b", CPU))
    found = load_tables(CPU, (tmp_path / "a", tmp_path / "b", tmp_path / "none"))
    assert found is not None
    assert found.entries == (ENTRY, other)
    assert load_tables(CPU, (tmp_path / "none",)) is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 1}', '{"format": 1, "entries": [{}], "capability": [0, 0]}']
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "times.json").write_text(text)
    with pytest.raises(SecateurError, match="is not a table of measured times"):
        load_table(tmp_path / "times.json")


def test_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text('{"format": 2}')
    with pytest.raises(SecateurError, match="another format than 1; run secateur tune again"):
        load_table(tmp_path / "times.json")


def test_the_cache_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    forget()
    assert decide(PROBLEM).backend == "two_gemms"
    TABLE.save(table_path(tmp_path, CPU))
    assert decide(PROBLEM).backend == "two_gemms", "one choice for the life of the process"
    forget()
    assert decide(PROBLEM).backend == "reference"
    monkeypatch.delenv("SECATEUR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    forget()
    assert decide(PROBLEM).backend == "two_gemms"
    forget()
