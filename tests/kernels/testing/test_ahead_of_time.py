"""Compiling without a GPU: spills are seen, clean kernels pass, errors say what is wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import triton

from secateur_kernels import SecateurError
from secateur_kernels.testing import ahead_of_time
from secateur_kernels.testing.ahead_of_time import CompileReport, cases_of, main
from secateur_kernels.testing.compile_case import CompileCase

KERNELS = '''
import triton
import triton.language as tl

from secateur_kernels.testing.compile_case import CompileCase


@triton.jit
def center(x, y, n, BLOCK: tl.constexpr):
    """Holds a whole block in registers while it is summed."""
    place = tl.arange(0, BLOCK)
    values = tl.load(x + place, mask=place < n, other=0.0)
    tl.store(y + place, values - tl.sum(values, axis=0), mask=place < n)


@triton.jit
def broken(x, y, n, BLOCK: tl.constexpr):
    tl.store(y, tl.load(x + tl.arange(0, BLOCK + 1)))


def case(name, kernel, block, num_warps=1, **changes):
    signature = {"x": "*fp32", "y": "*fp32", "n": "i32", "BLOCK": "constexpr"} | changes
    return CompileCase(name, kernel, signature, {"BLOCK": block}, ("x", "y", "n"), num_warps)
'''

FILES = {
    "clean": 'def ahead_of_time_cases(): return [case("small block", center, 512)]',
    # 512 values a thread, of at most 255 registers.
    "spilling": 'def ahead_of_time_cases(): return [case("huge block", center, 16384)]',
    "uncompilable": (
        "def ahead_of_time_cases():\n"
        '    return [case("odd size", broken, 32), case("no n", center, 32, m="i32")]'
    ),
    "doubled": 'def ahead_of_time_cases(): return 2 * [case("twice", center, 32)]',
    "without_cases": "",
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the modules above, which can be imported."""
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(KERNELS + "\n\n" + text + "\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.compiled
def test_spills_are_caught_and_clean_kernels_are_not(modules: Path) -> None:
    # Without the interpreter, which cannot be switched off in this process.
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "secateur_kernels.testing.ahead_of_time"]
    command += ["clean", "spilling", "uncompilable", "--capability", "90", "--json"]
    environment["PYTHONPATH"] = str(modules)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    clean, spilling, odd_size, no_n = map(json.loads, done.stdout.splitlines())
    assert (clean["name"], clean["capability"]) == ("small block", 90)
    assert not clean["spills"]
    assert clean["local_bytes"] == 0
    assert 16 <= clean["registers"] < 100
    assert spilling["name"] == "huge block"
    assert spilling["spills"]
    assert spilling["local_bytes"] > 0
    assert "odd size does not compile for sm_90" in odd_size["error"]
    assert "power of 2" in odd_size["error"]
    assert "expected a signature of ['x', 'y', 'n', 'BLOCK'] for no n" in no_n["error"]


REPORT = CompileReport("small block", 80, 24, 0, 512)


@pytest.mark.parametrize(
    ("result", "code", "start"),
    [
        (REPORT, 0, "ok       sm_80  24 registers     0 local    512 shared"),
        (replace(REPORT, local_bytes=8), 1, "SPILLS   sm_80  24 registers     8 local"),
        (SecateurError("it does not compile"), 1, "FAILED   it does not compile"),
    ],
)
def test_lines_for_people_and_exit_codes(
    result: CompileReport | SecateurError,
    code: int,
    start: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ahead_of_time, "compile_all", lambda *_: [REPORT, result])
    assert main(["module"]) == code
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("ok")
    assert first.endswith("small block")
    assert second.startswith(start)


def test_the_interpreter_is_refused(
    modules: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    assert main(["clean"]) == 2
    assert "error: Triton's interpreter is on" in capsys.readouterr().err


def test_a_tool_that_prints_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess((), 0, stdout="Usage: REG:24 STACK:0")
    # Asked for its version before, by Triton.
    assert triton.knobs.nvidia.cuobjdump.path
    monkeypatch.setattr(ahead_of_time.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SecateurError, match="cannot read what cuobjdump printed: 'Usage: REG:24"):
        ahead_of_time._resources(b"")


@pytest.mark.parametrize(("instruction", "local_bytes"), [("STL [R1], R4", 8), ("LDC R1, c[0]", 0)])
def test_a_stack_that_no_instruction_touches_is_no_spill(
    instruction: str, local_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Triton 3.8 and 3.9 leave the kernel of `keep_largest_per_row`."""
    printed = {"-res-usage": "REG:56 STACK:8 SHARED:1024 LOCAL:0", "-sass": instruction}
    compiled = SimpleNamespace(asm={"cubin": b""}, metadata=SimpleNamespace(shared=0))
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(ahead_of_time, "_source", lambda case: None)
    monkeypatch.setattr(ahead_of_time.triton, "compile", lambda *_, **__: compiled)
    monkeypatch.setattr(ahead_of_time, "_cuobjdump", lambda cubin, option: printed[option])
    report = ahead_of_time.compile_case(CompileCase("any", None, {}, {}), 90)
    assert (report.local_bytes, report.spills) == (local_bytes, local_bytes > 0)


def test_modules_must_have_cases_of_different_names(modules: Path) -> None:
    assert [case.name for case in cases_of(["clean", "spilling"])] == ["small block", "huge block"]
    with pytest.raises(SecateurError, match=r"cases of different names, got \['twice'\] twice"):
        cases_of(["doubled"])
    with pytest.raises(SecateurError, match="ahead_of_time_cases in without_cases"):
        cases_of(["without_cases"])


def test_a_case_says_which_gpus_run_it() -> None:
    case = CompileCase("any", None, {}, {})
    assert case.runs_on(80)
    only = replace(case, capabilities=(90,))
    assert (only.runs_on(90), only.runs_on(80)) == (True, False)
