"""How many processors this process may use: its affinity, and the quota of its container."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_processors() -> int:
    """Processors that this process may use, at least 1.

    A machine may have more: a job gets some of them (taskset, Slurm), or a share of their time (containers).
    """
    # macOS and Windows have no affinity.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, math.floor(quota)))


def _quota() -> float | None:
    """Processors' worth of time that the control groups of this process leave it; None without a limit."""
    try:
        lines = OWN_GROUPS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / "cpu" if controllers else CGROUPS
        # In a container the path may be that of the host, where only the root is there.
        for folder in (root, *(root.joinpath(*part) for part in _ancestors(path))):
            quotas += filter(None, [_read_quota(folder)])
    return min(quotas, default=None)


def _ancestors(path: str) -> list[tuple[str, ...]]:
    """A group and those around it, as parts of their paths, without the root."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return [tuple(parts[: length + 1]) for length in range(len(parts))]


def _read_quota(folder: Path) -> float | None:
    """The limit of one control group, of version 2 or 1; None where it has none."""
    try:
        if (file := folder / "cpu.max").exists():
            quota, period = file.read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip()
                for name in ("quota", "period")
            )
        return float(quota) / float(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
