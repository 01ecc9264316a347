"""Promise: the accuracy holds for any shape, axes, strides, dtype and values.

Hypothesis draws arrays of any layout whose values are what floating point finds hard: subnormal, near overflow, equal,
neighbours of one another, far from zero, one outlier among many, a few values repeated in any period; epsilon from 0 to
1e30; scale, offset and dy with them. Forward and backward are held against the exact reference. What no result of the
dtype can avoid is allowed: the underflow of x̂, scale·x̂ and y, at most a few of the smallest subnormal numbers.

    python tests/trials/any_values.py [--minutes M] [--seed S]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

sys.path.insert(0, str(Path(__file__).parents[1]))
import oracle
from oracle import BOUND, FLOATS, bits
from test_layouts import laid_out

import lnorm

SIZES = (1, 1, 2, 2, 3, 5, 8, 16, 31, 33, 64, 97, 128, 257, 513, 1030)


@st.composite
def values(draw, shape, dtype, tame):
    """Numbers of the dtype; tame ones have products that neither overflow nor underflow."""
    size = int(np.prod(shape))
    info = np.finfo(dtype)
    bits_of_one = 32 if dtype == np.float32 else 64
    if tame:
        number = st.floats(2.0**-20, 2.0**20, width=bits_of_one) | st.just(0.0)
        number = st.tuples(number, st.booleans()).map(lambda pair: -pair[0] if pair[1] else pair[0])
    else:
        number = st.floats(allow_nan=False, allow_infinity=False, width=bits_of_one)
        number |= st.floats(-4, 4, width=bits_of_one) | st.sampled_from(
            [
                float(v) * sign
                for v in (info.max, info.smallest_normal, info.smallest_subnormal)
                for sign in (1, -1)
            ]
        )
    kind = draw(st.sampled_from(["drawn", "repeated", "lanes", "random", "neighbours"]))
    if kind == "drawn" and size <= 70:
        return draw(hnp.arrays(dtype, shape, elements=number))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind == "random":
        array = rng.standard_normal(size)
    elif kind == "neighbours":
        array = draw(number) / 2 * (1 + info.eps * rng.integers(-2, 3, size))
    else:
        few = np.array(draw(st.lists(number, min_size=1, max_size=16)))
        array = few[np.arange(size) // (32 if kind == "lanes" else 1) % len(few)]
    if not tame and kind in ("random", "lanes"):
        with np.errstate(over="ignore"):
            array = np.ldexp(array, draw(st.sampled_from([0, 0, 0, 20, -20, 100, -120, 900, -1000])))
        array = array + draw(st.sampled_from([0, 0, 1e3, -1e6, 1e7]))
        if draw(st.booleans()):
            array[: draw(st.sampled_from([1, 32]))] += draw(st.sampled_from([0.5, 100, -1e9]))
    limit = float(info.max)
    return (
        np.clip(np.nan_to_num(array, posinf=limit, neginf=-limit), -limit, limit).astype(dtype).reshape(shape)
    )


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from(FLOATS))
    shape = [draw(st.integers(1, 5)) for _ in range(draw(st.integers(0, 2)))]
    shape.insert(draw(st.integers(0, len(shape))), draw(st.sampled_from(SIZES)))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    normalized = [n if d in axes else 1 for d, n in enumerate(shape)]
    x, dy = draw(values(tuple(shape), dtype, False)), draw(values(tuple(shape), dtype, True))
    scale, offset = (draw(st.none() | values(tuple(normalized), dtype, True)) for _ in range(2))
    layout = draw(st.permutations(range(len(shape)))), [draw(st.sampled_from([1, 1, 2, -1])) for _ in shape]
    epsilon = draw(st.sampled_from([1e-5, 0.0, 1e-12, 1.0, 1e-300, 1e30]))
    return laid_out(x, *layout, draw(st.booleans()), True), dy, scale, offset, tuple(axes), epsilon


def beyond(got, exact, unit, bound, least):
    """The largest error in units, less what may have underflowed; None if within the bound."""
    error = np.abs(got.astype(np.longdouble) - exact)
    excess = error - bound * unit - least
    if not (excess > 0).any() and not np.isnan(got).any():
        return None
    at = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
    unit = np.broadcast_to(unit, error.shape)[at]
    return f"element {at}: got {got[at]}, exact {exact[at]}, error {error[at]} of unit {unit}"


def check(case):
    x, dy, scale, offset, axes, epsilon = case
    axis = axes[0] if len(axes) == 1 else axes
    info = np.finfo(x.dtype)
    eps, tiny, most = info.eps, np.longdouble(info.smallest_subnormal), np.longdouble(info.max)
    with np.errstate(all="raise"):
        y, mean, rstd = lnorm.layer_norm(x, scale, offset, axis=axis, epsilon=epsilon, return_stats=True)
        dx, dscale, doffset = lnorm.layer_norm_backward(dy, x, scale, axis=axis, epsilon=epsilon)
        given_dx = lnorm.layer_norm_backward(dy, x, scale, axis=axis, epsilon=epsilon, mean=mean, rstd=rstd)[
            0
        ]
    assert bits(y) == bits(
        lnorm.layer_norm(np.ascontiguousarray(x), scale, offset, axis=axis, epsilon=epsilon)
    )
    _, exact_rstd, g, exact_dx, xhat, _, reduce = oracle._backward(dy, x, scale, axes, epsilon)
    largest = lambda a: np.abs(a).max(axis=axes, keepdims=True)  # noqa: E731
    gamma, beta = np.abs(oracle._param(scale, x, 1)), oracle._param(offset, x, 0)
    unit = eps * (gamma * largest(xhat) + np.abs(beta))
    least = (2 + 2 * gamma * (1 + exact_rstd)) * tiny  # y, and as far as they are below it, the mean and x̂
    wrong = beyond(y, oracle._param(scale, x, 1) * xhat + beta, unit, BOUND["y"], least)
    assert wrong is None, f"y: {wrong}"
    n = int(np.prod([x.shape[d] for d in axes]))
    means = lambda a: oracle._sum(np.abs(a), axes) / n  # noqa: E731
    unit = eps * largest(exact_rstd * (np.abs(g) + means(g) + np.abs(xhat) * means(g * xhat)))
    fits = (unit < eps * most / 16) & (largest(xhat) > 2.0**-60)  # in the dtype's range
    for what, got in (("dx", dx), ("dx of given statistics", given_dx)):
        if what != "dx" and not np.isfinite(rstd).all():  # float64 cannot hold the rstd of subnormal rows
            continue
        wrong = beyond(
            np.where(fits, got, 0),
            np.where(fits, exact_dx, 0),
            unit,
            BOUND["dx"],
            (2 + 2 * exact_rstd) * tiny,
        )
        assert wrong is None, f"{what}: {wrong}"
    terms = reduce(np.abs(dy) * largest(xhat))
    wrong = beyond(dscale, reduce(dy * xhat), eps * terms, BOUND["dscale of few"], 2.0**22 * tiny * x.size)
    assert wrong is None, f"dscale: {wrong}"
    wrong = beyond(
        doffset, reduce(dy.astype(np.longdouble)), eps * reduce(np.abs(dy)), BOUND["doffset"], 2 * tiny
    )
    assert wrong is None, f"doffset: {wrong}"


def hunt(start, examples):
    @seed(start)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases())
    def any_case(case):
        check(case)

    any_case()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    end, tried, number = time.monotonic() + args.minutes * 60, 0, args.seed
    while time.monotonic() < end:
        hunt(number, 200)
        tried, number = tried + 200, number + 1
    print(f"{tried} cases, forward and backward, none beyond its bound")
