"""What was tuned on a GPU becomes the table that ships."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from bench.ship_times import left, main, ship

from secateur_kernels.dispatch.candidates import candidates, candidates_to_tune, config_from
from secateur_kernels.dispatch.choose import choose
from secateur_kernels.dispatch.decide import decide, forget
from secateur_kernels.dispatch.problem import CPU, DeviceFacts, Problem
from secateur_kernels.dispatch.table import (
    SHIPPED,
    Entry,
    Measurement,
    Table,
    load_table,
    table_path,
    tables_in,
)
from secateur_kernels.errors import SecateurError

H200 = DeviceFacts("NVIDIA H200", (9, 0), 132, has_triton=True, has_library=True)


def tuned(m: int, fastest: int = 1) -> tuple[Problem, Entry]:
    """Every candidate of a problem but Triton's: the n-th takes 10 us, the others more."""
    problem = Problem("sparse24_linear", m, 4096, 4096, torch.bfloat16, H200, dense_copy=True)
    choices = [c for c in candidates_to_tune(problem) if c.backend != "triton"]
    times = [10.0 if index == fastest else 20.0 + index for index in range(len(choices))]
    measured = [
        Measurement(c.backend, None if c.config is None else asdict(c.config), us)
        for c, us in zip(choices, times, strict=True)
    ]
    return problem, Entry.of(problem, measured, ["triton"])


def table_of(*entries: Entry, device: DeviceFacts = H200) -> Table:
    return Table(device.name, device.capability, {"torch": "2.11.0"}, entries)


def test_the_fastest_of_each_backend_ships_and_is_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem, entry = tuned(8, fastest=3)
    measured = tmp_path / "times-nvidia-h200.json"
    table_of(entry).save(measured)
    main([str(measured), "--tables", str(tmp_path / "tables")])
    said = capsys.readouterr().out
    assert "1 problems of NVIDIA H200" in said
    assert "not measured: sparse24_linear [4096, 4096]: M = 1, 2, 4, 16, 32" in said
    path = table_path(tmp_path / "tables", H200)
    shipped = load_table(path)
    assert {m.backend for m in shipped.entries[0].measurements} == {"cuda", "unpack", "dense"}
    assert len(shipped.entries[0].measurements) == 3
    assert choose(problem, shipped) == choose(problem, table_of(entry))
    assert len(entry.measurements) > 20
    # Another visit: what it measured wins, the rest stays.
    other, again = tuned(16), replace(entry, measurements=entry.measurements[:1])
    table_of(other[1], again).save(measured)
    ship(measured, tmp_path / "tables")
    assert [e.m for e in load_table(path).entries] == [8, 16]
    assert load_table(path).entries[0].measurements == again.measurements


@pytest.mark.parametrize("folder", ["made here", "of the package"])
def test_dispatch_finds_and_obeys_what_ships(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = SHIPPED if folder == "of the package" else tmp_path / "tables"
    if tables != SHIPPED:
        table_of(tuned(8, fastest=3)[1], tuned(2048, fastest=5)[1]).save(tmp_path / "times.json")
        assert [ship(tmp_path / "times.json", tables)] == tables_in(tables)
    monkeypatch.setattr("secateur_kernels.dispatch.decide.SHIPPED", tables)
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "empty cache"))
    forget()
    for table in map(load_table, tables_in(tables)):
        facts = replace(H200, name=table.device, capability=table.capability)
        assert table.entries
        for entry in table.entries:
            problem = problem_of(entry, facts)
            serving = {choice.backend for choice in candidates(problem)}
            timed = [m for m in entry.measurements if m.backend in serving]
            best = min(timed, key=lambda m: m.microseconds)
            choice = decide(problem)
            assert choice.config == config_from(entry.op, best.backend, best.config)
            assert choice.backend == best.backend
            assert f"measured at {entry.m} tokens" in choice.reason
    forget()


def problem_of(entry: Entry, device: DeviceFacts) -> Problem:
    sizes = (entry.m, entry.n, entry.k, getattr(torch, entry.dtype))
    return Problem(entry.op, *sizes, device, entry.rank, entry.groups, dense_copy=True)  # type: ignore[arg-type]


def test_each_kind_of_gpu_has_a_table_of_its_own(tmp_path: Path) -> None:
    h100 = DeviceFacts("NVIDIA H100 80GB HBM3", (9, 0), 132)
    for device in (H200, h100):
        measured = tmp_path / f"{device.slug}.json"
        table_of(tuned(1)[1], device=device).save(measured)
        ship(measured, tmp_path / "tables")
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert names == {"times-nvidia-h200.json", "times-nvidia-h100-80gb-hbm3.json"}


def test_what_must_not_ship(tmp_path: Path) -> None:
    measured = tmp_path / "times.json"
    table_of(device=CPU).save(measured)
    with pytest.raises(SecateurError, match="expected times of a GPU, got a table of cpu"):
        ship(measured, tmp_path)
    config = {"kernel": "skinny", "no such field": 1}
    old = replace(tuned(1)[1], measurements=(Measurement("cuda", config, 1.0),))
    table_of(old).save(measured)
    with pytest.raises(SecateurError, match="not of this version: expected a config of cuda"):
        ship(measured, tmp_path)


def test_a_whole_table_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.ship_times.missing", lambda *arguments: [])
    assert left(table_of()) == []
