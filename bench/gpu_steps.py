"""What a machine with an NVIDIA GPU is needed for: commands, each with a budget in seconds."""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "kernels" / "secateur_kernels" / "dispatch" / "tables"
PYTHON = sys.executable
# Without the plug-ins that pyproject.toml names, which this machine may not have.
PYTEST = (
    PYTHON, "-m", "pytest", "-q", "--maxfail=12", "--tb=short", "-p", "no:cacheprovider",
    "-o", "addopts=--strict-markers --import-mode=importlib",
)  # fmt: skip
# The compiled library, beside the Python package.
BUILD = (PYTHON, "setup.py", "build_ext", "--inplace")
# With the time that a step gets to stop, under eight minutes.
BUDGET = 400.0
# Of what begins nothing new after its own budget: enough to finish what has begun.
OWN_BUDGET = "370"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_PARTS = 2
LINEAR_PARTS = 6
TUNE_PARTS = 4
DRAWN_SEED = 20261121


@dataclass(frozen=True)
class Step:
    """One command with its budget in seconds."""

    name: str
    command: tuple[str, ...]
    budget: float = BUDGET
    needs: str | None = None
    """A program without which the step is left out."""


def steps(out: Path, results: Path, tables: Path) -> list[Step]:
    """All steps, in the order in which they make sense.

    Args:
        out: folder for logs and for what passed.
        results: folder for the records.
        tables: folder for dispatch's table.
    """
    return [
        Step("facts", (PYTHON, "-m", "bench.gpu_facts"), 60),
        Step("build", BUILD, needs="nvcc"),
        Step("quick", _pytest(out, "quick", 45, *_quick()), 45),
        *_tests(out),
        *_sanitize(),
        *_tune(tables),
        *_benchmarks(results),
        *_large_models(results),
    ]


def _large_models(results: Path) -> list[Step]:
    command = (PYTHON, "-m", "bench.large_models", "--device", "cuda", "--results", str(results))
    return [
        Step("large-8b", (*command, "--shape", "llama-3-8b")),
        Step("large-70b", (*command, "--shape", "llama-3-70b-block", "--blocks", "4")),
    ]


def _quick() -> tuple[str, ...]:
    folder = "tests/gpu/"
    return (
        f"{folder}accuracy/test_sparse24_linear.py::test_one_hot_tokens_recover_the_weight",
        f"{folder}packing",
        f"{folder}accuracy",
        "-k",
        "130x68 or 1000x384 or (130 and 68)",
    )


def _pytest(out: Path, name: str, budget: float, *paths: str) -> tuple[str, ...]:
    done = str(out / f"passed-{name}.txt")
    return (*PYTEST, "--budget", f"{budget:.0f}", "--done", done, *paths)


def _tests(out: Path) -> list[Step]:
    """The GPU suite, by folder; what takes longest by file."""
    parts = {
        "accuracy-sparse24": "tests/gpu/accuracy/test_sparse24_linear.py",
        "accuracy-low-rank": "tests/gpu/accuracy/test_low_rank_linear.py",
        "memory-poison": "tests/gpu/memory/test_poison.py",
        "memory-large": "tests/gpu/memory/test_large.py",
        "launch": "tests/gpu/launch",
        "packing": "tests/gpu/packing",
        "use": "tests/gpu/use",
    }
    return [
        Step(f"tests-{name}", _pytest(out, f"tests-{name}", BUDGET, path))
        for name, path in parts.items()
    ]


def _sanitize() -> list[Step]:
    script = (PYTHON, "tests/gpu/sanitize.py")
    tool = ("compute-sanitizer", "--target-processes", "application-only", "--error-exitcode", "9")
    # First without the tool: what is compiled at first use is compiled then.
    plain = Step("sanitize-plain", script)
    return [plain] + [
        Step(
            f"sanitize-{name}-{part}",
            (*tool, "--tool", name, *script, "--part", f"{part}/{SANITIZER_PARTS}"),
            needs="compute-sanitizer",
        )
        for name in SANITIZERS
        for part in range(1, SANITIZER_PARTS + 1)
    ]


def _tune(tables: Path) -> list[Step]:
    command = (PYTHON, "-m", "bench.tune", "--budget", OWN_BUDGET, "--output", str(tables))
    return [
        Step(f"tune-{part}", (*command, "--part", f"{part}/{TUNE_PARTS}"))
        for part in range(1, TUNE_PARTS + 1)
    ]


def _benchmarks(results: Path) -> list[Step]:
    common = ("--budget", OWN_BUDGET, "--results", str(results))
    linears = (PYTHON, "-m", "bench.linears", *common)
    return [
        Step("bench-packing", (PYTHON, "-m", "bench.packing", *common)),
        *(
            Step(f"bench-linears-{part}", (*linears, "--part", f"{part}/{LINEAR_PARTS}"))
            for part in range(1, LINEAR_PARTS + 1)
        ),
        Step("bench-drawn", (*linears, "--drawn", str(DRAWN_SEED))),
    ]
