"""Promise 1, forward: 4 eps of |scale|*max|xhat| + |offset|, at every offset, scale and width."""

import numpy as np
import pytest
from oracle import (
    AWKWARD_ROWS,
    BOUND,
    FLOATS,
    WIDTHS,
    awkward,
    beyond_bounds,
    rng_for,
    worst_forward_error,
    worst_stats_errors,
)

import lnorm

dtypes = pytest.mark.parametrize("dtype", FLOATS)


@dtypes
@pytest.mark.parametrize("name", AWKWARD_ROWS)
@pytest.mark.parametrize("n", WIDTHS)
def test_forward_is_within_4_eps(name, n, dtype):
    x, epsilon = awkward(name, (3, n), dtype)
    scale, offset = rng_for("parameters", n).standard_normal((2, n)).astype(dtype)
    y = lnorm.layer_norm(x, epsilon=epsilon)
    assert y.dtype == dtype
    assert worst_forward_error(y, x, epsilon=epsilon) <= BOUND["y"]
    y = lnorm.layer_norm(x, scale, offset, epsilon=epsilon)
    assert worst_forward_error(y, x, scale, offset, epsilon=epsilon) <= BOUND["y"]


@dtypes
@pytest.mark.parametrize("epsilon", [0, 1e-5])
@pytest.mark.parametrize("n", [3, 97, 1025])
def test_neighbouring_numbers_whose_squares_vanish_are_told_apart(n, epsilon, dtype):
    base = 3.067e-157 if dtype == np.float64 else 3.067e-28
    x = (base * (1 + np.finfo(dtype).eps * rng_for("vanish", n).integers(-2, 3, (3, n)))).astype(dtype)
    y = lnorm.layer_norm(x, epsilon=epsilon)
    assert worst_forward_error(y, x, epsilon=epsilon) <= BOUND["y"]


LONG = ("offset 0", "offset 1e+06", "offset -1e+07", "first is an outlier", "first is enormous", "cauchy")


@dtypes
@pytest.mark.parametrize(
    "name", [*LONG, "first lanes elsewhere", "40000 to 40003", "up to overflow, both signs"]
)
@pytest.mark.parametrize("n", [99_991, 100_000, 131_073])
def test_forward_is_within_4_eps_in_long_rows(name, n, dtype):
    x, epsilon = awkward(name, (1, n), dtype)
    assert worst_forward_error(lnorm.layer_norm(x, epsilon=epsilon), x, epsilon=epsilon) <= BOUND["y"]


@dtypes
@pytest.mark.parametrize("name", ["offset 1e+06", "first is an outlier"])
def test_forward_is_within_4_eps_in_a_row_of_three_million(name, dtype):
    x, epsilon = awkward(name, (3_000_000,), dtype)
    assert worst_forward_error(lnorm.layer_norm(x, epsilon=epsilon), x, epsilon=epsilon) <= BOUND["y"]


# Rows whose rstd float64 can hold: that of subnormal float64 rows is beyond its largest number.
BEYOND = {"subnormal", "one tiny among zeros", "around the smallest normal"}
ORDINARY = [name for name in AWKWARD_ROWS if name not in BEYOND]


@dtypes
@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("n", [1, 2, 31, 64, 129, 768, 1025, 4099])
def test_statistics_are_float64_and_as_exact_as_y(name, n, dtype):
    x, epsilon = awkward(name, (3, n), dtype)
    y, mean, rstd = lnorm.layer_norm(x, epsilon=epsilon, return_stats=True)
    assert mean.dtype == rstd.dtype == np.float64
    assert mean.shape == rstd.shape == (3, 1)
    assert not beyond_bounds(worst_stats_errors(mean, rstd, x, epsilon=epsilon))
    assert y.tobytes() == lnorm.layer_norm(x, epsilon=epsilon).tobytes()


@dtypes
@pytest.mark.parametrize("epsilon", [0, 1e-5, 1e-30, 1e-300])
@pytest.mark.parametrize("value", [0, -0.1, 1 / 3, 40001, -1e7, 1e-40, 3.4e38])
@pytest.mark.parametrize("n", WIDTHS)
def test_a_constant_row_is_exactly_the_offset(n, value, epsilon, dtype):
    x = np.full((2, n), value, dtype)
    scale, offset = rng_for(n).standard_normal((2, n)).astype(dtype)
    y, mean, rstd = lnorm.layer_norm(x, scale, offset, epsilon=epsilon, return_stats=True)
    np.testing.assert_array_equal(y, [offset, offset], strict=True)
    np.testing.assert_array_equal(mean, x[:, :1].astype(np.float64), strict=True)
    exact = 0 if epsilon == 0 else 1 / np.sqrt(epsilon)
    np.testing.assert_array_max_ulp(rstd, np.full((2, 1), exact), maxulp=1)


@dtypes
@pytest.mark.parametrize(
    "magnitude, epsilon",
    [
        (1, 1e-30),
        (1, 1e-300),
        (1e30, 1e-30),
        (1e-30, 1e-300),
        (1e-310, 1e-300),
        (1e10, 1e60),
        (1e11, 1e80),
        (1e30, 1e90),
    ],
)
@pytest.mark.parametrize("n", [5, 97, 1025])
def test_forward_is_within_4_eps_at_any_epsilon(n, magnitude, epsilon, dtype):
    if magnitude < np.finfo(dtype).smallest_subnormal:
        pytest.skip("all zeros")
    x = (rng_for("epsilon", n).standard_normal((3, n)) * magnitude).astype(dtype)
    assert worst_forward_error(lnorm.layer_norm(x, epsilon=epsilon), x, epsilon=epsilon) <= BOUND["y"]
    columns = lnorm.layer_norm(np.ascontiguousarray(x.T), axis=0, epsilon=epsilon)
    np.testing.assert_array_equal(columns.T, lnorm.layer_norm(x, epsilon=epsilon))


@dtypes
@pytest.mark.parametrize(
    "value", [0, 5, -1e30, np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal]
)
def test_a_row_of_one_is_exactly_the_offset(value, dtype):
    x = np.full((4, 1), value, dtype)
    np.testing.assert_array_equal(lnorm.layer_norm(x, [3], [0.25]), np.full((4, 1), 0.25, dtype), strict=True)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint16, np.int64, np.uint64])
def test_integers_and_bool_are_computed_in_float64(dtype):
    x = rng_for(np.dtype(dtype).name).integers(0, 2 if dtype is np.bool_ else 100, (5, 77)).astype(dtype)
    y = lnorm.layer_norm(x)
    assert y.dtype == np.float64
    assert worst_forward_error(y, x) <= BOUND["y"]


@dtypes
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 2, 31, 33, 64, 513, 1025])
def test_nan_and_infinity_make_their_own_row_nan_and_change_no_other(n, bad, dtype):
    x = rng_for("neighbours", n).standard_normal((9, n)).astype(dtype)
    dy = rng_for("dy", n).standard_normal((9, n)).astype(dtype)
    clean = lnorm.layer_norm(x, return_stats=True)
    clean_dx = lnorm.layer_norm_backward(dy, x, param_grads=False)[0]
    for where in {0, n // 2, n - 1}:
        ill = x.copy()
        ill[4, where] = bad
        results = (
            *lnorm.layer_norm(ill, return_stats=True),
            lnorm.layer_norm_backward(dy, ill, param_grads=False)[0],
        )
        for result, expected in zip(results, (*clean, clean_dx), strict=True):
            assert np.isnan(result[4]).all()
            np.testing.assert_array_equal(np.delete(result, 4, 0), np.delete(expected, 4, 0), strict=True)
