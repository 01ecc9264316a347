"""No temporary of the input's size, no allocation beside the result, no import of what is not needed."""

import gc
import os
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest

import lnorm

MB = 1_000_000

# The inputs are touched first and the threads made by a small call: the peak grows by the call's own needs.
# VmHWM is of this program alone; the peak that getrusage tells would begin at the parent's.
METER = """
    import numpy as np, lnorm

    def peak():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

    def full(value):
        return np.full(SHAPE, value, np.float32)

    SHAPE = {shape}
    x = full(1)
    x[..., ::3] = 2
    small = np.ones((2000, 768), np.float32)
    lnorm.layer_norm(small)
    lnorm.layer_norm_backward(small, small)
    {prepare}
    before = peak()
    {call}
    print(peak() - before)
"""


def growth(shape, prepare, call):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = textwrap.dedent(METER).format(shape=shape, prepare=prepare, call=call)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=os.path.dirname(__file__), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


# 400 MB: rows of a usual width, few long rows, channels first.
SHAPES = {
    "rows": ((130_000, 768), -1),
    "long rows": ((40, 2_500_000), -1),
    "channels first": ((32, 64, 220, 222), 1),
}
linux = pytest.mark.skipif(sys.platform != "linux", reason="the meter reads /proc/self/status")


@linux
def test_the_meter_sees_a_temporary():
    assert growth((1000, 768), "pass", "np.ones(10_000_000 // 8)") > 9 * MB


@linux
@pytest.mark.parametrize("name", SHAPES)
def test_forward_needs_less_than_8_MB(name):
    shape, axis = SHAPES[name]
    assert growth(shape, "out = full(0)", f"lnorm.layer_norm(x, 2, 3, axis={axis}, out=out)") < 8 * MB


@linux
def test_forward_in_place_needs_less_than_8_MB():
    assert growth((130_000, 768), "pass", "lnorm.layer_norm(x, out=x)") < 8 * MB


@linux
@pytest.mark.parametrize("given", [False, True], ids=["computes statistics", "given statistics"])
@pytest.mark.parametrize("name", SHAPES)
def test_backward_needs_less_than_8_MB_beside_its_results(name, given):
    shape, axis = SHAPES[name]
    prepare = (
        f"dy = full(0); scale = np.ones(x.shape[{axis}], 'f4').reshape({(-1,) if axis == -1 else (-1, 1, 1)})"
    )
    if given:
        prepare += (
            f"; _, mean, rstd = lnorm.layer_norm(x, axis={axis}, out=dy, return_stats=True); dy[...] = x"
        )
    keywords = "mean=mean, rstd=rstd" if given else ""
    call = f"results = lnorm.layer_norm_backward(dy, x, scale, axis={axis}, {keywords})"
    assert growth(shape, prepare, call) - np.prod(shape) * 4 - shape[axis] * 8 < 8 * MB


def peak_of(call):
    """(most, left): bytes that Python and NumPy had allocated at most during the call, and hold after it."""
    for _ in range(5):
        call()
    gc.collect()
    tracemalloc.start()
    try:
        kept = call()
        tracemalloc.clear_traces()
        tracemalloc.reset_peak()
        result = call()
        left, most = tracemalloc.get_traced_memory()
        del result, kept
        return most, left
    finally:
        tracemalloc.stop()


X = np.linspace(0, 1, 768, dtype=np.float32).reshape(1, 768)
SCALE, OFFSET, OUT = np.ones(768, np.float32), np.zeros(768, np.float32), np.empty_like(X)
PLAIN = {
    "x": lambda out: lnorm.layer_norm(X, out=out),
    "x, scale, offset": lambda out: lnorm.layer_norm(X, SCALE, OFFSET, out=out),
    "axis, epsilon": lambda out: lnorm.layer_norm(X, SCALE, OFFSET, axis=-1, epsilon=1e-6, out=out),
}


def test_the_meter_sees_a_python_level_allocation():
    most, left = peak_of(lambda: len([1.5, X]) and None)
    assert most > left == 0


@pytest.mark.parametrize("call", PLAIN.values(), ids=PLAIN)
def test_a_plain_call_allocates_nothing_but_its_result(call):
    assert peak_of(lambda: call(OUT)) == (0, 0)
    most, left = peak_of(lambda: call(None))
    assert most == left
    assert X.nbytes < left < X.nbytes + 300


PAGE = 1 << 21  # of a huge page


@pytest.mark.parametrize("begin, end", [(0, 0), (17, 13), (PAGE - 1, 1), (1, PAGE + 1)])
def test_new_memory_is_asked_for_at_the_end_of_each_whole_huge_page(begin, end):
    memory = np.full(8 * PAGE, 255, np.uint8)
    memory = memory[-memory.ctypes.data % PAGE :][: 6 * PAGE]
    result = memory[begin : memory.size - end]
    assert lnorm._core.mapped(result) is result
    whole = range(PAGE if begin else 0, memory.size - (end + PAGE - 1) // PAGE * PAGE, PAGE)
    assert np.flatnonzero(memory == 0).tolist() == [first + PAGE - 1 for first in whole]
    assert np.unique(memory).tolist() == [0, 255]


LARGE = np.random.default_rng(0).standard_normal((3, 1001, 1003), np.float32)  # 12 MB


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("axis", [2, 1, (1, 2)])
@pytest.mark.parametrize(
    "x",
    [LARGE, LARGE.T, LARGE[::-1, :, ::-1], LARGE.astype(">f4"), LARGE.astype(np.int16)],
    ids=["plain", "Fortran order", "backwards", "byte-swapped", "integers"],
)
def test_a_large_new_result_is_that_of_out(x, axis, threads):
    """Its pages are written to before it is."""
    dtype = np.float32 if x.dtype.kind == "f" else np.float64
    expected, dx = np.full((2, *x.shape), np.nan, dtype)
    lnorm.set_num_threads(threads)
    try:
        lnorm.layer_norm(x, axis=axis, out=expected)
        assert lnorm.layer_norm(x, axis=axis).tobytes() == expected.tobytes()
        lnorm.layer_norm_backward(x[::-1], x, axis=axis, out=dx)
        assert lnorm.layer_norm_backward(x[::-1], x, axis=axis)[0].tobytes() == dx.tobytes()
    finally:
        lnorm.set_num_threads(None)


CALLS = {
    "nothing": "pass",
    "a planned call": "lnorm.layer_norm(numpy.ones((3, 4, 5)), numpy.ones(4)[:, None], axis=1)",
    "a backward call": "lnorm.layer_norm_backward(numpy.ones((3, 4)), numpy.eye(3, 4), axis=0)",
    "out": "lnorm.layer_norm(numpy.eye(3, 4), axis=0, out=numpy.eye(3, 4))",
    "a layer": "lnorm.LayerNormalizationLayer(scale=numpy.ones(4))",
}


@pytest.mark.parametrize("call", CALLS)
def test_import_and_calls_pull_in_nothing_but_the_package(call):
    before = "import sys, numpy; before = set(sys.modules); import lnorm"
    code = f"{before}; {CALLS[call]}; print(*set(sys.modules) - before)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        check=True,
    )
    names = {name.partition(".")[0] for name in done.stdout.split()}
    assert "lnorm" in names
    # Cython's own, made of nothing on disk; then what is light in the standard library.
    others = {name for name in names if not name.startswith("_cython_")} - {"lnorm", "cython_runtime"}
    assert others <= {
        "__future__",
        "math",
        "numbers",
        "operator",
        "os",
        "sys",
        "threading",
        "typing",
        "warnings",
    }
