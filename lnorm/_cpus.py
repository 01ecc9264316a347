"""What OpenMP does not know of the process: the CPUs that its cgroup grants, and whether it is a forked child."""

from __future__ import annotations

import os


def quota(proc: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float:
    """CPUs' worth of time that the cgroup of this process and those above it grant; inf without a limit.

    cgroup v2 writes "quota period" or "max period" to cpu.max, v1 the two numbers to two files (quota -1: no limit).
    """
    limits = [float("inf")]
    for line in read(proc).split("\n"):
        fields = line.split(":", 2)
        if len(fields) < 3 or (fields[1] and "cpu" not in fields[1].split(",")):
            continue
        _, controllers, path = fields
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
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except (OSError, ValueError):
        return ""


def whole(cpus: float) -> int:
    """Whole CPUs, at least 1."""
    return max(1, int(min(cpus, 0x7FFF)))


PF_FORKNOEXEC = 0x40  # in the flags of proc(5): forked, and has not called exec since


def inherited_openmp() -> bool:
    """Whether this process was forked from one that may have used the OpenMP library which the driver is linked to.

    That library then waits for threads that were not forked. (linux/sched.h; elsewhere OpenMP libraries mind forks.)
    """
    fields = read("/proc/self/stat").rpartition(")")[2].split()  # from the third on
    return len(fields) > 6 and bool(int(fields[6]) & PF_FORKNOEXEC) and "libgomp" in read("/proc/self/maps")


def set_up() -> None:
    """Read the environment, once, at import."""
    inherited = inherited_openmp()  # before the driver brings the library along
    from . import _core

    if inherited:
        _core.forbid_threads()
    _core.limit_threads(whole(quota()))
    wanted = os.environ.get("LNORM_NUM_THREADS")
    if wanted:
        try:
            _core.set_num_threads(int(wanted))
        except ValueError:
            raise ImportError(f"LNORM_NUM_THREADS must be an int of at least 1, got {wanted!r}") from None


set_up()
