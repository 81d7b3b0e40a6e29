"""Steps that measure no times, side by side: they keep a core busy each, and the GPU hardly."""

import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from bench.exit_status import AGAIN
from bench.gpu_steps import Step
from bench.step_run import Outcome, note, pack, run_step

# A process that waits for the GPU leaves its core to another.
AT_ONCE = 3 * (os.cpu_count() or 1) // 2
# What a process of the GPU suite may hold: CUDA itself, and weights with their truth in float64.
_MEBIBYTES_EACH = 4096
_LAST_LINES = 12
# In pytest's last line, where some tests failed before the budget ended the others.
_FAILED = " failed"
_WIDEST = 160


def at_most_at_once() -> int:
    """As many processes as the cores feed and the GPU's memory holds."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "--id=0"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return max(1, min(AT_ONCE, int(said) // _MEBIBYTES_EACH))
    except (subprocess.SubprocessError, OSError, ValueError):
        return AT_ONCE


def run_together(
    chosen: Sequence[Step],
    out: Path,
    limit: float,
    at_once: int = AT_ONCE,
    archive: Path | None = None,
) -> list[Outcome]:
    """Run steps side by side, whatever becomes of the others.

    Args:
        chosen: what to run; what does not fit at once begins when another has ended.
        out: folder for logs and the list of what succeeded.
        limit: seconds in all; a step for which it leaves no room is passed over.
        at_once: so many at most.
        archive: written anew after each step.

    Returns:
        the outcomes, in the order of `chosen`.
    """
    started = time.monotonic()
    beside = min(at_once, len(chosen)) - 1

    def run(wanted: Step) -> Outcome | None:
        step = wanted.within(limit - (time.monotonic() - started))
        return None if step is None else run_step(step, out, beside)

    outcomes: dict[str, Outcome] = {}
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        running = [pool.submit(run, step) for step in chosen]
        for future in as_completed(running):
            outcome = future.result()
            if outcome is None:
                continue
            outcomes[outcome.step] = outcome
            ended = f"--- {outcome.step}: {outcome.status} after {outcome.seconds:.0f} s"
            print(f"{ended}: {outcome.last_line}", flush=True)
            note(outcome, out)
            pack(out, archive)
    passed_over = [step.name for step in chosen if step.name not in outcomes]
    if passed_over:
        print(f"--- no time for {', '.join(passed_over)}", flush=True)
    return [outcomes[step.name] for step in chosen if step.name in outcomes]


def what_failed(outcomes: Sequence[Outcome], out: Path) -> str:
    """The last lines of the logs of steps that did not succeed."""
    lines: list[str] = []
    for outcome in outcomes:
        log = out / f"{outcome.step}.log"
        fine = outcome.status == 0 or (outcome.status == AGAIN and _FAILED not in outcome.last_line)
        if fine or not log.is_file():
            continue
        lines_of = log.read_text(encoding="utf-8").splitlines()
        # What was skipped comes last, and would hide what failed.
        said = [line for line in lines_of if line.strip() and not line.startswith("SKIPPED")]
        lines += [f"\n{outcome.step}, {outcome.status}:"]
        lines += [line[:_WIDEST] for line in said[-_LAST_LINES:]]
    return "\n".join(lines)
