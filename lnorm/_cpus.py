"""How many CPUs this process may use: the affinity mask and the cgroup's quota, which OpenMP does not know about."""

from __future__ import annotations

import os

from . import _core


def affinity() -> int:
    """CPUs of the affinity mask, or of the machine where there are no masks."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(proc: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float:
    """CPUs' worth of time that the cgroup of this process and those above it grant; inf without a limit.

    cgroup v2 writes "quota period" or "max period" to cpu.max, v1 the two numbers to two files (quota -1: no limit).
    """
    limits = [float("inf")]
    for line in read(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = f"{root}/cpu" if controllers else root
        # In a container the path may be the host's, while the files of the own group stand at the mount's root.
        parts = path.strip("/").split("/")
        limits += [group_quota("/".join([base, *parts[:depth]])) for depth in range(len(parts) + 1)]
    return min(limits)


def group_quota(group: str) -> float:
    """The limit that this one cgroup sets."""
    words = read(f"{group}/cpu.max").split()
    words = words or (read(f"{group}/cpu.cfs_quota_us") + " " + read(f"{group}/cpu.cfs_period_us")).split()
    try:
        granted, period = words
        return float("inf") if granted in ("max", "-1") else float(granted) / float(period)
    except (ValueError, ZeroDivisionError):
        return float("inf")


def read(path: str) -> str:
    """What a file says; nothing where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError):
        return ""


def limit() -> int:
    """Whole CPUs that the process may use, at least 1."""
    return max(1, int(min(float(affinity()), quota())))


def set_up() -> None:
    """Read the environment, once, at import."""
    _core.limit_threads(limit())
    wanted = os.environ.get("LNORM_NUM_THREADS")
    if wanted:
        try:
            _core.set_num_threads(int(wanted))
        except ValueError:
            raise ImportError(f"LNORM_NUM_THREADS must be an int of at least 1, got {wanted!r}") from None


set_up()
