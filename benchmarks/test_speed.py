"""lnorm beside a plain copy and the NumPy expression: `pytest benchmarks` (extra `bench`).

Outputs are compared before anything is timed; every contestant writes into an array that is given.
"""

import numpy as np
import pytest

import lnorm

SHAPES = [(1, 768), (128, 768), (2048, 768), (32768, 768)]


def copy(x, scale, offset, out):
    np.copyto(out, x)


def ours(x, scale, offset, out):
    lnorm.layer_norm(x, scale, offset, out=out)


def expression(x, scale, offset, out):
    np.subtract(x, x.mean(-1, keepdims=True), out=out)
    out /= np.sqrt(np.square(out).mean(-1, keepdims=True) + np.float32(1e-5))
    out *= scale
    out += offset


@pytest.fixture(autouse=True)
def one_thread():
    lnorm.set_num_threads(1)
    yield
    lnorm.set_num_threads(None)


@pytest.mark.parametrize("function", [copy, ours, expression])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(benchmark, shape, function):
    benchmark.group = f"forward {shape}"
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, dtype=np.float32)
    scale, offset = rng.standard_normal((2, shape[-1]), dtype=np.float32)
    out, expected = np.empty_like(x), np.empty_like(x)
    function(x, scale, offset, out)
    (copy if function is copy else expression)(x, scale, offset, expected)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    benchmark(function, x, scale, offset, out)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_backward(benchmark, shape):
    benchmark.group = f"backward {shape}"
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape), dtype=np.float32)
    scale = rng.standard_normal(shape[-1], dtype=np.float32)
    _, mean, rstd = lnorm.layer_norm(x, return_stats=True)
    dx, dscale, doffset = benchmark(lnorm.layer_norm_backward, dy, x, scale, mean=mean, rstd=rstd)
    assert dx.shape == shape and dscale.shape == doffset.shape == scale.shape
