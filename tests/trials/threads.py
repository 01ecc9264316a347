"""Promise: the default is never more threads than the CPUs of the affinity mask and the cgroup's quota;
OMP_NUM_THREADS and threadpoolctl are honoured; one thread off the main thread unless told otherwise.

Trial: masks set before and after the import, OpenMP's own settings, quotas of real cgroups (v1 or v2, where this
process may make one), threadpoolctl, joblib's, dask's and distributed's workers, and the number of the system's threads
while 16 Python threads call at once. The bits are the same in all of them.
"""

import hashlib
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from trial import case, main, work

ONE_CPU = "one CPU"
ASK = "import lnorm; print(lnorm.get_num_threads())"
CPUS = sorted(os.sched_getaffinity(0))


def ask(code=ASK, before="", **env):
    """The number that a fresh process prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "LNORM_NUM", "GOMP"))}
    done = subprocess.run(
        [sys.executable, "-c", before + code], env=clean | env, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def digest():
    return hashlib.sha256(work()).hexdigest()


def has_openmp():
    import lnorm

    return lnorm.show_config("dicts")["openmp"]["found"]


@case
def affinity_masks():
    if len(CPUS) < 2:
        return ONE_CPU
    masks = itertools.chain(*(itertools.combinations(CPUS, n) for n in range(1, len(CPUS) + 1)))
    for cpus in itertools.islice(masks, 40):
        n = len(cpus)
        narrow = f"import os; os.sched_setaffinity(0, {cpus});"
        assert ask(before=narrow) == (n if has_openmp() else 1)
        late = ask("import lnorm;" + narrow + "print(lnorm.get_num_threads())")
        assert late <= n
        assert ask(before=narrow, OMP_NUM_THREADS="1") == 1
        assert ask(before=narrow, OMP_NUM_THREADS="64") <= n
        assert ask(before=narrow, OMP_PROC_BIND="true") <= n
    return None


@case
def the_settings_of_openmp():
    default = ask()
    assert 1 <= default <= len(CPUS)
    for env, expected in (
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,4"}, 1),
        ({"OMP_NUM_THREADS": "1000"}, default),
        ({"OMP_NUM_THREADS": "nonsense"}, default),
        ({"OMP_DYNAMIC": "true"}, default),
        ({"OMP_PROC_BIND": "true"}, default),
        ({"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}, default),
        ({"OMP_SCHEDULE": "guided", "OMP_MAX_ACTIVE_LEVELS": "4"}, default),
        ({"LNORM_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}, 3 if has_openmp() else 1),
        ({"LNORM_NUM_THREADS": "", "OMP_NUM_THREADS": "1"}, 1),
    ):
        assert ask(**env) == expected, env
    code = "import hashlib, trial; print(int(hashlib.sha256(trial.work()).hexdigest(), 16))"
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); {code}"
    expected = ask(code)
    for env in (
        {"LNORM_NUM_THREADS": "4", "OMP_THREAD_LIMIT": "1"},
        {"LNORM_NUM_THREADS": "7", "OMP_THREAD_LIMIT": "3"},
        {"LNORM_NUM_THREADS": "5", "OMP_DYNAMIC": "true"},
        {"LNORM_NUM_THREADS": "3", "OMP_PROC_BIND": "spread"},
        {"LNORM_NUM_THREADS": "61"},
    ):
        assert ask(code, **env) == expected, env


def cgroup(quota, period=100_000):
    """A new cgroup with that quota, as what to do to enter it, what it is, and how to remove it; or None."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    name = f"lnorm-trial-{os.getpid()}"
    if (v1 / "cpu.cfs_period_us").exists() or (v1 / "tasks").exists():
        own = next(
            line.split(":", 2)[2]
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if "cpu" in line.split(":")[1].split(",")
        )
        group, procs = v1 / own.strip("/") / name, "cgroup.procs"
        files = {"cpu.cfs_period_us": str(period), "cpu.cfs_quota_us": str(quota)}
    elif (v2 / "cgroup.controllers").exists():
        group, procs, files = v2 / name, "cgroup.procs", {"cpu.max": f"{quota} {period}"}
    else:
        return None
    try:
        group.mkdir()
        for file, text in files.items():
            (group / file).write_text(text)
    except OSError:
        if group.exists():
            group.rmdir()
        return None
    return group, group / procs


@case
def quotas_of_real_cgroups():
    tried = 0
    for quota in (50_000, 100_000, 150_000, 200_000, 1_000_000):
        made = cgroup(quota)
        if made is None:
            return "this process may not make a cgroup with a quota" if not tried else None
        group, procs = made
        try:
            enter = f"open({str(procs)!r}, 'w').write('0');"
            assert ask(before=enter) <= max(1, quota // 100_000)
            assert ask(before=enter) == (min(max(1, quota // 100_000), len(CPUS)) if has_openmp() else 1)
            inner = group / "inner"  # which has no limit of its own
            inner.mkdir()
            enter = f"open({str(inner / procs.name)!r}, 'w').write('0');"
            assert ask(before=enter) <= max(1, quota // 100_000)
            tried += 3
        finally:
            time.sleep(0.1)
            for old in (group / "inner", group):
                if old.exists():
                    old.rmdir()
    return None


@case
def threadpoolctl_limits():
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return "threadpoolctl is not installed"
    import lnorm

    lnorm.set_num_threads(None)
    expected, default = digest(), lnorm.get_num_threads()
    for n in (1, 2, 64):
        with threadpool_limits(n):
            assert lnorm.get_num_threads() <= min(n, default)
            assert digest() == expected
    assert lnorm.get_num_threads() == default
    return None


def in_worker(_):
    import lnorm

    return lnorm.get_num_threads(), digest()


@case
def joblib_workers():
    try:
        import joblib
    except ImportError:
        return "joblib is not installed"
    expected = digest()
    for backend in ("threading", "multiprocessing", "loky"):
        seen = joblib.Parallel(2, backend=backend)(joblib.delayed(in_worker)(i) for i in range(6))
        assert {bits for _, bits in seen} == {expected}
        # Two workers of loky share the CPUs by OMP_NUM_THREADS; threads and forked children have one.
        told = "LNORM_NUM_THREADS" in os.environ
        most = max(1, len(CPUS) // 2) if backend == "loky" else 1
        assert told or max(n for n, _ in seen) <= most, backend
    return None


@case
def dask_workers():
    try:
        import dask
        import dask.array as da
    except ImportError:
        return "dask is not installed"
    from trial import scale, x

    import lnorm

    expected = digest()
    y = lnorm.layer_norm(x, scale)
    for scheduler in ("synchronous", "threads", "processes"):
        with dask.config.set(scheduler=scheduler, num_workers=4):
            seen = dask.compute(*[dask.delayed(in_worker)(i) for i in range(4)])
            assert {bits for _, bits in seen} == {expected}
            lazy = lnorm.layer_norm(da.from_array(x, chunks=(100, -1)), scale)
            assert (lazy.compute() == y).all()
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        print("distributed is not installed")
        return None
    for processes in (False, True):
        with (
            LocalCluster(2, processes=processes, threads_per_worker=2, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            seen = client.gather(client.map(in_worker, range(8)))
            assert {bits for _, bits in seen} == {expected}
            assert "LNORM_NUM_THREADS" in os.environ or {n for n, _ in seen} == {1}
    return None


def count():
    return len(os.listdir("/proc/self/task"))


@case
def the_threads_of_the_system_with_16_python_threads():
    """None are added by default; as many as were told, and they go with their Python thread."""
    import lnorm

    expected, before = digest(), count()
    told = lnorm.get_num_threads() if "LNORM_NUM_THREADS" in os.environ else 1
    told = told if has_openmp() else 1
    start, done, most = threading.Barrier(17), threading.Event(), [0]
    seen = []

    def call():
        start.wait()
        seen.extend(digest() for _ in range(3))
        start.wait()  # all are alive until the count is over
        done.wait()

    jobs = [threading.Thread(target=call) for _ in range(16)]
    for job in jobs:
        job.start()
    start.wait()
    while start.n_waiting < 16:
        most[0] = max(most[0], count())
        time.sleep(0.001)
    start.wait()
    done.set()
    for job in jobs:
        job.join()
    assert seen == [expected] * 48
    assert most[0] <= before + 16 * told, (most, before)
    for _ in range(6000):  # the system's threads outlive the join a little
        if count() <= before:
            return None
        time.sleep(0.01)
    raise AssertionError(f"{count()} threads, {before} before")


if __name__ == "__main__":
    sys.exit(main(__doc__, [{}, {"LNORM_NUM_THREADS": "2"}]))
