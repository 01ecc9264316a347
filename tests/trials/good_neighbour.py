"""Promise: no state of the process is changed by import or by a call, and no bit depends on what its host has set.

Trial: everything of the process that can be read, before and after import, calls and errors; hosts with each mode of
the floating-point unit; torch, scikit-learn, numba and ONNX Runtime with their own OpenMP runtimes in one process,
imported in several orders, interleaved and at once, then forked; sub-interpreters, which get a clear error or right
results.
"""

import ctypes
import gc
import hashlib
import importlib.util
import itertools
import locale
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
from trial import case, forked, main, scale, work, x

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for hosts.py


def digest():
    return hashlib.sha256(work()).hexdigest()


# --- the state of the process --------------------------------------------------------------------------------------


def openmp():
    """What OpenMP would do next in this thread, by the runtime that the driver is linked to."""
    try:
        lib = ctypes.CDLL("libgomp.so.1")
    except OSError:
        return None
    kind, chunk = ctypes.c_int(), ctypes.c_int()
    lib.omp_get_schedule(ctypes.byref(kind), ctypes.byref(chunk))
    names = (
        "max_threads",
        "dynamic",
        "nested",
        "thread_limit",
        "max_active_levels",
        "proc_bind",
        "num_procs",
        "cancellation",
    )
    return [getattr(lib, f"omp_get_{name}")() for name in names], kind.value, chunk.value


def state():
    import hosts

    signals = [s for s in signal.Signals if s not in (signal.SIGKILL, signal.SIGSTOP)]
    umask = os.umask(0o22)
    os.umask(umask)
    resource = importlib.import_module("resource")
    return {
        "floating-point unit": hosts.read_control() if hosts.MODES else None,
        "np.geterr": (np.geterr(), np.geterrcall()),
        "np.random": np.random.get_state()[1].tolist(),
        "print options": np.get_printoptions(),
        "random": random.getstate(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "environment": dict(os.environ),
        "affinity of each thread": [os.sched_getaffinity(int(t)) for t in os.listdir("/proc/self/task")][:1],
        "Python threads": threading.active_count(),
        "signals": [signal.getsignal(s) for s in signals],
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "alternate stack, handlers": [
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(("Sig", "Shd"))
        ],
        "path": (list(sys.path), list(sys.meta_path), list(sys.path_hooks)),
        "hooks": (sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook, sys.gettrace()),
        "interpreter": (sys.getswitchinterval(), sys.getrecursionlimit(), gc.get_threshold(), gc.isenabled()),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "locale": locale.setlocale(locale.LC_ALL),
        "folder, umask": (os.getcwd(), umask),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "limits": [
            resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")
        ],
        "open files": sorted(os.listdir("/proc/self/fd")),
        "OpenMP": openmp(),
    }


def same_state(before, what):
    after = state()
    for key, value in before.items():
        assert after[key] == value, (what, key, value, after[key])


@case
def import_calls_and_errors_change_nothing():
    if sys.platform != "linux":
        return "reads /proc"
    openmp(), state()
    np.random.seed(7)
    random.seed(7)
    os.environ["OMP_STACKSIZE"] = "1M"
    np.seterr(all="raise")
    before, threads = state(), len(os.listdir("/proc/self/task"))
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        import lnorm
    assert not raised
    same_state(before, "import")
    assert len(os.listdir("/proc/self/task")) == threads
    nan = np.full((300, 300), np.nan)
    huge = np.array([[1e38, -3e38, np.inf, 1e-45] * 100] * 300, np.float32)
    layer = lnorm.LayerNormalizationLayer(scale_initializer="narrow-normal")
    calls = [
        work,
        lambda: lnorm.layer_norm(nan),
        lambda: lnorm.layer_norm(huge, epsilon=0),
        lambda: lnorm.layer_norm(huge.astype(">f4").T, axis=0),
        lambda: lnorm.layer_norm_backward(huge, huge, epsilon=0),
        lambda: lnorm.layer_norm(x, np.ones(3)),
        lambda: lnorm.layer_norm(np.ones((2, 2), complex)),
        lambda: lnorm.layer_norm(x, axis=7),
        lambda: lnorm.layer_norm(x, out=np.empty((3, 3))),
        lambda: lnorm.layer_norm(x, epsilon="x"),
        lambda: lnorm.set_num_threads(0),
        lambda: lnorm.set_num_threads(3),
        lambda: lnorm.show_config("dicts"),
        lambda: layer.forward(x),
        lambda: layer.backward(x),
        lambda: lnorm.Adam().step(layer),
    ]
    for call in calls:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            try:
                call()
            except (TypeError, ValueError):
                pass
        assert not raised, [str(w.message) for w in raised]
        same_state(before, call)
    return None


@case
def a_seed_decides_what_follows():
    """Imports and calls draw no random number of others."""
    np.random.seed(1)
    first = np.random.random(3).tolist()
    np.random.seed(1)
    digest()
    import lnorm

    lnorm.LayerNormalizationLayer(scale_initializer="narrow-normal").predict(x)
    assert np.random.random(3).tolist() == first


@case
def every_mode_of_the_floating_point_unit():
    """Random rows of many sizes, with subnormal parts, in each mode, in threads that were made in it and after it."""
    import hosts

    import lnorm

    if not hosts.MODES:
        return "the layout of fenv_t is not known here"
    rng = np.random.default_rng(5)
    tried = 0
    for number in range(60):
        dtype = (np.float32, np.float64)[number % 2]
        tiny = 10.0 ** rng.integers(*((-44, -30) if dtype is np.float32 else (-323, -300)))
        n, rows = int(rng.integers(1, 3000)), int(rng.integers(1, 200))
        a, dy = (rng.standard_normal((2, rows, n)) * tiny).astype(dtype)
        g = rng.standard_normal(n) * tiny
        epsilon = (0.0, 1e-5, 1e-300)[number % 3]

        def calls(a=a, dy=dy, g=g, epsilon=epsilon):
            results = [
                *lnorm.layer_norm(a, g, g, epsilon=epsilon, return_stats=True),
                lnorm.layer_norm(a.T, axis=0, epsilon=epsilon),
                *lnorm.layer_norm_backward(dy, a, g, epsilon=epsilon),
                *lnorm.layer_norm_backward(dy.T, a.T, axis=0, epsilon=epsilon),
            ]
            return [r.tobytes() for r in results]

        expected, seen = calls(), {}
        for mode in hosts.MODES:

            def job(mode=mode, calls=calls, seen=seen):
                with hosts.host_mode(mode):
                    control = hosts.read_control()
                    inside = calls()
                    kept = control == hosts.read_control()
                seen[mode] = kept, inside, calls()

            thread = threading.Thread(target=job)
            thread.start()
            thread.join()
            assert seen[mode] == (True, expected, expected), (mode, number)
            tried += 2
    print(tried, "times the same bits")
    return None


# --- beside other libraries ----------------------------------------------------------------------------------------


def torch_work():
    import torch

    t = torch.from_numpy(x)
    return torch.nn.functional.layer_norm(t, (768,)).numpy().tobytes() + (t @ t.T)[0].numpy().tobytes()


def sklearn_work():
    from sklearn.cluster import KMeans

    return KMeans(3, n_init=1, max_iter=5, random_state=0).fit(x[:, :20]).labels_.tobytes()


FUNCTIONS = {}


def numba_work():
    import numba

    def square(a, out):
        for i in numba.prange(a.shape[0]):
            for j in range(a.shape[1]):
                out[i, j] = a[i, j] * a[i, j]

    if "numba" not in FUNCTIONS:
        FUNCTIONS["numba"] = numba.njit(parallel=True)(square)
    out = np.empty_like(x)
    FUNCTIONS["numba"](x, out)
    return out.tobytes()


def onnxruntime_work():
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    if "onnx" not in FUNCTIONS:
        tensor = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("LayerNormalization", ["x", "s"], ["y"])],
            "g",
            [tensor("x", TensorProto.FLOAT, x.shape), tensor("s", TensorProto.FLOAT, [768])],
            [tensor("y", TensorProto.FLOAT, x.shape)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        FUNCTIONS["onnx"] = onnxruntime.InferenceSession(model.SerializeToString())
    return FUNCTIONS["onnx"].run(None, {"x": x, "s": scale})[0].tobytes()


OTHERS = {"torch": torch_work, "sklearn": sklearn_work, "numba": numba_work, "onnxruntime": onnxruntime_work}


def installed():
    return [name for name in OTHERS if importlib.util.find_spec(name)]


@case
def beside_other_libraries():
    """The order of imports is the environment's; the bits of lnorm alone are there too."""
    order = os.environ.get("TRIAL_ORDER", "").split()
    if not order:
        return "no other library is installed"
    jobs = {"lnorm": digest} | {name: OTHERS[name] for name in order if name != "lnorm"}
    first = {name: jobs[name]() for name in order}
    assert first["lnorm"] == os.environ["TRIAL_ALONE"]
    for _ in range(3):  # interleaved
        for name in random.sample(order, len(order)):
            assert jobs[name]() == first[name], name
    wrong = []

    def job(name):
        for _ in range(3):
            if jobs[name]() != first[name]:
                wrong.append(name)

    at_once = [
        threading.Thread(target=job, args=(name,)) for name in order if name != "numba" for _ in range(2)
    ]
    for thread in at_once:
        thread.start()
    if "numba" in order:
        job("numba")  # whose own workqueue is not for several threads at once
    for thread in at_once:
        thread.join()
    assert not wrong, wrong
    if "torch" in order:
        import torch

        torch.set_flush_denormal(True)
        assert digest() == first["lnorm"]
        torch.set_flush_denormal(False)
    warnings.simplefilter("ignore")
    assert forked(lambda: digest() == first["lnorm"]) == 0
    return None


# --- sub-interpreters ----------------------------------------------------------------------------------------------

IN_INTERPRETER = """
import sys
sys.path[:0] = {path!r}
try:
    import numpy as np, lnorm
    y = lnorm.layer_norm(np.array([[1.0, 3.0]]), epsilon=0)
    said = "right" if y.tolist() == [[-1.0, 1.0]] else "wrong"
except Exception as error:  # NumPy's own error, where it does not load
    said = f"{{type(error).__name__}}: {{error}}"
open({file!r}, "w").write(said)
"""


@case
def sub_interpreters():
    for module in ("_interpreters", "_xxsubinterpreters"):
        try:
            interpreters = importlib.import_module(module)
            break
        except ImportError:
            continue
    else:
        return "this Python has none"
    expected = digest()
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("legacy", "isolated"):
            for _ in range(2):
                file = f"{folder}/{kind}"
                code = IN_INTERPRETER.format(path=sys.path, file=file)
                if module == "_interpreters":
                    one = interpreters.create(kind)
                else:
                    one = interpreters.create(isolated=kind == "isolated")
                interpreters.run_string(one, code)
                said = Path(file).read_text()
                print(kind, said.partition("\n")[0])
                assert said == "right" or said.startswith(("ImportError", "RuntimeError")), said
                interpreters.destroy(one)
                assert digest() == expected
    return None


def orders(again):
    """Each library is the first once, then at random."""
    names = ["lnorm", *installed()]
    code = (
        f"import sys; sys.path[:0] = {sys.path[:2]!r}; import good_neighbour; print(good_neighbour.digest())"
    )
    alone = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    for i, threads in zip(range(len(names)), itertools.cycle(("2", None))):
        order = random.sample(names, len(names)) if again else names[i:] + names[:i]
        yield {"TRIAL_ORDER": " ".join(order), "TRIAL_ALONE": alone, "LNORM_NUM_THREADS": threads}


if __name__ == "__main__":
    sys.exit(main(__doc__, [{}, {"LNORM_NUM_THREADS": "2"}], beside_other_libraries=orders))
