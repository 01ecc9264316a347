"""The oracle itself, against 100-digit arithmetic and, for the gradient, against central differences."""

import decimal
from decimal import Decimal

import numpy as np
import oracle
import pytest
from oracle import AWKWARD_ROWS, FLOATS, awkward, rng_for

EPS = np.finfo(np.float64).eps


def digits(array):
    """The exact decimal value of a longdouble array, as the sum of a float64 and what it leaves."""
    head = np.asarray(array).astype(np.float64)
    return [Decimal(float(h)) + Decimal(float(t)) for h, t in zip(head, array - head, strict=True)]


@pytest.mark.parametrize("n", [2, 3, 33, 257])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", AWKWARD_ROWS)
def test_forward_agrees_with_100_digits_far_below_the_bound(name, dtype, n):
    x, epsilon = awkward(name, (n,), dtype)
    y, mean, _ = oracle.layer_norm(x, epsilon=epsilon)
    with decimal.localcontext(prec=100, Emin=-5000, Emax=5000):
        row = [Decimal(float(v)) for v in x]
        exact_mean = sum(row) / n
        variance = sum((v - exact_mean) ** 2 for v in row) / n + Decimal(epsilon)
        # A constant row's 100-digit mean is off in the last digit; its variance is 0 by definition.
        constant = min(row) == max(row)
        exact = [0 if constant else (v - exact_mean) / variance.sqrt() for v in row]
        largest = max(abs(v) for v in exact)
        error = max(abs(a - b) for a, b in zip(digits(y), exact, strict=True))
        assert error <= largest * Decimal(EPS / 64)
        spread = max(abs(v - exact_mean) for v in row) + abs(exact_mean)
        tiny = Decimal(float(np.finfo(np.float64).smallest_subnormal))  # the mean is compared as a float64
        assert abs(Decimal(float(mean[0])) - exact_mean) <= spread * Decimal(EPS) + tiny


@pytest.mark.parametrize(
    "shape, axis, scale_shape", [((3, 7), -1, (7,)), ((2, 3, 4), (0, 2), (3, 1)), ((2, 5), 0, ())]
)
def test_gradients_agree_with_central_differences(shape, axis, scale_shape):
    rng = rng_for(shape, axis)
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    scale, offset = rng.standard_normal(scale_shape), rng.standard_normal(scale_shape)

    def slope(values, loss):
        """Rounding, eps64/h of float64 parameters, and h**2 of the formula meet near h = 1e-5."""
        slopes = np.empty(values.shape, np.longdouble)
        for i in np.ndindex(values.shape):
            up, down = values.copy(), values.copy()
            up[i] += 1e-5
            down[i] -= 1e-5
            slopes[i] = (loss(up) - loss(down)) / (up[i] - down[i])
        return slopes

    def loss(x, scale, offset):
        return (oracle.layer_norm(x, scale, offset, axis=axis)[0] * dy).sum()

    dx, dscale, doffset = oracle.layer_norm_backward(dy, x, scale, axis=axis)
    np.testing.assert_allclose(dx, slope(x, lambda v: loss(v, scale, offset)), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(dscale, slope(scale, lambda v: loss(x, v, offset)), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(doffset, slope(offset, lambda v: loss(x, scale, v)), rtol=1e-7, atol=1e-7)


def test_the_measure_sees_what_it_should():
    x = rng_for("measure").standard_normal((4, 50))
    y = oracle.layer_norm(x)[0]
    largest = np.abs(y).max(axis=-1)
    y[2, 7] += 5 * EPS * largest[2]
    assert 4.9 < oracle.worst_forward_error(y, x) < 5.1
    y[1, 3] = np.nan
    assert oracle.worst_forward_error(y, x) == np.inf
    assert oracle.worst_forward_error(np.full((1, 3), 1e-300), np.ones((1, 3))) == np.inf
