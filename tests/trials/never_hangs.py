"""Promise: a forked child never hangs, and neither does anything else.

Trial: children forked in every way, by Python and by C code, from the main thread, from other threads and while others
work; pools of processes; imports in the child; threads set again in it; the interpreter's end with calls in flight;
signals. Each case is a process of its own that must end in time, with the right bits, and leave no process behind.
"""

import atexit
import concurrent.futures
import ctypes
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

from trial import LIMIT, case, forked, main, scale, work, x

warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)


def threads_of(n, job):
    jobs = [threading.Thread(target=job) for _ in range(n)]
    for thread in jobs:
        thread.start()
    return jobs


def join(jobs):
    for thread in jobs:
        thread.join()


@case
def fork():
    expected = work()
    for _ in range(10):
        assert forked(lambda: work() == expected) == 0
        assert work() == expected


@case
def fork_of_a_fork():
    expected = work()
    same = lambda: work() == expected  # noqa: E731
    assert forked(lambda: same() and forked(lambda: same() and forked(same) == 0) == 0) == 0


@case
def fork_that_ends_like_a_script():
    expected = work()
    pid = os.fork()
    if pid == 0:
        assert work() == expected
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0


@case
def fork_by_C_code():
    expected = work()
    for _ in range(10):
        if ctypes.PyDLL(None).fork() == 0:
            os._exit(work() != expected)
        assert os.wait()[1] == 0


@case
def fork_in_a_thread():
    expected = work()

    def job():
        assert work() == expected
        assert forked(lambda: work() == expected) == 0

    for n in (1, 4):
        join(threads_of(n, job))


@case
def fork_in_a_thread_that_ends_in_the_child():
    expected, pids = work(), []

    def job():
        assert work() == expected
        pid = os.fork()
        if pid == 0:
            assert work() == expected
        else:
            pids.append(pid)

    for _ in range(5):
        join(threads_of(1, job))
        if len(pids) == 0:  # in a child
            return
        assert os.waitpid(pids.pop(), 0)[1] == 0


@case
def fork_while_other_threads_work():
    expected, stop = work(), threading.Event()

    def job():
        while not stop.is_set():
            assert work() == expected

    jobs = threads_of(3, job)
    for _ in range(20):
        time.sleep(random.random() / 50)
        assert forked(lambda: work() == expected) == 0
    stop.set()
    join(jobs)


@case
def threads_set_again_in_the_child():
    import lnorm

    expected = work()

    def job():
        for n in (1, 2, 5, None):
            lnorm.set_num_threads(n)
            assert lnorm.get_num_threads() == 1
            assert work() == expected
        join(threads_of(4, work))
        return True

    assert forked(job) == 0


@case
def fork_before_any_call():
    import lnorm

    assert forked(work) == 0
    lnorm.set_num_threads(3)
    assert forked(work) == 0


@case
def import_in_the_child():
    assert "lnorm" not in sys.modules
    assert forked(work) == 0
    assert "lnorm" not in sys.modules


@case
def import_in_the_child_of_a_parent_that_used_the_same_openmp():
    try:
        libgomp = ctypes.CDLL("libgomp.so.1")
    except OSError:
        return "no libgomp"
    libgomp.GOMP_parallel(ctypes.CDLL(None).free, None, 2, 0)  # a team of two, which frees nothing
    assert forked(work) == 0
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, to wait for the grandchild too
    if os.fork() == 0:
        if os.fork() == 0:  # a daemon's way: the parent is gone
            work()
        os._exit(0)
    assert [os.wait()[1], os.wait()[1]] == [0, 0]
    return None


@case
def import_in_a_thread():
    join(threads_of(4, work))
    assert forked(work) == 0


@case
def preexec_fn_of_a_subprocess():
    work()
    subprocess.run([sys.executable, "-c", ""], preexec_fn=work, check=True, timeout=LIMIT)


def same(expected):
    return work() == expected


def pools(method, jobs=6):
    expected = work()
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["lnorm", "trial"])
    with context.Pool(2) as pool:
        assert all(pool.map_async(same, [expected] * jobs).get(LIMIT))
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert all(pool.map(same, [expected] * jobs, timeout=LIMIT))
    with context.Pool(2, maxtasksperchild=1) as pool:
        assert all(pool.map_async(same, [expected] * jobs, chunksize=1).get(LIMIT))
    assert work() == expected


@case
def pool_fork():
    pools("fork")


@case
def pool_forkserver():
    pools("forkserver")


@case
def pool_spawn():
    pools("spawn")


@case
def pool_fork_from_a_thread():
    join(threads_of(2, lambda: pools("fork")))


def forever():
    while True:
        work()


@case
def the_end_while_daemon_threads_work():
    work()
    for _ in range(4):
        threading.Thread(target=forever, daemon=True).start()
    time.sleep(random.random() / 5)


@case
def the_end_by_an_exception_while_a_thread_works():
    thread = threading.Thread(target=lambda: [work() for _ in range(20)])
    pid = os.fork()
    if pid == 0:
        sys.stderr = open(os.devnull, "w")
        thread.start()
        raise ValueError("on purpose")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


@case
def calls_at_exit():
    expected = work()

    class Last:
        def __del__(self):
            work()

    sys.last_one = Last()
    atexit.register(lambda: same(expected))
    for _ in range(2):
        threading.Thread(target=forever, daemon=True).start()


@case
def killed_by_a_signal_in_a_call():
    expected = work()
    for name, number in (("SIGINT", -signal.SIGINT), ("SIGTERM", -signal.SIGTERM)):
        code = f"import sys; sys.path[:0] = {sys.path!r}; import trial\nprint(1, flush=True)\nwhile True: trial.work()"
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        child.stdout.readline()
        time.sleep(random.random() / 5)
        child.send_signal(getattr(signal, name))
        assert child.wait(LIMIT) == number
    assert work() == expected


@case
def signal_handlers_that_work():
    expected, same = work(), []

    def handle(*_):
        same.append(work() == expected)
        signal.setitimer(signal.ITIMER_REAL, random.random() / 20)

    signal.signal(signal.SIGALRM, handle)
    handle()
    while len(same) < 20:
        assert work() == expected
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert all(same)


@case
def many_short_lived_threads():
    """As many teams, each of which has to go with its thread."""
    expected = work()
    import lnorm

    y = lnorm.layer_norm(x, scale)
    for _ in range(100):
        join(threads_of(4, lambda: lnorm.layer_norm(x, scale, out=y)))
    assert work() == expected
    assert forked(lambda: work() == expected) == 0


if __name__ == "__main__":
    settings = [{"LNORM_NUM_THREADS": n} for n in ("2", "4", None)] + [
        {"LNORM_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active"},
        {"OMP_NUM_THREADS": "3", "OMP_DYNAMIC": "true"},
    ]
    sys.exit(main(__doc__, settings))
