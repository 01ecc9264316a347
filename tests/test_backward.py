"""The gradients: 16 eps of max|dx| in the row; of the sum of |terms| for dscale and doffset."""

import math

import numpy as np
import pytest
from oracle import (
    BOUND,
    FLOATS,
    WIDTHS,
    awkward,
    beyond_bounds,
    layer_norm,
    rng_for,
    worst_backward_errors,
    worst_dx_error,
)

import lnorm

dtypes = pytest.mark.parametrize("dtype", FLOATS)
given = pytest.mark.parametrize("given_stats", [False, True], ids=["computes statistics", "given statistics"])


def backward(dy, x, scale=None, axis=-1, epsilon=1e-5, given_stats=False):
    stats = {}
    if given_stats:
        _, stats["mean"], stats["rstd"] = lnorm.layer_norm(x, axis=axis, epsilon=epsilon, return_stats=True)
    return lnorm.layer_norm_backward(dy, x, scale, axis=axis, epsilon=epsilon, **stats)


def check(dy, x, scale=None, axis=-1, epsilon=1e-5, given_stats=False, few_terms=False):
    grads = backward(dy, x, scale, axis, epsilon, given_stats)
    assert {g.dtype for g in grads} == {x.dtype}
    # For a few elements dx cancels to ~ epsilon, and no result in x's precision is near it; so does a sum of
    # a few terms whose xhat are all near 0. There the second measures hold.
    ignore = {"dx"} if math.prod(x.shape[i] for i in np.atleast_1d(axis)) < 8 else set()
    ignore |= {"dscale"} if x.size < 4 * grads[1].size or few_terms else set()
    assert not beyond_bounds(worst_backward_errors(grads, dy, x, scale, axis, epsilon), ignore=ignore)


@given
@dtypes
@pytest.mark.parametrize("offset", [0, 1e3, 1e6])
@pytest.mark.parametrize("n", WIDTHS)
def test_gradients_are_within_16_eps(n, offset, dtype, given_stats):
    rng = rng_for("backward", n, offset)
    x = (offset + rng.standard_normal((5, n))).astype(dtype)
    dy = rng.standard_normal((5, n)).astype(dtype)
    check(dy, x, None, given_stats=given_stats)
    check(dy, x, rng.standard_normal(n).astype(dtype), given_stats=given_stats)


@given
@dtypes
@pytest.mark.parametrize(
    "name", ["first is an outlier", "last is an outlier", "first lanes elsewhere", "cauchy", "ramp"]
)
@pytest.mark.parametrize("n", [9, 33, 129, 768, 4099])
def test_gradients_of_awkward_rows_are_within_16_eps(n, name, dtype, given_stats):
    x, epsilon = awkward(name, (5, n), dtype)
    rng = rng_for("backward", name, n)
    dy, scale = rng.standard_normal((5, n)).astype(dtype), rng.standard_normal(n).astype(dtype)
    # Every ramp passes its mean at the same element.
    check(dy, x, scale, epsilon=epsilon, given_stats=given_stats, few_terms=name == "ramp")


@given
@dtypes
@pytest.mark.parametrize("step", [None, 1, 2])
@pytest.mark.parametrize("columns", [15, 80, 196, 600])  # none, one and two strips of a plane
@pytest.mark.parametrize("n", [33, 513, 1100])
def test_gradients_of_columns_are_within_16_eps(n, columns, step, dtype, given_stats):
    rng = rng_for("columns", n, columns)
    dy, x = rng.standard_normal((2, 2, n, columns)).astype(dtype)
    scale = None if step is None else rng.standard_normal(n * step).astype(dtype)[::step, None]
    check(dy, x, scale, axis=1, given_stats=given_stats)


@given
@dtypes
@pytest.mark.parametrize("outlier", [1, 30, 1e4])
@pytest.mark.parametrize("n", [3, 97, 4096, 65_537])
def test_dx_is_within_16_eps_of_its_terms_where_they_are_unlike(n, outlier, dtype, given_stats):
    """One x̂ of √n, and all terms of mean(g·x̂) of one sign: far more than rstd·max|g|, in dx and in its roundings."""
    x = rng_for("unlike", n).standard_normal((2, n)).astype(dtype)
    x[:, n // 2] = outlier
    dy = np.sign(x - x.mean(axis=1, keepdims=True))
    dx = backward(dy, x, given_stats=given_stats)[0]
    assert worst_dx_error(dx, dy, x) <= BOUND["dx"]


@dtypes
@pytest.mark.parametrize("exponent", [-30, 30])
def test_gradients_hold_at_any_magnitude(exponent, dtype):
    """dx grows as 1/x does, so it is a float of 1e30 for rows of 1e-30."""
    rng = rng_for("magnitude", exponent)
    x = (rng.standard_normal((4, 100)) * 10.0**exponent).astype(dtype)
    check(rng.standard_normal((4, 100)).astype(dtype), x, epsilon=0)


@given
@dtypes
@pytest.mark.parametrize("epsilon", [1, 1e-5, 1e-12])
@pytest.mark.parametrize("n", [5, 97, 624])
def test_gradients_of_subnormal_rows_are_within_16_eps(n, epsilon, dtype, given_stats):
    """Epsilon is all that rstd is made of, however the row is scaled."""
    x = np.zeros((7, n), dtype)
    x[2, 0] = 255 * np.finfo(dtype).smallest_subnormal
    x[3] = rng_for("subnormal", n).integers(0, 9, n) * np.finfo(dtype).smallest_subnormal
    x[4, :3] = np.finfo(dtype).smallest_normal
    dy, scale = rng_for("dy", n).standard_normal((7, n)).astype(dtype), np.ones(n, dtype)
    for order in "CF":
        dx = backward(np.array(dy, order=order), np.array(x, order=order), scale, -1, epsilon, given_stats)[0]
        assert worst_dx_error(dx, dy, x, scale, epsilon=epsilon) <= BOUND["dx"]


@given
@dtypes
@pytest.mark.parametrize("magnitude", [1e-24, 1e-30, 1e-36])
@pytest.mark.parametrize("n", [5, 97, 624])
def test_small_gradients_of_small_rows_do_not_vanish(n, magnitude, dtype, given_stats):
    x, dy = (rng_for("small", n).standard_normal((2, 7, n)) * [[[magnitude]], [[1e-20]]]).astype(dtype)
    assert worst_dx_error(backward(dy, x, given_stats=given_stats)[0], dy, x) <= BOUND["dx"]


@given
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("n", [5, 16, 97])
def test_dx_of_subnormal_gradients_keeps_its_bound(n, outliers, given_stats):
    rng = rng_for("subnormal gradients", n)
    x, dy = (rng.standard_normal((2, 200, n)) * [[[2.0**-126]], [[2.0**-140]]]).astype(np.float32)
    if outliers:
        x[:, 1] *= 64  # one x̂ near √n
    dx = backward(dy, x, epsilon=0, given_stats=given_stats)[0]
    x, g = x.astype(np.float64), dy.astype(np.float64)
    rstd = 1 / x.std(axis=1, keepdims=True)
    xhat = (x - x.mean(axis=1, keepdims=True)) * rstd
    gx = (g * xhat).mean(axis=1, keepdims=True)
    exact = rstd * (g - g.mean(axis=1, keepdims=True) - xhat * gx)
    terms = abs(g) + abs(g).mean(axis=1, keepdims=True) + abs(xhat) * abs(gx)
    least = (2 + 2 * abs(xhat).max(axis=1, keepdims=True)) * float(np.finfo(np.float32).smallest_subnormal)
    bound = rstd * (16 * np.finfo(np.float32).eps * terms.max(axis=1, keepdims=True) + least)
    assert (abs(dx - exact) <= bound).all()


SCALES = [
    # x, axis, scale
    ((6, 40), -1, None),
    ((6, 40), -1, (40,)),
    ((6, 40), -1, (1,)),
    ((6, 40), -1, ()),
    ((6, 40), -1, (6, 40)),
    ((6, 40), -1, (6, 1)),
    ((6, 40), 0, (6, 1)),
    ((6, 40), 0, (40,)),
    ((40, 6), 0, None),
    ((4, 3, 50), -1, (4, 1, 50)),
    ((4, 3, 50), (1, 2), (50,)),
    ((4, 3, 50), (2, 1), (3, 1)),
    ((4, 3, 50), (1, 2), (3, 50)),
    ((4, 3, 50), (1, 2), None),
    ((4, 3, 50), (0, 2), None),
    ((4, 3, 50), (0, 2), (4, 1, 50)),
    ((4, 30, 5, 6), 1, (30, 1, 1)),
    ((4, 30, 5, 6), 1, None),
    ((4, 30, 5, 6), (1, 2, 3), (30, 1, 1)),
    ((4, 30, 5, 6), (1, -1), (30, 1, 6)),
    ((4, 30, 5, 6), (0, 1, 2, 3), (1, 5, 1)),
    ((4, 5, 6, 30), (1, 2, 3), (30,)),
    ((4, 5, 6, 30), (-1, 1), (4, 1, 6, 1)),
    ((97,), 0, (97,)),
]


@given
@dtypes
@pytest.mark.parametrize("shape, axis, scale_shape", SCALES)
def test_parameter_gradients_are_summed_back_to_the_shape_of_scale(
    shape, axis, scale_shape, dtype, given_stats
):
    rng = rng_for(shape, axis, scale_shape)
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    scale = None if scale_shape is None else rng.standard_normal(scale_shape).astype(dtype)
    check(dy, x, scale, axis, given_stats=given_stats)


@dtypes
@pytest.mark.parametrize("constant", [False, True], ids=["random dy", "constant dy"])
@pytest.mark.parametrize("shape", [(5000, 64), (40, 20_000), (3, 100_003), (20_000, 7), (1031, 33)])
def test_sums_over_many_rows_lose_nothing(shape, constant, dtype):
    """A constant dy adds the same number to doffset in every row, where a single float soon stops growing."""
    rng = rng_for("many", shape)
    x = rng.standard_normal(shape).astype(dtype)
    dy = np.full(shape, 0.1, dtype) if constant else rng.standard_normal(shape).astype(dtype)
    errors = worst_backward_errors(
        lnorm.layer_norm_backward(dy, x, np.ones(shape[1], dtype)), dy, x, np.ones(shape[1])
    )
    # dx of a constant dy is 0 but for rounding: there it has only the second measure.
    assert not beyond_bounds(errors, ignore=["dx"] if constant or shape[1] < 8 else [])


@given
@dtypes
def test_a_row_of_one_has_exactly_no_gradient(dtype, given_stats):
    x, dy = rng_for("one").standard_normal((2, 12, 1)).astype(dtype)
    dx, dscale, doffset = backward(dy, x, np.array([2], dtype), given_stats=given_stats)
    np.testing.assert_array_equal(dx, np.zeros_like(x), strict=True)
    np.testing.assert_array_equal(dscale, np.zeros(1, dtype), strict=True)
    assert not beyond_bounds(worst_backward_errors((dx, dscale, doffset), dy, x, np.array([2])))


@given
@dtypes
@pytest.mark.parametrize("n", [1, 3, 32, 513])
def test_a_constant_row_without_epsilon_has_exactly_no_gradient(n, dtype, given_stats):
    dy = rng_for("constant").standard_normal((3, n)).astype(dtype)
    x = np.full((3, n), 0.1, dtype)
    dx, dscale, _ = backward(dy, x, epsilon=0, given_stats=given_stats)
    np.testing.assert_array_equal(dx, np.zeros_like(x), strict=True)
    np.testing.assert_array_equal(dscale, np.zeros(n, dtype), strict=True)


@dtypes
@pytest.mark.parametrize("scale_shape", [None, (40,), (6, 1)])
def test_dx_has_the_same_bits_without_param_grads(scale_shape, dtype):
    rng = rng_for("param_grads")
    x, dy = rng.standard_normal((2, 6, 40)).astype(dtype)
    scale = None if scale_shape is None else rng.standard_normal(scale_shape).astype(dtype)
    alone = lnorm.layer_norm_backward(dy, x, scale, param_grads=False)
    assert alone[1:] == (None, None)
    assert alone[0].tobytes() == lnorm.layer_norm_backward(dy, x, scale)[0].tobytes()


def test_integers_have_float64_gradients():
    x = np.arange(60).reshape(4, 15) % 7
    check(np.cos(x), x.astype(np.float64))
    assert [g.dtype for g in lnorm.layer_norm_backward(x, x)] == [np.float64] * 3


@dtypes
def test_dy_and_scale_are_cast_to_the_precision_of_x(dtype):
    rng = rng_for("cast")
    x = rng.standard_normal((4, 33)).astype(dtype)
    dy, scale = rng.standard_normal((4, 33)), rng.standard_normal(33)
    for other in (np.float32, np.float64, ">f4", ">f8"):
        got = lnorm.layer_norm_backward(dy.astype(other), x, scale.astype(other))
        same = lnorm.layer_norm_backward(dy.astype(other).astype(dtype), x, scale.astype(other).astype(dtype))
        assert [g.tobytes() for g in got] == [g.tobytes() for g in same]


@dtypes
@pytest.mark.parametrize("offset", [0, 1e6])
def test_gradients_agree_with_central_differences_of_the_exact_forward(offset, dtype):
    """Independent of the oracle's own gradient: only its forward is used."""
    rng = rng_for("differences", offset)
    x = (offset + rng.standard_normal((2, 9))).astype(dtype)
    dy, scale = rng.standard_normal((2, 9)).astype(dtype), rng.standard_normal(9).astype(dtype)
    slopes = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        up, down = x.astype(np.float64), x.astype(np.float64)
        up[i] += 2**-14  # exact at either offset; the formula's own error is ~ h**2
        down[i] -= 2**-14
        forward = [layer_norm(v, scale)[0] for v in (up, down)]
        slopes[i] = ((forward[0] - forward[1]) * dy).sum() / 2**-13
    dx = lnorm.layer_norm_backward(dy, x, scale)[0]
    np.testing.assert_allclose(dx, slopes, rtol=0, atol=2e-6 * np.abs(slopes).max())


@dtypes
@pytest.mark.parametrize(
    "shape, axis", [((0, 5), -1), ((5, 0), -1), ((0, 0), -1), ((3, 0, 4), (0, 2)), ((0,), 0)]
)
def test_empty_arrays_have_empty_gradients(shape, axis, dtype):
    x = np.zeros(shape, dtype)
    dx, dscale, doffset = lnorm.layer_norm_backward(x, x, axis=axis)
    kept = [shape[i] for i in np.atleast_1d(axis)]
    np.testing.assert_array_equal(dx, x, strict=True)
    for grad in (dscale, doffset):
        np.testing.assert_array_equal(grad, np.zeros(kept, dtype), strict=True)


def test_sums_over_space_keep_what_their_roundings_leave():
    x = rng_for("sums over space").standard_normal((4, 2, 256, 256))
    dy = np.full(x.shape, 0.1)
    doffset = lnorm.layer_norm_backward(dy, x, np.ones((2, 1, 1)), axis=(1, 2, 3))[2]
    exact = math.fsum(dy[:, 0].ravel())
    assert abs(doffset - exact).max() <= BOUND["doffset"] * np.finfo(np.float64).eps * exact
