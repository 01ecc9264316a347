"""Any array NumPy can view, any axes, any broadcastable parameters: right, and the input unchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    BOUND,
    FLOATS,
    awkward,
    beyond_bounds,
    bits,
    rng_for,
    worst_backward_errors,
    worst_forward_error,
    worst_stats_errors,
)

import lnorm

DTYPES = ["f4", "f8", ">f4", "<f4", ">f8", "<f8", "?", "i1", "u2", "i4", ">i8", "u8"]


def laid_out(x, order, steps, unaligned, writeable):
    """An array equal to x whose axes lie in memory in the given order, with gaps and backward strides."""
    shape = [x.shape[i] * abs(steps[i]) for i in order]
    size = int(np.prod(shape))
    memory = (
        np.frombuffer(bytearray(size * x.itemsize + unaligned), x.dtype, size, offset=unaligned)
        if size
        else x
    )
    view = memory.reshape(shape).transpose(np.argsort(order)) if size else np.empty(x.shape, x.dtype)
    view = view[(..., *(slice(None, None, step) for step in steps))] if size else view
    view[...] = x
    view.flags.writeable = writeable
    return view


@st.composite
def arrays(draw):
    """x of any layout and the axes to normalize; the values do not shrink, the shapes do."""
    ndim = draw(st.integers(1, 4))
    shape = [draw(st.integers(0, 7)) for _ in range(ndim)]
    shape[draw(st.integers(0, ndim - 1))] = draw(st.sampled_from([0, 1, 2, 8, 31, 33, 40, 70]))
    axes = draw(st.lists(st.integers(0, ndim - 1), min_size=1, unique=True))
    axis = tuple(a - ndim * draw(st.booleans()) for a in axes)
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    values = rng_for(shape).standard_normal(shape)
    layout = draw(st.permutations(range(ndim))), [draw(st.sampled_from([1, 1, 2, -1, -3])) for _ in shape]
    x = (values * 40 + 50 if dtype.kind in "iu" else values > 0 if dtype.kind == "b" else values).astype(
        dtype
    )
    return laid_out(x, *layout, draw(st.booleans()), draw(st.booleans())), axis[0] if len(axis) == 1 else axis


@st.composite
def parameters(draw, shape):
    if draw(st.integers(0, 4)) == 0:
        return None
    kept = [n if draw(st.booleans()) else 1 for n in shape][draw(st.integers(0, len(shape))) :]
    value = rng_for("parameter", kept).standard_normal(kept)
    return laid_out(
        value.astype(draw(st.sampled_from(["f4", "f8", ">f4", ">f8"]))),
        draw(st.permutations(range(len(kept)))),
        [draw(st.sampled_from([1, -1, 2])) for _ in kept],
        draw(st.booleans()),
        draw(st.booleans()),
    )


everything = settings(derandomize=True, deadline=None, max_examples=400, database=None)


@everything
@given(st.data())
def test_forward_of_any_layout_axes_and_parameters(data):
    x, axis = data.draw(arrays())
    scale, offset = data.draw(parameters(x.shape)), data.draw(parameters(x.shape))
    before = bits(*[a.copy() for a in (x, scale, offset) if a is not None])
    with np.errstate(all="raise"):
        y, mean, rstd = lnorm.layer_norm(x, scale, offset, axis=axis, return_stats=True)
    assert bits(*[a for a in (x, scale, offset) if a is not None]) == before
    assert y.shape == x.shape and y.dtype.isnative
    assert y.dtype == (x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.float64)
    assert mean.dtype == rstd.dtype == np.float64
    assert worst_forward_error(y, x, scale, offset, axis) <= BOUND["y"]
    if x.size:
        assert not beyond_bounds(worst_stats_errors(mean, rstd, x, axis))
    out = np.empty(x.shape, y.dtype)
    assert lnorm.layer_norm(x, scale, offset, axis=axis, out=out) is out
    assert bits(out) == bits(y)


@everything
@given(st.data())
def test_backward_of_any_layout_axes_and_parameters(data):
    x, axis = data.draw(arrays())
    scale = data.draw(parameters(x.shape))
    dy = (
        rng_for("dy", x.shape)
        .standard_normal(x.shape)
        .astype(data.draw(st.sampled_from(["f4", "f8", ">f8"])))
    )
    before = bits(*[a.copy() for a in (x, dy, scale) if a is not None])
    stats = {}
    if data.draw(st.booleans()):
        _, stats["mean"], stats["rstd"] = lnorm.layer_norm(x, axis=axis, return_stats=True)
    with np.errstate(all="raise"):
        grads = lnorm.layer_norm_backward(dy, x, scale, axis=axis, **stats)
    assert bits(*[a for a in (x, dy, scale) if a is not None]) == before
    assert all(g.dtype == (x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.float64) for g in grads)
    # Rows of a few elements have a dx that cancels, and a few rows an xhat near 0: the second measures hold.
    assert not beyond_bounds(worst_backward_errors(grads, dy, x, scale, axis), ignore=["dx", "dscale"])


X = np.arange(24.0).reshape(2, 3, 4) ** 1.5


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("run", [511, 512, 513, 1100, 3136])
@pytest.mark.parametrize("special", [None, 1e30, np.inf])
def test_one_parameter_for_many_elements_gives_what_one_for_each_gives(dtype, run, special):
    """A channel's scale serves several blocks of a row, and the blocks between two channels have some of both."""
    rng = rng_for("runs", run)
    x, dy = rng.standard_normal((2, 9, 3, run)).astype(dtype)
    if special:
        x[4, 1, 5] = special
    scale, offset = rng.standard_normal((2, 3, 1)).astype(dtype)
    each = np.broadcast_to(scale, x.shape[1:]).copy(), np.broadcast_to(offset, x.shape[1:]).copy()
    y, mean, rstd = lnorm.layer_norm(x, scale, offset, axis=(1, 2), return_stats=True)
    assert bits(y) == bits(lnorm.layer_norm(x, *each, axis=(1, 2)))
    dx, dscale, doffset = lnorm.layer_norm_backward(dy, x, scale, axis=(1, 2), mean=mean, rstd=rstd)
    dx_each, dscale_each, doffset_each = lnorm.layer_norm_backward(
        dy, x, each[0], axis=(1, 2), mean=mean, rstd=rstd
    )
    assert bits(dx) == bits(dx_each)
    for few, many in ((dscale, dscale_each), (doffset, doffset_each)):
        rounded = np.finfo(dtype).eps * np.abs(many).sum(1, keepdims=True)  # each of many, and their sum
        assert np.array_equal(np.isnan(few), np.isnan(rounded))
        assert not (np.abs(few - many.sum(1, keepdims=True, dtype=np.longdouble)) > rounded).any()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("run", [511, 512, 513, 1100])
@pytest.mark.parametrize("size", [1, 1e30])
def test_elements_that_are_one_in_memory_give_what_copies_give(dtype, run, size):
    column = (rng_for("column", run).standard_normal((9, 3, 1)) * size).astype(dtype)
    x = np.broadcast_to(column, (9, 3, run))
    assert bits(lnorm.layer_norm(x, axis=(1, 2))) == bits(lnorm.layer_norm(x.copy(), axis=(1, 2)))


@pytest.mark.parametrize(
    "axis, same",
    [
        (-1, 2),
        (2, (2,)),
        ((1, 2), (2, 1)),
        ((1, 2), (-1, -2)),
        ((0, 1, 2), (1, -1, 0)),
        (np.int64(1), 1),
        ((np.int8(1),), 1),
    ],
)
def test_axes_in_any_order_and_sign_are_the_same(axis, same):
    stats = [lnorm.layer_norm(X, axis=a, return_stats=True) for a in (axis, same)]
    assert bits(*stats[0]) == bits(*stats[1])
    grads = [lnorm.layer_norm_backward(np.cos(X), X, axis=a) for a in (axis, same)]
    assert bits(*grads[0]) == bits(*grads[1])


@pytest.mark.parametrize(
    "like", [list, lambda x: memoryview(np.ascontiguousarray(x)), lambda x: x.view(np.recarray)]
)
def test_what_asarray_takes_is_taken(like):
    x = X[0]
    given = x.tolist() if like is list else like(x)
    assert type(lnorm.layer_norm(given)) is np.ndarray
    assert bits(lnorm.layer_norm(given, [1, 2, 3, 4], 5)) == bits(lnorm.layer_norm(x, [1, 2, 3, 4], 5))
    assert bits(*lnorm.layer_norm_backward(given, given)) == bits(*lnorm.layer_norm_backward(x, x))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("n", [1, 5, 33, 768])
@pytest.mark.parametrize(
    "shift", ["one row on", "one row back", "one element on", "40 elements back", "reversed"]
)
def test_a_partial_overlap_gives_what_a_copied_input_gives(shift, n, dtype):
    rows = 50
    memory = rng_for("overlap", n).standard_normal((rows + 40) * n + 40).astype(dtype)
    size = rows * n

    def at(start):
        return memory[start : start + size].reshape(rows, n)

    x, out = {
        "one row on": (at(0), at(n)),
        "one row back": (at(n), at(0)),
        "one element on": (at(0), at(1)),
        "40 elements back": (at(40), at(0)),
        "reversed": (at(0), at(0)[::-1]),
    }[shift]
    assert np.shares_memory(x, out)
    expected = lnorm.layer_norm(x.copy(), 2, 3)
    assert lnorm.layer_norm(x, 2, 3, out=out) is out
    assert bits(out) == bits(expected)


@pytest.mark.parametrize("which", ["scale", "offset"])
@pytest.mark.parametrize("row", [0, 7, 19])
def test_parameters_may_lie_inside_out(row, which):
    x, out = rng_for("inside", row).standard_normal((2, 20, 33))
    expected = lnorm.layer_norm(x, **{which: out[row].copy()})
    lnorm.layer_norm(x, **{which: out[row]}, out=out)
    assert bits(out) == bits(expected)


@pytest.mark.parametrize("order", [">", "<"])
def test_out_may_have_either_byte_order(order):
    out = np.zeros(X.shape, order + "f8")
    assert lnorm.layer_norm(X, out=out) is out
    assert bits(out) == bits(lnorm.layer_norm(X))


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", ">f4"])
@pytest.mark.parametrize(
    "shape, axis",
    [
        ((0,), 0),
        ((0, 5), -1),
        ((5, 0), -1),
        ((0, 0), 0),
        ((2, 0, 3), (0, 2)),
        ((2, 0, 3), 1),
        ((2, 3, 0), (1, 0)),
    ],
)
def test_nothing_in_gives_nothing_out(shape, axis, dtype):
    x = np.zeros(shape, dtype)
    with np.errstate(all="raise"):
        y, mean, rstd = lnorm.layer_norm(x, 2, 3, axis=axis, return_stats=True)
    assert y.shape == shape and y.dtype == (
        np.float64 if dtype == "i4" else np.dtype(dtype).newbyteorder("=")
    )
    kept = tuple(1 if i in np.arange(len(shape))[np.atleast_1d(axis)] else n for i, n in enumerate(shape))
    assert mean.shape == rstd.shape == kept
    out = np.empty_like(y)
    assert lnorm.layer_norm(x, axis=axis, out=out) is out


@pytest.mark.parametrize(
    "name", ["1e30 or 1e300", "1e-30 or 1e-300", "subnormal", "up to overflow, both signs", "constant"]
)
@pytest.mark.parametrize("n", [1, 3, 33, 600])
def test_no_floating_point_warning_is_raised(name, n):
    for dtype in FLOATS:
        x, epsilon = awkward(name, (4, n), dtype)
        x[2, 0] = np.inf
        x[3, -1] = np.nan
        with np.errstate(all="raise"):
            y, mean, rstd = lnorm.layer_norm(x, x[0], 1, epsilon=epsilon, return_stats=True)
            lnorm.layer_norm(np.asfortranarray(x), epsilon=epsilon)
            lnorm.layer_norm(x.T, epsilon=epsilon, axis=0)
            lnorm.layer_norm_backward(x, x, x[0], epsilon=epsilon)
            lnorm.layer_norm_backward(x.T, x.T, epsilon=epsilon, axis=0)
        assert np.isnan(y[2:]).all() and np.isnan(mean[2:]).all() and np.isnan(rstd[2:]).all()
