"""The CPUs that this process may use: its affinity, and the CPU limit of its container."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """Returns the number of CPUs that this process may use at a time, at least 1.

    A CPU limit of a control group (containers, Slurm, systemd) is rounded up.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    limits = [math.ceil(limit) for limit in _cgroup_limits()]
    return max(1, min([count, *limits]))


def _cgroup_limits() -> list[float]:
    """Returns the CPU limits of the process's control group and of all groups above it."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:  # not Linux
        return []
    limits = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / controllers if controllers else _CGROUPS
        relative = PurePosixPath(group).relative_to("/")
        folders = [root, *(root / part for part in [relative, *relative.parents])]
        limits += [limit for folder in folders if (limit := _limit(folder)) is not None]
    return limits


def _limit(folder: Path) -> float | None:
    """Returns the CPU limit in the files of one control group, version 2 or 1."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # "max": no limit
        return None
