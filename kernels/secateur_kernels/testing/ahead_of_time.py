"""Compile Triton kernels without a GPU and see whether they spill.

    python -m secateur_kernels.testing.ahead_of_time MODULE... --capability 80 90 --json

compiles what each module's `ahead_of_time_cases()` returns, prints a line a case, and exits with 1
where a case spills or does not compile. Triton's interpreter must be off, and it cannot be turned
off once Triton is imported; so tests run this in a process of its own, without TRITON_INTERPRET.
"""

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from secateur_kernels.errors import SecateurError
from secateur_kernels.testing.compile_case import CompileCase

_RESOURCES = re.compile(r"\b(REG|STACK|SHARED|LOCAL):(\d+)")
_LOCAL_ACCESS = re.compile(r"\b(LDL|STL)\b")


@dataclass(frozen=True)
class CompileReport:
    """What a compiled case needs of a multiprocessor."""

    name: str
    """Of the case."""
    capability: int
    """10 * major + minor, such as 90."""
    registers: int
    """A thread."""
    local_bytes: int
    """A thread, with its stack; not zero where registers spill. A stack that no instruction
    touches, as Triton 3.8 and later leave some kernels, counts for nothing."""
    shared_bytes: int
    """A block."""

    @property
    def spills(self) -> bool:
        """Whether anything lives in local memory, which is as slow as global memory."""
        return self.local_bytes > 0


def compile_case(case: CompileCase, capability: int) -> CompileReport:
    """Compile one case for one compute capability.

    Args:
        case: the kernel and how it is specialised.
        capability: 10 * major + minor.

    Raises:
        SecateurError: Triton's interpreter is on, the case does not name the kernel's arguments,
            or the kernel does not compile (the message says why).
    """
    _require_compiler()
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    source = _source(case)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    except Exception as error:  # Triton raises whatever its passes and ptxas raise.
        raise SecateurError(f"{case.name} does not compile for sm_{capability}: {error}") from error
    cubin = compiled.asm["cubin"]
    resources = _resources(cubin)
    local_bytes = resources["STACK"] + resources["LOCAL"]
    return CompileReport(
        name=case.name,
        capability=capability,
        registers=resources["REG"],
        local_bytes=local_bytes if local_bytes and _touches_local_memory(cubin) else 0,
        shared_bytes=max(resources["SHARED"], int(compiled.metadata.shared)),
    )


def _require_compiler() -> None:
    if triton.knobs.runtime.interpret:
        raise SecateurError(
            "Triton's interpreter is on, so that kernels cannot be compiled: run this in a process "
            "of its own without TRITON_INTERPRET in its environment"
        )


def _source(case: CompileCase) -> ASTSource:
    arguments = list(case.kernel.arg_names)
    constexprs = {name for name, kind in case.signature.items() if kind == "constexpr"}
    if set(case.signature) != set(arguments) or constexprs != set(case.constexprs):
        raise SecateurError(
            f"expected a signature of {arguments} for {case.name}, and values of its constexprs, "
            f"got {dict(case.signature)} and values of {list(case.constexprs)}"
        )
    attributes = {
        (arguments.index(name),): [["tt.divisibility", 16]] for name in case.divisible_by_16
    }
    # Triton goes by position, whatever the order in which a case was written down.
    signature = {name: case.signature[name] for name in arguments}
    return ASTSource(case.kernel, signature, dict(case.constexprs), attributes)


def _resources(cubin: bytes) -> dict[str, int]:
    """Resource usage of a binary of one kernel."""
    usage = _cuobjdump(cubin, "-res-usage")
    resources = {name: int(value) for name, value in _RESOURCES.findall(usage)}
    if set(resources) != {"REG", "STACK", "SHARED", "LOCAL"}:
        raise SecateurError(f"cannot read what cuobjdump printed: {usage[:500]!r}")
    return resources


def _touches_local_memory(cubin: bytes) -> bool:
    """Whether an instruction of a binary reads or writes local memory."""
    return _LOCAL_ACCESS.search(_cuobjdump(cubin, "-sass")) is not None


def _cuobjdump(cubin: bytes, option: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = (triton.knobs.nvidia.cuobjdump.path, option, str(path))
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def cases_of(modules: Sequence[str]) -> list[CompileCase]:
    """The cases of modules by name.

    Raises:
        SecateurError: a module has no `ahead_of_time_cases`, or two cases share a name.
    """
    cases: list[CompileCase] = []
    for name in modules:
        module = importlib.import_module(name)
        if not hasattr(module, "ahead_of_time_cases"):
            raise SecateurError(f"expected a function ahead_of_time_cases in {name}")
        cases += module.ahead_of_time_cases()
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SecateurError(f"expected cases of different names, got {twice} twice")
    return cases


def compile_all(
    modules: Sequence[str], capabilities: Sequence[int]
) -> Iterator[CompileReport | SecateurError]:
    """A report for every case and capability that runs it, or why it does not compile."""
    _require_compiler()
    for case in cases_of(modules):
        for capability in filter(case.runs_on, capabilities):
            try:
                yield compile_case(case, capability)
            except SecateurError as error:
                yield error


def _line(result: CompileReport | SecateurError, as_json: bool) -> str:
    if isinstance(result, SecateurError):
        return json.dumps({"error": str(result)}) if as_json else f"FAILED   {result}"
    if as_json:
        return json.dumps({**asdict(result), "spills": result.spills})
    verdict = "SPILLS  " if result.spills else "ok      "
    return (
        f"{verdict} sm_{result.capability} {result.registers:3} registers "
        f"{result.local_bytes:5} local {result.shared_bytes:6} shared  {result.name}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m secateur_kernels.testing.ahead_of_time",
        description="Compile Triton kernels without a GPU; exit with 1 where one spills.",
    )
    parser.add_argument("modules", nargs="+", help="modules with ahead_of_time_cases()")
    parser.add_argument("--capability", nargs="+", type=int, default=[80, 90])
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    options = parser.parse_args(arguments)
    bad = False
    try:
        for result in compile_all(options.modules, options.capability):
            bad |= isinstance(result, SecateurError) or result.spills
            print(_line(result, options.json), flush=True)
    except SecateurError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
