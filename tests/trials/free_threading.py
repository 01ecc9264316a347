"""Promise: calls from many Python threads at once are safe, and the free-threaded build of CPython stays free-threaded.

Trial: the import and calls of every kind leave the GIL off (no warning either); threads that share arrays, layers (also
empty ones, which their first data fills), solvers and the setting of threads get the bits that one thread gets; the
tests, each in eight threads at once (pytest-run-parallel). It runs on the ordinary build too, and says which it was.
"""

import pickle
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
from trial import case, main, scale, work, x

FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
TESTS = Path(__file__).resolve().parents[1]
# Tests of the process's own state and of its memory are about one thread; test_cli and test_docs start processes; dask
# in test_dispatch is not made for a filter of warnings that fails.
PARALLEL = ["accuracy", "arguments", "backward", "cpus", "layer", "layouts", "oracle", "same_bits", "solvers"]


def in_threads(n, job):
    """What n threads return that start the job together."""
    start, results, errors = threading.Barrier(n), [], []

    def run():
        start.wait()
        try:
            results.append(job())
        except BaseException as error:
            errors.append(error)

    jobs = [threading.Thread(target=run) for _ in range(n)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    if errors:
        raise errors[0]
    return results


def gil():
    return sys._is_gil_enabled() if hasattr(sys, "_is_gil_enabled") else True


@case
def import_and_calls_keep_the_gil_off():
    if not FREE:
        return "the ordinary build"
    import warnings

    warnings.simplefilter("error")  # CPython warns when a module turns the GIL on
    assert not gil()
    work()
    import lnorm

    layer = lnorm.LayerNormalizationLayer().initialize(4)
    layer.forward(x[:, :4])
    layer.backward(x[:, :4])
    lnorm.Adam().step(layer)
    lnorm.show_config("dicts")
    assert not gil()
    return None


@case
def the_same_bits_from_all_threads():
    expected = work()
    for n in (2, 8, 16):
        assert in_threads(n, work) == [expected] * n


@case
def the_setting_of_threads_changes_meanwhile():
    import lnorm

    expected, stop = work(), threading.Event()

    def change():
        while not stop.is_set():
            for n in (1, 2, 3, None):
                lnorm.set_num_threads(n)

    changing = threading.Thread(target=change)
    changing.start()
    for _ in range(3):
        assert in_threads(4, work) == [expected] * 4
    stop.set()
    changing.join()


@case
def the_first_import_in_many_threads():
    assert len(set(in_threads(8, work))) == 1


@case
def an_empty_layer_is_filled_once():
    import lnorm

    rows = x[:3, :64].copy()
    for _ in range(300):
        layer = lnorm.LayerNormalizationLayer(
            scale_initializer="narrow-normal", offset_initializer="narrow-normal"
        )
        results = in_threads(6, lambda: layer.predict(rows).tobytes())  # noqa: B023
        assert set(results) == {layer.predict(rows).tobytes()}


@case
def a_layer_that_changes_while_others_use_it():
    """A result is that of one of the settings, never of a mixture."""
    import lnorm

    rows = x[:4, :256].copy()
    layer, epsilons = lnorm.LayerNormalizationLayer(scale=scale[:256]), (1e-5, 1.0, 100.0)
    valid = {
        lnorm.LayerNormalizationLayer(scale=scale[:256], epsilon=e).predict(rows).tobytes() for e in epsilons
    }
    stop = threading.Event()

    def change():
        while not stop.is_set():
            for epsilon in epsilons:
                layer.epsilon = epsilon
                pickle.loads(pickle.dumps(layer))
                time.sleep(1e-4)  # or, without a GIL, nobody else comes to read it

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for results in in_threads(4, lambda: {layer.predict(rows).tobytes() for _ in range(2000)}):
            assert results <= valid
    finally:
        stop.set()
        changing.join()


@case
def small_calls_through_every_door():
    """Many short calls: reference counts, the caches of layers, errors."""
    import lnorm

    a, g = x[:2, :17].copy(), scale[:17].copy()
    layer = lnorm.LayerNormalizationLayer(scale=g)

    def job():
        seen = set()
        for _ in range(2000):
            seen.add(lnorm.layer_norm(a, g).tobytes())
            seen.add(lnorm.layer_norm(a.T, g[:, None], axis=0).T.tobytes())
            seen.add(layer(a).tobytes())
            seen.add(lnorm._core.layer_norm_ufunc(a, g, np.zeros(17, np.float32), 1e-5).tobytes())
            lnorm.layer_norm_backward(a, a, g)
            try:
                lnorm.layer_norm(a, np.ones(3))
            except ValueError:
                pass
        return seen

    expected = lnorm.layer_norm(a, g).tobytes()
    assert all(seen == {expected} for seen in in_threads(8, job))
    assert sys.getrefcount(g) < 20


@case
def the_tests_in_eight_threads_each():
    try:
        import pytest_run_parallel  # noqa: F401
    except ImportError:
        return "pytest-run-parallel is not installed"
    files = [str(TESTS / f"test_{name}.py") for name in PARALLEL]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--parallel-threads=8", *files]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    print(done.stdout[-3000:], done.stderr[-1000:])
    assert done.returncode == 0
    return None


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}, {'free-threaded' if FREE else 'with its GIL'}")
    sys.exit(main(__doc__, [{}, {"LNORM_NUM_THREADS": "2"}]))
