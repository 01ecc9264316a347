"""The one reference of the tests: layer normalization in longdouble NumPy, the bounds, and awkward rows.

The formulas are those of Ba, Kiros and Hinton (2016), arXiv:1607.06450, and the chain rule.
"""

import math

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

# Squares of the largest and of the smallest float64 must be representable: the oracle does no scaling.
assert np.finfo(np.longdouble).maxexp > 2 * 1024 + 64 and np.finfo(np.longdouble).nmant >= 63

FLOATS = (np.float32, np.float64)

# The promised bounds, in units of np.finfo(dtype).eps and of the measures below.
BOUND = {
    "y": 4,  # of |scale|*max|xhat| + |offset|
    # Statistics that make such a y: the errors of a row's xhat average to that of the mean over sigma, so it
    # stays below 4; what is left at the largest |xhat| is the relative error of rstd, at most 4 + 4.
    "mean": 4,  # of max|x - mean|, plus the rounding of the mean to float64
    "rstd": 8,  # of rstd
    "dx": 16,  # of max|dx| in the row
    "dx of few": 16,  # of rstd*max|scale*dy| in the row: for a few elements the exact dx cancels to ~ epsilon
    "dscale": 16,  # of the sum of |terms|
    "dscale of few": 16,  # of the sum of |dy|*max|xhat|: all xhat of a column may be near 0
    "doffset": 16,
}

# 1, 2, 3, possible numbers of lanes and their neighbours, primes, 512 = 16 additions in each of 32 lanes.
WIDTHS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 97, 127, 128, 129, 255, 256, 257)
WIDTHS += (384, 511, 512, 513, 768, 1023, 1024, 1025, 1537, 2049, 4099)


def _sum(a, axes):
    """Sum with the axes kept. They are moved last because NumPy sums pairwise along contiguous axes only."""
    kept = a.ndim - len(axes)
    moved = np.moveaxis(a, axes, range(kept, a.ndim))
    flat = np.ascontiguousarray(moved).reshape(*moved.shape[:kept], math.prod(moved.shape[kept:]))
    return np.expand_dims(flat.sum(axis=-1), axes)


def _sum_to(a, shape):
    """Sum over whatever was broadcast from `shape`."""
    padded = (1,) * (a.ndim - len(shape)) + tuple(shape)
    axes = tuple(i for i in range(a.ndim) if padded[i] == 1)
    return _sum(a, axes).reshape(shape)


def precision(x):
    return x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.dtype(np.float64)


def _param(value, x, default):
    value = default if value is None else np.asarray(value).astype(precision(x))
    return np.asarray(value, np.longdouble)


def _axes(x, axis):
    return tuple(sorted(normalize_axis_tuple(axis, x.ndim)))


def _standardize(x, axis, epsilon):
    """xhat, x - mean, mean and rstd. The mean is a float64 K plus a rest: x - K is exact where a rounded mean
    would cost the digits of a large offset."""
    axes = _axes(x, axis)
    n = math.prod(x.shape[i] for i in axes)
    x = x.astype(np.longdouble)
    with np.errstate(invalid="ignore", divide="ignore"):
        K = (_sum(x, axes) / n).astype(np.float64).astype(np.longdouble)
        rest = _sum(x - K, axes) / n
        centred = (x - K) - rest
        variance = _sum(centred * centred, axes) / n + np.longdouble(epsilon)
        rstd = np.where(variance == 0, 0, 1 / np.sqrt(variance))
        return centred * rstd, centred, K + rest, rstd


def layer_norm(x, scale=None, offset=None, *, axis=-1, epsilon=1e-5):
    """(y, mean, rstd) in longdouble."""
    xhat, _, mean, rstd = _standardize(x, axis, epsilon)
    return _param(scale, x, 1) * xhat + _param(offset, x, 0), mean, rstd


def _backward(dy, x, scale, axis, epsilon):
    axes = _axes(x, axis)
    n = math.prod(x.shape[i] for i in axes)
    xhat, _, _, rstd = _standardize(x, axis, epsilon)
    dy = np.asarray(dy).astype(precision(x)).astype(np.longdouble)
    g = _param(scale, x, 1) * dy
    with np.errstate(invalid="ignore"):
        dx = rstd * (g - _sum(g, axes) / n - xhat * (_sum(g * xhat, axes) / n))
    if scale is None:
        others = tuple(i for i in range(x.ndim) if i not in axes)
        reduce = lambda terms: _sum(terms, others).reshape([x.shape[i] for i in axes])  # noqa: E731
    else:
        reduce = lambda terms: _sum_to(terms, np.shape(scale))  # noqa: E731
    return axes, rstd, g, dx, xhat, dy, reduce


def layer_norm_backward(dy, x, scale=None, *, axis=-1, epsilon=1e-5):
    """(dx, dscale, doffset) in longdouble."""
    _, _, _, dx, xhat, dy, reduce = _backward(dy, x, scale, axis, epsilon)
    return dx, reduce(dy * xhat), reduce(dy)


def _worst(got, exact, unit, dtype):
    """max |got - exact| / (eps*unit). No unit, no error allowed; NaN is right exactly where it is due."""
    got = np.asarray(got)
    assert got.shape == exact.shape, f"shape {got.shape}, expected {exact.shape}"
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(got.astype(np.longdouble) - exact)
        error = np.where(error == 0, 0, error / (np.finfo(dtype).eps * unit))
    error = np.where(np.isnan(exact), np.where(np.isnan(got), 0, np.inf), error)
    return float(np.max(np.where(np.isnan(error), np.inf, error), initial=0))


def worst_forward_error(y, x, scale=None, offset=None, axis=-1, epsilon=1e-5):
    """The largest error of y in eps of |scale|*max|xhat| + |offset|, the measure of the accuracy promise."""
    xhat = _standardize(x, axis, epsilon)[0]
    scale, offset = _param(scale, x, 1), _param(offset, x, 0)
    largest = np.abs(xhat).max(axis=_axes(x, axis), keepdims=True, initial=0)
    return _worst(y, scale * xhat + offset, np.abs(scale) * largest + np.abs(offset), precision(x))


def worst_stats_errors(mean, rstd, x, axis=-1, epsilon=1e-5):
    _, centred, exact_mean, exact_rstd = _standardize(x, axis, epsilon)
    eps = np.finfo(precision(x)).eps
    largest = np.abs(centred).max(axis=_axes(x, axis), keepdims=True, initial=0)
    # The rounding to float64, in units of the bound, so that both fit one measure.
    rounding = np.abs(exact_mean) * (np.finfo(np.float64).eps / eps) / BOUND["mean"]
    return {
        "mean": _worst(mean, exact_mean, largest + rounding, precision(x)),
        "rstd": _worst(rstd, exact_rstd, exact_rstd, precision(x)),
    }


def worst_backward_errors(grads, dy, x, scale=None, axis=-1, epsilon=1e-5):
    """The largest errors of (dx, dscale, doffset), each in eps of its measure in BOUND."""
    axes, rstd, g, dx, xhat, dy, reduce = _backward(dy, x, scale, axis, epsilon)
    dtype = precision(x)
    largest = lambda a: np.abs(a).max(axis=axes, keepdims=True, initial=0)  # noqa: E731
    return {
        "dx": _worst(grads[0], dx, largest(dx), dtype),
        "dx of few": _worst(grads[0], dx, rstd * largest(g), dtype),
        "dscale": _worst(grads[1], reduce(dy * xhat), reduce(np.abs(dy * xhat)), dtype),
        "dscale of few": _worst(grads[1], reduce(dy * xhat), reduce(np.abs(dy) * largest(xhat)), dtype),
        "doffset": _worst(grads[2], reduce(dy), reduce(np.abs(dy)), dtype),
    }


def worst_dx_error(got, dy, x, scale=None, axis=-1, epsilon=1e-5):
    """The largest error of dx in eps of the largest rstd*(|g| + mean|g| + |xhat|*mean|g*xhat|) in its row."""
    axes, rstd, g, dx, xhat, _, _ = _backward(dy, x, scale, axis, epsilon)
    mean = lambda a: _sum(a, axes) / math.prod(x.shape[i] for i in axes)  # noqa: E731
    with np.errstate(invalid="ignore"):
        terms = rstd * (np.abs(g) + mean(np.abs(g)) + np.abs(xhat) * mean(np.abs(g * xhat)))
    return _worst(got, dx, terms.max(axis=axes, keepdims=True, initial=0), precision(x))


def beyond_bounds(errors, *, ignore=()):
    """What breaks a promise, for `assert not beyond_bounds(...)` to show."""
    return {name: error for name, error in errors.items() if name not in ignore and not error <= BOUND[name]}


def bits(*arrays):
    """Shapes, native-order bytes: equal exactly when every bit is. No NaN has a second pattern here."""
    arrays = [np.asarray(a) for a in arrays]
    return [(a.shape, np.where(np.isnan(a), np.nan, a).astype(precision(a)).tobytes()) for a in arrays]


def rng_for(*key):
    """A generator that depends on the test's parameters and on nothing else."""
    return np.random.default_rng(list(repr(key).encode()))


def _with(rows, where, value):
    rows[..., where] = value
    return rows


def _normal(rng, shape, dtype):
    return rng.standard_normal(shape)


def _spread(exponent32, exponent64):
    """Normal rows at a power of ten that squares cannot follow."""
    return lambda rng, shape, t: (
        rng.standard_normal(shape) * 10.0 ** (exponent32 if t == np.float32 else exponent64)
    )


# name -> (rows(rng, shape, dtype), epsilon). Rows are the last axis.
AWKWARD_ROWS = {
    **{
        f"offset {offset:g}": (lambda rng, shape, t, at=offset: at + rng.standard_normal(shape), 1e-5)
        for offset in (0, 1e3, -1e3, 1e6, -1e6, 1e7, -1e7)
    },
    "first is an outlier": (lambda rng, shape, t: _with(rng.standard_normal(shape), 0, 1e4), 1e-5),
    "last is an outlier": (lambda rng, shape, t: _with(rng.standard_normal(shape), -1, -1e4), 1e-5),
    "first is enormous": (lambda rng, shape, t: _with(1e3 + rng.standard_normal(shape), 0, 1e12), 1e-5),
    "first lanes elsewhere": (
        lambda rng, shape, t: _with(1e6 + rng.standard_normal(shape), np.s_[:32], 0),
        1e-5,
    ),
    "every 32nd elsewhere": (
        lambda rng, shape, t: _with(rng.standard_normal(shape), np.s_[5::32], 1e5),
        1e-5,
    ),
    "ramp": (lambda rng, shape, t: np.broadcast_to(np.arange(shape[-1]) * 0.37 - 5, shape), 1e-5),
    "cauchy": (lambda rng, shape, t: rng.standard_cauchy(shape), 1e-5),
    "lognormal": (lambda rng, shape, t: rng.lognormal(0, 4, shape), 1e-5),
    "constant": (
        lambda rng, shape, t: np.broadcast_to(rng.standard_normal((*shape[:-1], 1)) * 1e4, shape),
        1e-5,
    ),
    "two values": (lambda rng, shape, t: rng.integers(0, 2, shape) * 3.1, 1e-5),
    "two neighbours": (lambda rng, shape, t: 1e4 * (1 + np.finfo(t).eps * rng.integers(0, 2, shape)), 0),
    "40000 to 40003": (lambda rng, shape, t: np.broadcast_to(40000 + np.arange(shape[-1]) % 4, shape), 1e-5),
    "1e30 or 1e300": (_spread(30, 300), 0),
    "1e-30 or 1e-300": (_spread(-30, -300), 0),
    "epsilon matters": (lambda rng, shape, t: rng.standard_normal(shape) * 3e-3, 1e-5),
    "squares underflow, epsilon does not": (_spread(-30, -300), 1e-5),
    "subnormal": (lambda rng, shape, t: rng.integers(-9, 10, shape) * t(np.finfo(t).smallest_subnormal), 0),
    "around the smallest normal": (
        lambda rng, shape, t: rng.standard_normal(shape) * np.finfo(t).smallest_normal,
        0,
    ),
    "up to overflow, both signs": (lambda rng, shape, t: rng.uniform(-1, 1, shape) * t(np.finfo(t).max), 0),
    "at overflow, one sign": (
        lambda rng, shape, t: (1 - rng.uniform(0, 0.01, shape)) * t(np.finfo(t).max),
        0,
    ),
    "plus and minus the largest": (lambda rng, shape, t: rng.choice([-1, 1], shape) * t(np.finfo(t).max), 0),
    "one huge among zeros": (
        lambda rng, shape, t: _with(np.zeros(shape), shape[-1] // 2, t(np.finfo(t).max)),
        0,
    ),
    "one tiny among zeros": (
        lambda rng, shape, t: _with(np.zeros(shape), 0, t(np.finfo(t).smallest_subnormal)),
        0,
    ),
}


def awkward(name, shape, dtype):
    """(x, epsilon) of the named kind."""
    rows, epsilon = AWKWARD_ROWS[name]
    return rows(rng_for(name, shape), shape, dtype).astype(dtype), epsilon
