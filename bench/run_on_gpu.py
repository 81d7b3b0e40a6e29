"""Everything that a machine with an NVIDIA GPU is needed for, step by step.

    python -m bench.run_on_gpu --list
    python -m bench.run_on_gpu facts build quick
    python -m bench.run_on_gpu --first --minutes 9
    python -m bench.run_on_gpu --all --limit 540
    python -m bench.run_on_gpu --together --limit 180 quick tests-launch tests-use

`--first` is for a short visit: the probe of the layout, a quick check of each compiled kernel,
tuning, quick benchmarks, the GPU suite and the sanitizer side by side, whole models; what has not
been tried yet comes first, and after a failure it goes on. `--all` runs, in
order, what has not succeeded yet, for as long as the limit allows: repeat it until it says that all
is done. `--together` runs steps side by side, each on its share of the cores, their output in their
logs only; it refuses those that measure times. The name of a step that was divided, such as
`tests-use`, stands for all its parts. Every step ends within its budget and prints a short table;
its whole output goes to a log in `--out` (default `runs/gpu`). Steps whose own budget ends them go
on where they ended; what does not fit into the time that is left is cut short, or passed over. A
step whose process dies, or hangs in a kernel, is started again without what it died of
(`secateur_kernels/testing/attempts.py`). After a change of the code, begin with another `--out` and
`--results`. Needs torch, triton, numpy and pytest, whole models transformers and accelerate too;
nothing is fetched, and no setting of the GPU is changed.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.exit_status import AGAIN
from bench.gpu_steps import FIRST, ROOT, TABLES, TOGETHER, Step, steps, steps_named
from bench.side_by_side import at_most_at_once, run_together, what_failed
from bench.step_run import Outcome, finished, note, pack, run_step, tried

OUT = ROOT / "runs" / "gpu"
Turn = Step | tuple[Step, ...]
"""What runs alone, or side by side."""


def run_all(
    chosen: Sequence[Turn],
    out: Path,
    limit: float,
    keep_going: bool = False,
    archive: Path | None = None,
) -> list[Outcome]:
    """Run steps in order, passing over those for which the limit leaves no room.

    Args:
        chosen: what to run.
        out: folder for logs and the list of what succeeded.
        limit: seconds in all.
        keep_going: after a failure too.
        archive: written anew after each step, so that a run that is cut off leaves what it has.
    """
    started = time.monotonic()
    outcomes: list[Outcome] = []
    for wanted in chosen:
        left = limit - (time.monotonic() - started)
        if isinstance(wanted, tuple):
            named = ", ".join(step.name for step in wanted)
            print(f"--- side by side: {named}", flush=True)
            told = run_together(wanted, out, min(left, TOGETHER), at_most_at_once(), archive)
            print(what_failed(told, out), flush=True)
            outcomes += told
            continue
        # The first one is run in any case: a limit below every budget would never get on.
        step = wanted.within(left) or (None if outcomes else wanted)
        if step is None:
            continue
        print(f"--- {step.name}: {' '.join(step.command)}", flush=True)
        outcome = run_step(step, out)
        note(outcome, out)
        pack(out, archive)
        outcomes.append(outcome)
        if outcome.status not in (0, AGAIN) and not keep_going:
            break
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run_on_gpu")
    parser.add_argument(
        "steps", nargs="*", help="names of steps; without its number: all its parts"
    )
    parser.add_argument("--list", action="store_true", help="name all steps")
    parser.add_argument("--all", action="store_true", help="all that have not succeeded yet")
    parser.add_argument("--first", action="store_true", help="what a short visit is for")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds in all")
    parser.add_argument("--minutes", type=float, help="the same in minutes")
    parser.add_argument("--keep-going", action="store_true", help="after a failure too")
    parser.add_argument("--together", action="store_true", help="side by side, but for timing")
    parser.add_argument("--at-once", type=int, help="of these, at most")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for logs")
    parser.add_argument("--archive", type=Path, help="also keep --out as this .tar.gz")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder for dispatch's table")
    options = parser.parse_args(arguments)
    out, results, tables = (p.resolve() for p in (options.out, options.results, options.tables))
    # What `tune-quick` measures serves the steps behind it, and no other run.
    os.environ.setdefault("SECATEUR_CACHE", str(out / "cache"))
    known = steps(out, results, tables)
    named = _chosen(options.steps, known, parser)
    chosen: list[Turn] = [*named]
    if options.first:
        chosen += first_turns(known, out)
    if options.all:
        chosen += [step for step in known if step.name not in finished(out)]
    if options.list or not chosen:
        for step in known:
            done = "done" if step.name in finished(out) else ""
            print(f"{step.name:24} {step.budget:5.0f} s  {done}")
        return 0
    alone = [step.name for step in named if step.alone]
    if options.together and (alone or options.first or options.all):
        parser.error(f"nothing may run beside {', '.join(alone) or 'what measures times'}")
    # Not all that writes there makes it.
    results.mkdir(parents=True, exist_ok=True)
    limit = min(options.limit, 60 * options.minutes) if options.minutes else options.limit
    archive = options.archive.resolve() if options.archive else None
    if options.together:
        at_once = options.at_once or at_most_at_once()
        outcomes = run_together(named, out, limit, at_once, archive)
        print(what_failed(outcomes, out))
    else:
        outcomes = run_all(chosen, out, limit, options.keep_going or options.first, archive)
    print("\nstep                     status  seconds  last line")
    for outcome in outcomes:
        print(f"{outcome.step:24} {outcome.status:6} {outcome.seconds:8.0f}  {outcome.last_line}")
    names = [step.name for step in known if step.name not in finished(out)]
    print(f"left: {', '.join(names)}" if names else "all done")
    return max((abs(outcome.status) for outcome in outcomes), default=0)


def first_turns(known: Sequence[Step], out: Path) -> list[Turn]:
    """What `FIRST` names and has not succeeded yet; what was never tried before the rest.

    Args:
        known: all steps.
        out: folder of what succeeded.
    """
    left = [step for step in known if step.name not in finished(out)]
    before = tried(out)
    new = [step for step in left if step.name not in before]
    again = [step for step in left if step.name in before]
    return [*_turns(new), *_turns(again)]


def _turns(left: Sequence[Step]) -> Iterator[Turn]:
    for names in FIRST:
        if isinstance(names, str):
            yield from steps_named(names, left)
        elif side_by_side := [step for name in names for step in steps_named(name, left)]:
            yield tuple(side_by_side)


def _chosen(
    names: Sequence[str], known: Sequence[Step], parser: argparse.ArgumentParser
) -> list[Step]:
    unknown = [name for name in names if not steps_named(name, known)]
    if unknown:
        there = ", ".join(step.name for step in known)
        parser.error(f"expected steps of {there}, got {', '.join(unknown)}")
    return [step for name in names for step in steps_named(name, known)]


if __name__ == "__main__":
    raise SystemExit(main())
