"""Array types with their own __array_ufunc__ are handed the call and are never loaded silently."""

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
from oracle import bits, rng_for

import lnorm

X, DY = rng_for("dispatch").standard_normal((2, 6, 8, 33)).astype(np.float32)
SCALE, OFFSET = rng_for("dispatch parameters").standard_normal((2, 33)).astype(np.float32)


class Source:
    """Stands for a file: knows how often it was read."""

    shape, dtype, ndim = X.shape, X.dtype, X.ndim

    def __init__(self, values=X):
        self.values, self.read = values, 0

    def __getitem__(self, index):
        self.read += 1
        return self.values[index]


def lazily(values=X, chunks=(2, 4, 33)):
    source = Source(values)
    return source, da.from_array(source, chunks=chunks, meta=np.empty((0, 0, 0), np.float32), asarray=False)


@pytest.mark.parametrize("chunks", [(6, 8, 33), (2, 8, 33), (1, 3, 33)])
@pytest.mark.parametrize("parameters", [(), (SCALE,), (SCALE, OFFSET), (None, OFFSET), (2.0, 3)])
def test_dask_forward_is_lazy_and_the_same(parameters, chunks):
    source, x = lazily(chunks=chunks)
    source.read = 0
    y = lnorm.layer_norm(x, *parameters)
    assert isinstance(y, da.Array) and source.read == 0
    assert y.shape == X.shape and y.dtype == np.float32
    assert bits(y.compute(scheduler="sync")) == bits(lnorm.layer_norm(X, *parameters))
    assert source.read > 0


def test_dask_forward_returns_statistics():
    source, x = lazily()
    source.read = 0
    lazy = lnorm.layer_norm(x, SCALE, return_stats=True)
    assert all(isinstance(part, da.Array) for part in lazy) and source.read == 0
    assert bits(*dask.compute(*lazy, scheduler="sync")) == bits(
        *lnorm.layer_norm(X, SCALE, return_stats=True)
    )


@pytest.mark.parametrize("axis", [-1, (1, 2), 0, (0, 2)])
def test_dask_forward_along_any_axes(axis):
    chunks = tuple(-1 if i in np.arange(3)[np.atleast_1d(axis)] else 3 for i in range(3))
    source, x = lazily(chunks=chunks)
    source.read = 0
    y = lnorm.layer_norm(x, 2, axis=axis)
    assert isinstance(y, da.Array) and source.read == 0
    assert bits(y.compute(scheduler="threads")) == bits(lnorm.layer_norm(X, 2, axis=axis))


@pytest.mark.parametrize("name", ["dy", "x", "scale"])
def test_backward_refuses_lazy_arrays_instead_of_loading_them(name):
    source, lazy = lazily()
    source.read = 0
    arguments = {"dy": DY, "x": X, "scale": SCALE, name: lazy}
    with pytest.raises(TypeError, match=f"{name} is a Array"):
        lnorm.layer_norm_backward(**arguments)
    assert source.read == 0


@pytest.mark.parametrize("name", ["scale", "offset"])
def test_a_lazy_parameter_keeps_the_result_lazy(name):
    y = lnorm.layer_norm(X, **{name: da.from_array(SCALE)})
    assert isinstance(y, da.Array)
    assert bits(y.compute(scheduler="sync")) == bits(lnorm.layer_norm(X, **{name: SCALE}))


class Foreign:
    """Keeps what it was asked to do."""

    shape, ndim, dtype = (2, 5), 2, np.dtype(np.float32)

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("loaded silently")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        self.seen = ufunc, method, inputs
        return self


def test_an_array_type_of_its_own_is_asked_and_its_answer_handed_back():
    foreign = Foreign()
    assert lnorm.layer_norm(foreign) is foreign
    ufunc, method, inputs = foreign.seen
    assert isinstance(ufunc, np.ufunc) and method == "__call__"
    assert any(given is foreign for given in inputs)


def test_an_array_type_that_refuses_ufuncs_is_a_type_error():
    class Refusing(Foreign):
        __array_ufunc__ = None

    with pytest.raises(TypeError, match="Refusing"):
        lnorm.layer_norm(Refusing())
    with pytest.raises(TypeError, match="Refusing"):
        lnorm.layer_norm_backward(np.ones((2, 5)), Refusing())


class Sub(np.ndarray):
    pass


@pytest.mark.parametrize("kind", [Sub, np.matrix, np.memmap])
def test_other_subclasses_are_base_arrays(kind, tmp_path):
    if kind is np.memmap:
        x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(48, 33))
        x[...] = X.reshape(48, 33)
    elif kind is np.matrix:
        with pytest.warns(PendingDeprecationWarning):
            x = np.matrix(X.reshape(48, 33))
    else:
        x = X.reshape(48, 33).view(kind)
    y = lnorm.layer_norm(x, SCALE)
    assert type(y) is np.ndarray
    assert bits(y) == bits(lnorm.layer_norm(X, SCALE).reshape(48, 33))
    assert [type(g) for g in lnorm.layer_norm_backward(x, x, SCALE)] == [np.ndarray] * 3


@pytest.mark.parametrize("name", ["layer_norm_ufunc", "layer_norm_stats"])
def test_what_dask_gets_can_be_sent_to_other_processes(name):
    ufunc = getattr(lnorm._core, name)
    assert pickle.loads(pickle.dumps(ufunc)) is ufunc
