"""Promise 3: import and calls change nothing around them, and threads stay within everybody's limits."""

import contextlib
import faulthandler
import gc
import os
import subprocess
import sys
import textwrap
import threading
import warnings

import numpy as np
import pytest
from hosts import MODES, clear_flags, host_mode, needs_modes, read_control, read_flags
from oracle import bits, rng_for
from threadpoolctl import threadpool_info, threadpool_limits

import lnorm

CONFIG = lnorm.show_config(mode="dicts")


# Asked of threadpoolctl, which sees the runtime that is loaded, because show_config is itself under test.
OPENMP = any(pool["user_api"] == "openmp" for pool in threadpool_info())


def test_show_config_says_whether_openmp_is_used():
    assert OPENMP in CONFIG["openmp"].values()
    assert all(value is not (not OPENMP) for value in CONFIG["openmp"].values())


def threads(wanted):
    """Without OpenMP there is never more than one thread."""
    return wanted if OPENMP else 1


def python(code, **env):
    """What a fresh process prints; a hang ends in a traceback of all its threads."""
    guard = "import faulthandler; faulthandler.dump_traceback_later(100, exit=True)\n"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LNORM_NUM", "OMP_"))}
    clean |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | env
    command = [sys.executable, "-W", "error", "-c", guard + textwrap.dedent(code)]
    done = subprocess.run(command, env=clean, cwd=os.path.dirname(__file__), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def two_threads():
    lnorm.set_num_threads(2)
    yield
    lnorm.set_num_threads(None)


@pytest.fixture(autouse=True)
def no_hang():
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def large():
    """Work enough for several threads."""
    return rng_for("large").standard_normal((2000, 768), np.float32)


# Threads: what decides their number.


def test_set_num_threads_is_what_get_num_threads_says():
    default = lnorm.get_num_threads()
    for n in (1, 2, 3, np.int64(2)):
        lnorm.set_num_threads(n)
        assert lnorm.get_num_threads() == threads(n)
    lnorm.set_num_threads(None)
    assert lnorm.get_num_threads() == default
    assert 1 <= default <= len(os.sched_getaffinity(0))


GET = "import lnorm; print(lnorm.get_num_threads())"


@pytest.mark.parametrize("variable", ["LNORM_NUM_THREADS", "OMP_NUM_THREADS"])
def test_one_thread_by_environment(variable):
    assert python(GET, **{variable: "1"}) == "1"


def test_lnorm_num_threads_is_read_at_import_and_wins_over_omp_num_threads():
    assert python(GET, LNORM_NUM_THREADS="3") == str(threads(3))
    assert python(GET, LNORM_NUM_THREADS="3", OMP_NUM_THREADS="1") == str(threads(3))


def test_omp_num_threads_is_a_limit():
    assert int(python(GET, OMP_NUM_THREADS="2")) <= 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity masks")
def test_the_affinity_mask_is_a_limit():
    assert python("import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n" + GET) == "1"


@pytest.mark.skipif(
    not any(pool["prefix"] == "libgomp" for pool in threadpool_info()),
    reason="other runtimes read the mask once",
)
def test_the_affinity_mask_is_a_limit_when_it_is_set_after_the_import():
    narrow = "; import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    show = "; print(lnorm.get_num_threads(), lnorm.show_config('dicts')['threads']['decided by'])"
    in_use, decided_by = python("import lnorm" + narrow + show).split(maxsplit=1)
    assert in_use == "1"
    assert "affinity" in decided_by or len(os.sched_getaffinity(0)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="where OpenMP binds threads")
def test_a_main_thread_that_openmp_binds_to_a_cpu_does_not_narrow_the_default():
    assert python(GET, OMP_PROC_BIND="true") == python(GET)


def test_show_config_says_what_decided_the_threads():
    code = "import lnorm; c = lnorm.show_config('dicts')['threads']; print(c['in use'], c['decided by'])"
    in_use, decided_by = python(code, LNORM_NUM_THREADS="3").split(maxsplit=1)
    assert in_use == str(threads(3))
    assert ("LNORM_NUM_THREADS" if OPENMP else "OpenMP") in decided_by
    if OPENMP:
        code = "import lnorm; lnorm.set_num_threads(2); print(lnorm.show_config('dicts')['threads'])"
        assert "set_num_threads" in python(code)


def test_threadpoolctl_limits_are_honoured():
    expected = lnorm.layer_norm(large())
    with threadpool_limits(1, user_api="openmp"):
        assert lnorm.get_num_threads() == 1
        assert bits(lnorm.layer_norm(large())) == bits(expected)


def in_thread(work):
    result = []
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()
    thread.join()
    return result[0]


def test_a_thread_other_than_the_main_one_uses_one_thread_unless_told(two_threads):
    assert in_thread(lnorm.get_num_threads) == threads(2)
    lnorm.set_num_threads(None)
    assert in_thread(lnorm.get_num_threads) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of the process in /proc")
def test_the_number_of_threads_is_the_number_of_threads():
    code = """
        import os, sys, threading, time
        import numpy as np, lnorm
        x = np.ones((2000, 768), np.float32)
        count = lambda: len(os.listdir("/proc/self/task"))
        before = count()
        lnorm.layer_norm(x[:1]); small = count() - before
        counts = []  # taken inside, because the system's thread may outlive the join; its own is not counted
        job = threading.Thread(target=lambda: (lnorm.layer_norm(x), counts.append(count() - before - 1)))
        job.start(); job.join(); other = counts[0]
        while count() > before: time.sleep(0.001)  # until the system's thread is gone
        lnorm.layer_norm(x); lnorm.layer_norm_backward(x, x); large = count() - before
        lnorm.set_num_threads(3); lnorm.layer_norm(x); more = count() - before
        print(small, other, large, more)
    """
    # Small work and work off the main thread start none; the guard's own thread is counted before.
    extra = [int(n) for n in python(code, LNORM_NUM_THREADS="").split()]
    assert extra == [0, 0, int(python(GET)) - 1, threads(3) - 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("told", ["lnorm.set_num_threads(2)", "lnorm.set_num_threads(None)", "pass"])
def test_a_forked_child_works_with_one_thread_and_does_not_hang(told):
    code = f"""
        import os, signal, warnings
        import numpy as np, lnorm
        x = np.linspace(0, 1, 2000 * 768, dtype=np.float32).reshape(2000, 768)
        lnorm.set_num_threads(2)
        y, dx = lnorm.layer_norm(x), lnorm.layer_norm_backward(x, x)[0]
        {told}
        warnings.simplefilter("ignore")  # Python 3.12 warns of a fork with threads; the guard is one
        read, write = os.pipe()
        if os.fork() == 0:
            signal.alarm(60)  # faulthandler would wait for the thread of the guard, which was not forked
            same = (lnorm.layer_norm(x) == y).all() and (lnorm.layer_norm_backward(x, x)[0] == dx).all()
            lnorm.set_num_threads(3)
            again = (lnorm.layer_norm(x) == y).all()
            os.write(write, f"{{lnorm.get_num_threads()}} {{same and again}}".encode())
            os._exit(0)
        os.close(write)
        print(os.read(read, 100).decode())
        os.wait()
        assert (lnorm.layer_norm(x) == y).all()
    """
    assert python(code) == "1 True"


FORKS = {
    "C code forks": """
        import ctypes
        lnorm.layer_norm(x)
        if ctypes.PyDLL(None).fork() == 0:
            child()
    """,
    # libgomp ends a thread's team with the thread, also when the team was not forked along.
    "a thread forks and ends in the child": """
        import threading
        def work():
            lnorm.layer_norm(x)
            if os.fork() == 0:
                signal.alarm(60)
                lnorm.layer_norm(x)
        thread = threading.Thread(target=work); thread.start(); thread.join()
    """,
    "a subprocess's preexec_fn works": """
        import subprocess, sys
        lnorm.layer_norm(x)
        def work():
            signal.alarm(60)
            lnorm.layer_norm(x)
        subprocess.run([sys.executable, "-c", ""], preexec_fn=work, check=True)
    """,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("how", FORKS)
def test_a_child_does_not_hang_however_it_was_forked(how):
    code = """
        import os, signal, warnings
        import numpy as np, lnorm
        warnings.simplefilter("ignore")
        x = np.ones((2000, 768), np.float32)
        lnorm.set_num_threads(2)
        def child():
            signal.alarm(60)
            lnorm.layer_norm(x)
            os._exit(lnorm.get_num_threads() - 1)
    """
    after = """
        try:
            print(os.wait()[1])
        except ChildProcessError:  # subprocess has waited for it
            print(0)
    """
    assert python(textwrap.dedent(code) + textwrap.dedent(FORKS[how]) + textwrap.dedent(after)) == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="calls libgomp by its name")
def test_a_child_that_imports_does_not_hang_after_its_parent_has_used_the_same_openmp():
    code = """
        import ctypes, os, signal, warnings
        import numpy as np
        warnings.simplefilter("ignore")
        x = np.ones((2000, 768), np.float32)
        try:
            libgomp = ctypes.CDLL("libgomp.so.1")
        except OSError:
            print("0 no libgomp")
            raise SystemExit
        libgomp.GOMP_parallel(ctypes.CDLL(None).free, None, 2, 0)  # a team of two, which frees nothing
        if os.fork() == 0:
            signal.alarm(60)
            import lnorm
            lnorm.set_num_threads(2)
            lnorm.layer_norm(x)
            print(lnorm.show_config("dicts")["threads"], flush=True)
            os._exit(0)
        print(os.wait()[1])
    """
    assert python(code).splitlines()[-1].startswith("0")


@pytest.mark.parametrize("told", [None, 2])
def test_many_python_threads_at_once_get_the_same_bits(told):
    x, dy = large(), large()[::-1].copy()
    expected = bits(lnorm.layer_norm(x), *lnorm.layer_norm_backward(dy, x))
    lnorm.set_num_threads(told)
    start, results = threading.Barrier(8), []

    def work():
        start.wait()
        for _ in range(3):
            results.append(bits(lnorm.layer_norm(x), *lnorm.layer_norm_backward(dy, x)))

    jobs = [threading.Thread(target=work) for _ in range(8)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    lnorm.set_num_threads(None)
    assert len(results) == 24
    assert all(result == expected for result in results)


def test_the_gil_is_released_for_large_work(two_threads):
    """Another Python thread sees the output half done, which it could not otherwise."""
    x = np.ones((200_000, 64), np.float32)
    out = np.empty_like(x)
    half_done, finished = threading.Event(), threading.Event()

    def watch():
        while not (half_done.is_set() or finished.is_set()):
            first = out[0, 0]
            if (
                first == 0 and out[-1, -1] == 7
            ):  # in this order: the last row is never new before the first is
                half_done.set()

    for _ in range(50):
        out[...] = 7
        finished.clear()
        job = threading.Thread(target=watch)
        job.start()
        lnorm.layer_norm(x, out=out)
        finished.set()
        job.join()
        if half_done.is_set():
            break
    assert half_done.is_set()


# Import.


@pytest.mark.parametrize("name", ["sse9", "x86-64-v99", "X86-64 "])
def test_an_unknown_instruction_set_is_an_import_error_that_lists_the_valid_ones(name):
    code = """
        try:
            import lnorm
        except ImportError as error:
            print(error)
    """
    message = python(code, LNORM_ISA=name)
    assert "LNORM_ISA" in message and name.strip() in message
    assert not [isa for isa in CONFIG["instruction sets"]["runnable"] if isa not in message]


def test_an_unrunnable_instruction_set_is_an_import_error():
    sets = CONFIG["instruction sets"]
    foreign = "aarch64" if any(isa.startswith("x86") for isa in sets["runnable"]) else "x86-64-v4"
    code = "try:\n    import lnorm\nexcept ImportError as error:\n    print(error)"
    for isa in {foreign, *sets["compiled"]} - set(sets["runnable"]):
        assert isa in python(code, LNORM_ISA=isa)


@pytest.mark.parametrize("value", ["zero", "0", "-1", "1.5"])
def test_a_wrong_number_of_threads_in_the_environment_is_refused_by_name(value):
    code = "try:\n    import lnorm\nexcept (ImportError, ValueError) as error:\n    print(error)"
    message = python(code, LNORM_NUM_THREADS=value)
    assert "LNORM_NUM_THREADS" in message and value in message


def test_import_warns_of_nothing_and_changes_no_state():
    code = """
        import os, random, signal, sys, threading, warnings
        import numpy as np
        state = lambda: (np.random.get_state()[1].tolist(), random.getstate(), np.geterr(),
                         warnings.filters[:], dict(os.environ), threading.active_count(),
                         signal.getsignal(signal.SIGINT), sys.path[:])
        tiny = np.float32(1e-38)
        before = state()
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            before_in = state()
            import lnorm
            x = np.linspace(0, 1, 2000 * 768, dtype=np.float32).reshape(2000, 768)
            lnorm.layer_norm(x); lnorm.layer_norm_backward(x, x); lnorm.show_config(mode="dicts")
            assert state() == before_in
        assert state() == before
        assert not raised, [str(w.message) for w in raised]
        assert tiny * np.float32(0.01) != 0, "subnormals are flushed to zero"
        print("clean")
    """
    assert python(code) == "clean"


def test_calls_leave_the_floating_point_environment_as_it_was(two_threads):
    x = np.array([[1e38, -3e38, np.inf, 1e-45] * 500] * 500, np.float32)
    with np.errstate(all="raise"):
        lnorm.layer_norm(x, epsilon=0)
        lnorm.layer_norm_backward(x, x, epsilon=0)
        # Rounding is to nearest, and subnormals are not flushed to zero.
        assert np.float64(1) + np.float64(2**-53) == 1 and np.float64(1) + np.float64(3 * 2**-54) > 1
        assert (np.array([1e-40], np.float32) / np.float32(2) > 0).all()
        assert in_thread(lambda: (np.array([1e-310]) / 2 > 0).all())


def inputs():
    """What a flush to zero or another rounding would change, made before a mode is set."""
    rng = rng_for("host")
    for dtype, tiny in ((np.float32, 2e-39), (np.float64, 1e-309)):
        x, dy = (rng.standard_normal((2, 256, 384)) * tiny).astype(dtype)
        scale, float64 = rng.standard_normal((2, 384)) * tiny
        yield x, dy, scale.astype(dtype), float64


INPUTS = list(inputs())


def each_way():
    """Plain, planned and cast, in long rows, gradients, the ufunc."""
    results = []
    for x, dy, scale, float64 in INPUTS:
        results += [
            (lnorm.layer_norm(x, scale),),
            (lnorm.layer_norm(x.T, float64[:, None], axis=0),),
            lnorm.layer_norm(x, scale, epsilon=0, return_stats=True),
            (lnorm.layer_norm(x.reshape(1, -1), epsilon=0),),
            lnorm.layer_norm_backward(dy, x, scale),
            lnorm.layer_norm_backward(dy, x, float64, epsilon=0),
            lnorm.layer_norm_backward(dy.reshape(1, -1), x.reshape(1, -1)),
            (lnorm._core.layer_norm_ufunc(x, scale, scale, 0.0),),
        ]
    return [array for arrays in results for array in arrays]


@needs_modes
@pytest.mark.parametrize("mode", MODES)
def test_a_host_that_has_set_its_floating_point_unit_gets_the_same_bits(mode, two_threads):
    expected = each_way()

    def work():  # in a thread whose team, made here, inherits the mode and keeps it
        with host_mode(mode):
            inside = each_way()
        return inside, each_way()

    inside, after = in_thread(work)
    assert bits(*inside) == bits(*expected)
    assert bits(*after) == bits(*expected)


@needs_modes
@pytest.mark.parametrize("mode", [None, *MODES])
def test_calls_leave_the_floating_point_unit_as_the_host_has_set_it_and_its_flags(mode, two_threads):
    x = np.array([[1e38, -3e38, np.inf, 1e-45] * 500] * 500, np.float32)
    calls = (
        lambda: lnorm.layer_norm(x),
        lambda: lnorm.layer_norm(x[0]),
        lambda: lnorm.layer_norm(x.T, axis=0),
        lambda: lnorm.layer_norm_backward(x, x),
        lambda: lnorm.layer_norm_backward(x, x, np.ones(2000, np.float32), axis=1, param_grads=False),
        lambda: lnorm.layer_norm(x, scale=x),
        lambda: lnorm.layer_norm(np.ones((3, 4), np.complex64)),
    )
    gc.disable()  # hypothesis times each collection: a sum of floats, and an exception flag of its own
    try:
        for call in calls:
            with host_mode(mode):
                control = read_control()
                clear_flags()
                with contextlib.suppress(TypeError):
                    call()
                flags = read_flags()
                assert (read_control(), flags) == (control, 0)
    finally:
        gc.enable()


def test_a_sub_interpreter_that_has_ended_does_no_harm():
    code = """
        import importlib, sys
        import numpy as np, lnorm
        lnorm.set_num_threads(2)
        try:
            interpreters = importlib.import_module(f"_{'' if sys.version_info >= (3, 13) else 'xxsub'}interpreters")
        except ImportError:  # this Python has none
            raise SystemExit(print("same"))
        x = np.ones((2000, 768), np.float32)
        before = lnorm.layer_norm(x), lnorm.layer_norm(x.reshape(1, -1)), *lnorm.layer_norm_backward(x, x)
        one = interpreters.create()
        interpreters.run_string(one, "pass")
        interpreters.destroy(one)
        after = lnorm.layer_norm(x), lnorm.layer_norm(x.reshape(1, -1)), *lnorm.layer_norm_backward(x, x)
        print("same" if all((a == b).all() for a, b in zip(before, after)) else "other")
    """
    assert python(code) == "same"


def test_calls_leave_warnings_random_state_and_inputs_alone():
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()
    x = np.full((3, 4), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lnorm.layer_norm(x)
        lnorm.layer_norm_backward(x, x)
    assert np.random.get_state()[1].tolist() == before
