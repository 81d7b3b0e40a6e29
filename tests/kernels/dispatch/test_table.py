"""Tables of measured times: kept, merged, refused where they cannot be read."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from secateur_kernels import SecateurError
from secateur_kernels.dispatch import CPU, Entry, Measurement, Problem, Table
from secateur_kernels.dispatch.decide import decide, forget, measured_times
from secateur_kernels.dispatch.table import load_table, table_path
from secateur_kernels.version import __version__

PROBLEM = Problem("low_rank_linear", 8, 64, 64, torch.float32, rank=16)
ENTRY = Entry.of(
    PROBLEM, [Measurement("two_gemms", None, 2.0), Measurement("reference", None, 1.0)]
)
TABLE = Table("cpu", (0, 0), {"secateur": __version__}, (ENTRY,))


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


def test_older_times_of_what_was_left_out_are_kept_to_scale() -> None:
    """In the newer run everything took twice as long."""
    fast, slow = (Measurement("triton", {"block": n}, us) for n, us in ((64, 2.0), (32, 5.0)))
    whole = replace(ENTRY, measurements=(Measurement("dense", None, 3.0), fast, slow))
    quick = replace(
        ENTRY,
        measurements=(Measurement("dense", None, 6.0), Measurement("cuda", {}, 4.5)),
        left_out=("triton", "two_gemms"),
    )
    (merged,) = TABLE.with_entries([whole]).merged(TABLE.with_entries([quick])).entries
    scaled = (replace(fast, microseconds=4.0), replace(slow, microseconds=10.0))
    assert merged.measurements == (*quick.measurements, *scaled)
    assert merged.left_out == ("two_gemms",)


@pytest.mark.parametrize("without", ["older", "newer"])
def test_older_times_without_dense_do_not_compare(without: str) -> None:
    dense = Measurement("dense", None, 3.0)
    older = ENTRY if without == "older" else replace(ENTRY, measurements=(dense,))
    measured = Measurement("reference", None, 1.0) if without == "newer" else dense
    newer = replace(ENTRY, measurements=(measured,), left_out=("two_gemms", "dense"))
    assert newer.completed(older) == newer


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


def of_another_version(folder: Path) -> Path:
    """With a config whose fields the kernels do not have."""
    strange = Measurement("cuda", {"kernel": "skinny", "knobs": 3}, 1.0)
    path = table_path(folder, CPU)
    TABLE.with_entries([replace(ENTRY, op="sparse24_linear", measurements=(strange,))]).save(path)
    return path


STRANGE = (
    "is not of this version: expected a config of cuda for sparse24_linear, got "
    r"{'kernel': 'skinny', 'knobs': 3}; run secateur tune again"
)


def test_configs_of_another_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=STRANGE):
        load_table(of_another_version(tmp_path))


@pytest.mark.parametrize("kept", ["cuda", "triton"])
def test_a_config_without_fields_is_refused(tmp_path: Path, kept: str) -> None:
    bare = replace(ENTRY, measurements=(Measurement(kept, {}, 1.0),))
    TABLE.with_entries([bare]).save(tmp_path / "times.json")
    with pytest.raises(SecateurError, match=f"expected a config of {kept} for low_rank_linear"):
        load_table(tmp_path / "times.json")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Of shipped tables and of the cache, both empty."""
    shipped, cache = tmp_path / "shipped", tmp_path / "cache"
    monkeypatch.setattr("secateur_kernels.dispatch.decide.SHIPPED", shipped)
    monkeypatch.setenv("SECATEUR_CACHE", str(cache))
    forget()
    yield shipped, cache
    forget()


def test_the_cache_adds_to_what_ships(folders: tuple[Path, Path]) -> None:
    shipped, cache = folders
    assert measured_times(CPU) is None
    old = replace(TABLE, versions={"secateur": "0.0.1"})
    old.save(table_path(shipped, CPU))
    forget()
    assert measured_times(CPU) == old, "a shipped table serves until there is a newer one"
    other = replace(ENTRY, m=9)
    TABLE.with_entries([other]).save(table_path(cache, CPU))
    forget()
    assert measured_times(CPU) == TABLE.with_entries([ENTRY, other])


def test_a_cache_of_another_version_is_passed_over(folders: tuple[Path, Path]) -> None:
    shipped, cache = folders
    path = of_another_version(cache)
    with pytest.warns(UserWarning, match=f"measured times are passed over: {path} {STRANGE}"):
        assert decide(PROBLEM).backend == "two_gemms"
    forget()
    replace(TABLE, versions={"secateur": "0.0.1"}).save(path)
    message = f"{path} is by secateur 0.0.1, this is {__version__}; run secateur tune again"
    with pytest.warns(UserWarning, match=message):
        assert decide(PROBLEM).backend == "two_gemms"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decide(replace(PROBLEM, m=9)).backend == "two_gemms", "said once"
    TABLE.save(table_path(shipped, CPU))
    forget()
    with pytest.warns(UserWarning, match="passed over"):
        assert decide(PROBLEM).backend == "reference"


@pytest.mark.parametrize(
    "nowhere", ["~nobody-of-that-name/cache", "long" * 100], ids=["~", "OSError"]
)
def test_a_cache_that_cannot_be_read_is_passed_over(
    nowhere: str, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose user has no home, or another's that is closed to it."""
    monkeypatch.setenv("SECATEUR_CACHE", nowhere)
    TABLE.save(table_path(folders[0], CPU))
    forget()
    with pytest.warns(UserWarning, match="measured times are passed over"):
        assert decide(PROBLEM).backend == "reference"


def test_a_shipped_table_of_another_version_is_an_error(folders: tuple[Path, Path]) -> None:
    of_another_version(folders[0])
    with pytest.raises(SecateurError, match=STRANGE):
        decide(PROBLEM)


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
