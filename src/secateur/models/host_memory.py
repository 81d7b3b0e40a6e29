"""How much host memory a process can still have."""

import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")


def available_host_bytes() -> int:
    """Memory that can be had without swapping, and within the limits of this process's cgroup.

    Without end where the system does not tell: only Linux has these files.
    """
    if not _MEMINFO.is_file():
        return sys.maxsize
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return min([int(line.split()[1]) * 1024, *_room_in_cgroups()])
    raise AssertionError("the kernel names no MemAvailable")


def _room_in_cgroups() -> list[int]:
    """By limit that holds here (version 2): in a container, meminfo tells of the whole machine."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        own = [_CGROUPS / line[4:] for line in lines if line.startswith("0::/")]
        found = [_room(folder) for inner in own for folder in (inner, *inner.parents)]
    except OSError:
        return []
    return [room for room in found if room is not None]


def _room(cgroup: Path) -> int | None:
    """Bytes below one cgroup's limit, cached files counted as free; None without a limit."""
    limit = cgroup / "memory.max"
    if not limit.is_file() or (text := limit.read_text(encoding="ascii").strip()) == "max":
        return None
    used = int((cgroup / "memory.current").read_text(encoding="ascii"))
    lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
    facts = {name: int(value) for name, value in map(str.split, lines)}
    cached = facts.get("active_file", 0) + facts.get("inactive_file", 0)
    return max(0, int(text) - used + cached)
