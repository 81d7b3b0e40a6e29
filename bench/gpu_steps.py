"""What a machine with an NVIDIA GPU is needed for: commands, each with a budget in seconds."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "kernels" / "secateur_kernels" / "dispatch" / "tables"
PYTHON = sys.executable
# Without the plug-ins that pyproject.toml names, which this machine may not have.
PYTEST = (
    PYTHON, "-m", "pytest", "-q", "-rfEs", "--maxfail=60", "--most-failures=4", "--tb=short",
    "-p", "no:cacheprovider", "-o", "addopts=--strict-markers --import-mode=importlib",
)  # fmt: skip
# With the time that a step gets to stop, under eight minutes.
BUDGET = 400.0
# Between a step's own budget, after which it begins nothing new, and the moment it is stopped.
GRACE = 60.0
# Of what begins nothing new after its own budget: enough to finish what has begun.
OWN_BUDGET = "370"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_PARTS = 2
LINEAR_PARTS = 6
TUNE_PARTS = 4
DRAWN_SEED = "20261121"
# Of the GPU suite, by its folders and longest files: so many that side by side none takes much
# longer than another; not 3 where cases are of three ops in turns.
TEST_PARTS = {
    "accuracy-sparse24": ("tests/gpu/accuracy/test_sparse24_linear.py", 4),
    "accuracy-low-rank": ("tests/gpu/accuracy/test_low_rank_linear.py", 3),
    "accuracy-configs": ("tests/gpu/accuracy/test_kernel_configs.py", 2),
    "memory-poison": ("tests/gpu/memory/test_poison.py", 4),
    "memory-large": ("tests/gpu/memory/test_large.py", 1),
    "launch": ("tests/gpu/launch", 4),
    "packing": ("tests/gpu/packing", 3),
    "use": ("tests/gpu/use", 4),
}
# Their tests are short; so is the time until one has ended that began within the budget.
TEST_GRACE = 30.0
# With less a step that can be cut short is not begun.
LEAST_BUDGET = 45.0
# With less a step whose process died is not started again.
LEAST_AGAIN = 10.0
# Seconds after which one attempt counts as hung: in a quick step, in tests of kernels, and where
# models are compiled or weights of gigabytes checked.
PATIENCE, TEST_PATIENCE, LONG_PATIENCE = 20, 60, 200
# What a short visit to a GPU is for, the most valuable first. What stands together goes side by
# side: it measures no times.
FIRST: tuple[str | tuple[str, ...], ...] = (
    "facts", "build", "probe", "quick", "tune-quick", "bench-quick", "bench-quick-more",
    "bench-quick-low-rank", "bench-competitors", "bench-quick-drawn", "bench-quick-packing",
    "bench-quick-low-rank-more", "microbench", "timeline",
    (
        "sanitize-memcheck", "sanitize-racecheck", "tests-launch", "tests-accuracy-sparse24",
        "tests-accuracy-low-rank", "tests-accuracy-configs", "tests-memory-poison",
        "tests-packing", "tests-use", "sanitize-initcheck", "sanitize-synccheck",
    ),
    "engine-8b", "large-8b", "engine-8b-batch", "engine-8b-prefill",
)  # fmt: skip
# Seconds that a short visit gives to what goes side by side.
TOGETHER = 170.0
_QUICK_TOKENS = "1,8,16,64,128,512,2048"
_MORE_TOKENS = "2,4,32,256,1024,4096,8192"


@dataclass(frozen=True)
class Step:
    """One command with its budget in seconds."""

    name: str
    command: tuple[str, ...]
    budget: float = BUDGET
    needs: str | None = None
    """A program without which the step is left out."""
    flexible: bool = False
    """It takes `--budget`, ends by itself and goes on later: it may be run with less."""
    grace: float = GRACE
    silence: float | None = None
    """Seconds without output after which it is stopped."""
    restarts: bool = False
    """It takes `--budget`, and notes what it tries: where its process dies, it is started again."""
    least: float | None = None
    """Where its budget is not its own, but the longest that it may take: with so many seconds it
    is worth starting."""
    alone: bool = False
    """Nothing may run beside it: it measures times, or makes what others need."""

    def again(self, seconds: float) -> "Step | None":
        """The step with what is left of its own time, or None where it is not started again."""
        budget = seconds - self.grace
        if not self.restarts or budget < LEAST_AGAIN:
            return None
        return replace(self, command=(*self.command, f"--budget={budget:.0f}"))

    def within(self, seconds: float) -> "Step | None":
        """The step with what is left of a run, or None where that is too little."""
        if self.budget + self.grace <= seconds:
            return self
        budget = seconds - self.grace
        if self.least is not None:
            return replace(self, budget=budget) if budget >= self.least else None
        if not self.flexible or budget < LEAST_BUDGET:
            return None
        # The last one of several counts.
        return replace(self, budget=budget, command=(*self.command, f"--budget={budget:.0f}"))


def steps_named(name: str, known: Sequence[Step]) -> list[Step]:
    """The step of a name, or all of the parts that it was divided into; none where there is none.

    Args:
        name: `tests-use-2`, say, or `tests-use` for every part.
        known: all steps.
    """
    part = re.compile(re.escape(name) + r"(-\d+)?")
    return [step for step in known if part.fullmatch(step.name)]


def steps(out: Path, results: Path, tables: Path) -> list[Step]:
    """All steps, in the order in which they make sense.

    Args:
        out: folder for logs and for what passed.
        results: folder for the records.
        tables: folder for dispatch's table.
    """
    return [
        Step("facts", (PYTHON, "-m", "bench.gpu_facts"), 30, grace=20, alone=True),
        Step("build", (PYTHON, "-m", "bench.gpu_build"), 150, grace=20, alone=True),
        Step("probe", (PYTHON, "-m", "bench.one_hot_probe"), 30, grace=10),
        _quick(out),
        *(replace(step, alone=True) for step in _quick_benchmarks(results)),
        *_tests(out),
        *_sanitize(),
        *(
            replace(step, alone=True)
            for step in (*_tune(tables), *_benchmarks(results), *_large_models(results))
        ),
    ]


def _large_models(results: Path) -> list[Step]:
    command = (PYTHON, "-m", "bench.large_models", "--device", "cuda", "--results", str(results))
    # Each form is compiled for a minute or two, and recorded at the end: one command a workload.
    engine = (
        *(PYTHON, "-m", "secateur", "bench", "--shape", "llama-3-8b", "--device", "cuda"),
        *("--forms", "dense,2:4", "--json", str(results / "throughput.jsonl")),
    )
    batch = ("--batch-sizes", "16,64", "--prompt-lengths", "128")
    prefill = ("--batch-sizes", "1", "--prompt-lengths", "8192", "--new-tokens", "16")
    large_8b = (*command, "--shape", "llama-3-8b")
    large_70b = (*command, "--shape", "llama-3-70b-block", "--blocks", "4")

    def step(name: str, least: float, *whole: str) -> Step:
        return Step(name, whole, 300, grace=10, least=least)

    # The large ones record each method as it ends.
    return [
        step("engine-8b", 100, *engine, "--batch-sizes", "1", "--prompt-lengths", "128"),
        step("engine-8b-batch", 100, *engine, *batch),
        step("engine-8b-prefill", 100, *engine, *prefill),
        step("large-8b", 80, *large_8b),
        step("large-70b", 120, *large_70b),
    ]


def _quick(out: Path) -> Step:
    """The compiled kernels at a few sizes, each also by name, and what packs their weights."""
    folder = "tests/gpu/"
    sizes = "130x68 or 1000x384 or 4096x4096 or gate_up or (130 and 68) or (1000 and 90)"
    files = ("test_sparse24_linear.py", "test_low_rank_linear.py", "test_kernel_configs.py")
    chosen = (
        f"{folder}packing",
        *(f"{folder}accuracy/{name}" for name in files),
        "-k",
        f"cuda and ({sizes})",
    )
    command = _pytest(out, "quick", 60, *chosen, patience=2 * PATIENCE)
    return Step("quick", command, 60, grace=20, silence=60, restarts=True)


def _quick_benchmarks(results: Path) -> list[Step]:
    """Compiled kernels against dense products, and what the machine gives at best."""

    def step(name: str, budget: float, *command: str, restarts: bool = False) -> Step:
        own = ("--budget", f"{budget:.0f}", "--results", str(results))
        whole = (PYTHON, "-m", *command, *own)
        # Longer than anything that a candidate of a quick step may take.
        silence = 5 * PATIENCE if restarts else None
        return Step(
            name, whole, budget, flexible=True, grace=20, silence=silence, restarts=restarts
        )

    def linears(name: str, budget: float, op: str, tokens: str, *more: str) -> Step:
        # Only of 2:4 a goal is on a small shape, too.
        shapes = "goals" if op == sparse and not more else "seven"
        options = ("--shapes", shapes, "--op", op, "--tokens", tokens, *patience)
        extent = more or ("--extent", "quick")
        return step(name, budget, "bench.linears", *options, *extent, restarts=True)

    sparse, low_rank = "sparse24_linear", "low_rank_linear"
    competitors = ("--extent", "competitors", "--mode", "isolated")
    patience = ("--patience", str(PATIENCE))
    of_seed = ("bench.linears", "--drawn", DRAWN_SEED, "--op", sparse, "--extent", "quick")
    drawn = step("bench-quick-drawn", 50, *of_seed, *patience, restarts=True)
    return [
        linears("bench-quick", 60, sparse, _QUICK_TOKENS),
        step("microbench", 100, "bench.microbench"),
        step("timeline", 30, "bench.timeline"),
        linears("bench-quick-low-rank", 50, low_rank, "1,2,4,8,16,512,2048"),
        linears("bench-quick-low-rank-more", 50, low_rank, "32,64,128,256,1024,4096,8192"),
        step("bench-quick-packing", 40, "bench.packing", "--shapes", "14336x4096"),
        linears("bench-quick-more", 60, sparse, _MORE_TOKENS),
        drawn,
        linears("bench-competitors", 80, sparse, "512,1024,2048,4096,8192", *competitors),
    ]


def _pytest(out: Path, name: str, budget: float, *paths: str, patience: int) -> tuple[str, ...]:
    done = out / f"passed-{name}.txt"
    # With "=": before its version 9 pytest took the value of an option that it did not know yet for
    # the only path, did not see the real ones, and never learned the option from their conftest.
    options = (f"--budget={budget:.0f}", f"--patience={patience}", f"--done={done}")
    return (*PYTEST, *options, *paths)


def _tests(out: Path) -> list[Step]:
    """The GPU suite."""
    quick = ("accuracy-sparse24", "accuracy-low-rank", "launch")

    def step(name: str, path: str, part: int, parts: int) -> Step:
        patience = TEST_PATIENCE if name in quick else LONG_PATIENCE
        whole = f"tests-{name}" if parts == 1 else f"tests-{name}-{part}"
        chosen = (path,) if parts == 1 else (f"--part={part}/{parts}", path)
        command = _pytest(out, whole, BUDGET, *chosen, patience=patience)
        grace = GRACE if parts == 1 else TEST_GRACE
        return Step(whole, command, flexible=True, grace=grace, restarts=True)

    return [
        step(name, path, part, parts)
        for name, (path, parts) in TEST_PARTS.items()
        for part in range(1, parts + 1)
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
            least=40,
            grace=10,
            needs="compute-sanitizer",
        )
        for name in SANITIZERS
        for part in range(1, SANITIZER_PARTS + 1)
    ]


def _tune(tables: Path) -> list[Step]:
    command = (PYTHON, "-m", "bench.tune")
    # What most problems need; Triton's candidates, each compiled for seconds, come later. Into the
    # run's own cache: the steps that follow choose by it, and it comes back with the logs.
    few = ("--shapes", "goals", "--rounds", "9", "--backends", "cuda", "unpack", "two_gemms")
    own = ("--budget", "150", "--patience", str(2 * PATIENCE))
    quick = Step("tune-quick", (*command, *few, *own), 150, flexible=True, grace=20, restarts=True)
    all_of = (*command, "--budget", OWN_BUDGET, "--output", str(tables))
    return [quick] + [
        Step(f"tune-{part}", (*all_of, "--part", f"{part}/{TUNE_PARTS}"), flexible=True)
        for part in range(1, TUNE_PARTS + 1)
    ]


def _benchmarks(results: Path) -> list[Step]:
    common = ("--budget", OWN_BUDGET, "--results", str(results))
    linears = (PYTHON, "-m", "bench.linears", *common, "--patience", str(LONG_PATIENCE))
    return [
        Step("bench-packing", (PYTHON, "-m", "bench.packing", *common), flexible=True),
        *(
            Step(
                f"bench-linears-{part}",
                (*linears, "--part", f"{part}/{LINEAR_PARTS}"),
                flexible=True,
                restarts=True,
            )
            for part in range(1, LINEAR_PARTS + 1)
        ),
        Step("bench-drawn", (*linears, "--drawn", DRAWN_SEED), flexible=True, restarts=True),
    ]
