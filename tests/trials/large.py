"""Large: more than 2³¹ elements, rows of more than 2³¹ elements, 10⁸ observations, strides near the limits.

Promise: sizes are Py_ssize_t throughout. Each trial runs alone in a child; those that need more memory than is free
(with a third to spare) are not run, and say so. Expected values come from the same rows in small arrays, or from exact
integer sums.

    python tests/trials/large.py [--most GiB] [--only NAME]
"""

import argparse
import math
import mmap
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import as_strided

sys.path.insert(0, str(Path(__file__).parents[2]))
import lnorm

OVER = 2**31 + 1000  # elements
PIECE = 1 << 24  # elements checked at a time


def same(a: np.ndarray, b: np.ndarray, what: str) -> None:
    if a.shape != b.shape or a.dtype != b.dtype or a.tobytes() != b.tobytes():
        raise AssertionError(f"{what}: {np.sum(a != b)} of {a.size} elements differ")


def many_rows() -> str:
    """3,000,000 rows of 768, in place; every row is one of 1000 known ones."""
    n = 768
    rows = math.ceil(OVER / n)
    rng = np.random.default_rng(0)
    some = rng.standard_normal((1000, n)).astype(np.float32)
    scale, offset = rng.standard_normal((2, n)).astype(np.float32)
    x = np.empty((rows, n), np.float32)
    for i in range(0, rows, 1000):
        x[i : i + 1000] = some[: rows - i]
    assert x.size > 2**31
    y = lnorm.layer_norm(some, scale, offset)
    got = lnorm.layer_norm(x, scale, offset, out=x)
    for i in range(0, rows, 1000):
        same(got[i : i + 1000], y[: rows - i], f"rows from {i} on")
    return f"{x.size} elements in {rows} rows"


def many_columns() -> str:
    """Normalized over the first axis: 64 x 33,600,000, in place."""
    n = 64
    columns = math.ceil(OVER / n)
    some = np.random.default_rng(0).standard_normal((n, 1000)).astype(np.float32)
    x = np.empty((n, columns), np.float32)
    for i in range(0, columns, 1000):
        x[:, i : i + 1000] = some[:, : columns - i]
    y = lnorm.layer_norm(some, axis=0)
    lnorm.layer_norm(x, axis=0, out=x)
    for i in range(0, columns, 1000):
        same(x[:, i : i + 1000], y[:, : columns - i], f"columns from {i} on")
    return f"{x.size} elements in {columns} columns"


def backward_of_many_rows() -> str:
    """x and dy are one row repeated (stride 0), so that only dx takes memory."""
    n = 4096
    rows = math.ceil(OVER / n)
    rng = np.random.default_rng(0)
    x, dy, scale = rng.integers(-8, 9, (3, n)).astype(np.float32)
    dx, dscale, doffset = lnorm.layer_norm_backward(
        np.broadcast_to(dy, (rows, n)), np.broadcast_to(x, (rows, n)), scale
    )
    assert dx.size > 2**31
    one, dscale_of_one, _ = lnorm.layer_norm_backward(dy[None], x[None], scale)
    for i in range(0, rows, 4096):
        piece = dx[i : i + 4096]
        same(piece, np.broadcast_to(one, piece.shape).copy(), f"dx from row {i} on")
    same(doffset, (dy.astype(np.float64) * rows).astype(np.float32), "doffset")  # Sums of integers are exact.
    eps = np.finfo(np.float32).eps
    worst = float(np.max(np.abs(dscale / rows - dscale_of_one) / (np.abs(dscale_of_one) + 1e-30)))
    assert worst <= 16 * eps, f"dscale is off by {worst / eps} eps"
    return f"{dx.size} elements, dscale within {worst / eps:.2g} eps"


def integers(begin: int, end: int) -> np.ndarray:
    """The row of the next trials: whole numbers from 0 to 1000 at an offset, without a period that divides a block."""
    i = np.arange(begin, end, dtype=np.int64)
    return (i * i % 1009 % 1001 + 50_000).astype(np.float32)


def exact_statistics(n: int) -> tuple[Fraction, Fraction]:
    total = squares = 0
    for i in range(0, n, PIECE):
        piece = integers(i, min(i + PIECE, n)).astype(np.int64)
        total += int(piece.sum())
        squares += int((piece * piece).sum())
    mean = Fraction(total, n)
    return mean, Fraction(squares, n) - mean**2


def long_row() -> str:
    """One row of more than 2³¹ elements, in place; the mean and the variance are known exactly, from whole numbers."""
    n = OVER
    x = np.empty((1, n), np.float32)
    for i in range(0, n, PIECE):
        x[0, i : i + PIECE] = integers(i, min(i + PIECE, n))
    exact_mean, variance = exact_statistics(n)
    y, mean, rstd = lnorm.layer_norm(x, 3, -2, out=x, return_stats=True)
    eps, exact_rstd = np.finfo(np.float32).eps, 1 / math.sqrt(variance + Fraction(1e-5))
    assert abs(mean[0, 0] - float(exact_mean)) <= 1e-12 * float(exact_mean), "mean"
    assert abs(rstd[0, 0] / exact_rstd - 1) <= 8 * eps, "rstd"
    largest = max(abs(50_000 - float(exact_mean)), abs(51_000 - float(exact_mean))) * exact_rstd
    worst = 0.0
    for i in range(0, n, PIECE):
        centred = integers(i, min(i + PIECE, n)).astype(np.float64) - float(exact_mean)
        error = np.abs(y[0, i : i + PIECE] - (3 * (centred * exact_rstd) - 2)).max()
        worst = max(worst, float(error) / (eps * (3 * largest + 2)))
    assert worst <= 4, f"off by {worst} eps"
    return f"a row of {n}: worst error {worst:.2g} eps (promised: 4)"


def long_row_backward() -> str:
    """A row of more than 2³¹ elements in two dimensions, along one of which x and dy repeat; dx takes the memory."""
    m, repeats = 1 << 16, (1 << 15) + 1
    rng = np.random.default_rng(0)
    x, dy = rng.integers(-8, 9, (2, m)).astype(np.float32)
    shape = (1, repeats, m)
    dx, dscale, doffset = lnorm.layer_norm_backward(
        np.broadcast_to(dy, shape), np.broadcast_to(x, shape), np.float32(2), axis=(1, 2)
    )
    assert dx.size > 2**31
    # The statistics of a repeated row are those of the row; only the number of terms grows.
    wide = x.astype(np.longdouble)
    xhat = (wide - wide.mean()) / np.sqrt(wide.var() + np.longdouble(1e-5))
    rstd, g = 1 / np.sqrt(wide.var() + np.longdouble(1e-5)), 2 * dy.astype(np.longdouble)
    expected = rstd * (g - g.mean() - xhat * (g * xhat).mean())
    eps = np.finfo(np.float32).eps
    worst = 0.0
    for i in range(0, repeats, 256):
        worst = max(worst, float(np.abs(dx[0, i : i + 256] - expected.astype(np.float64)).max()))
    worst /= float(eps * np.abs(expected).max())
    assert worst <= 16, f"dx is off by {worst} eps"
    sums = (("doffset", doffset, dy.sum(dtype=np.float64), np.abs(dy).sum(dtype=np.float64)),)
    sums += (("dscale", dscale, (dy * xhat).sum(), (np.abs(dy) * np.abs(xhat).max()).sum()),)
    for name, got, one, unit in sums:
        off = abs(float(got) / repeats - float(one)) / float(eps * unit)
        assert off <= 16, f"{name} is off by {off} eps"
    return f"a row of {dx.size}: worst error of dx {worst:.2g} eps (promised: 16)"


def many_of_one() -> str:
    """n = 1, 10⁸ observations: exactly the offset; dx and dscale exactly 0."""
    count = 10**8
    x = np.arange(count, dtype=np.float32)
    for shape, axis in (((count, 1), -1), ((1, count), 0)):
        a = x.reshape(shape)
        y, mean, rstd = lnorm.layer_norm(a, 3, 0.7, axis=axis, return_stats=True)
        assert np.all(y == np.float32(0.7)), "y"
        assert np.array_equal(mean.ravel(), x), "mean"
        assert np.all(rstd == rstd.flat[0]) and abs(rstd.flat[0] * math.sqrt(1e-5) - 1) < 1e-12, "rstd"
        del y, mean, rstd
        dx, dscale, doffset = lnorm.layer_norm_backward(a, a, np.full(1, 3, np.float32), axis=axis)
        assert not dx.any() and dscale.tolist() == [0], "dx, dscale"
        exact = float(x.astype(np.float64).sum())  # whole numbers below 2⁵³
        assert abs(doffset[0] / exact - 1) <= 16 * np.finfo(np.float32).eps, "doffset"
        del dx
    return f"{count} observations, as rows and as columns"


def strides() -> str:
    """Arrays spread over 2⁴⁶ bytes of address space, of which only the pages touched exist; and strides at the limit
    along axes of one element."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    sizes = iter((1 << 46, 1 << 44, 1 << 42, 1 << 40, 1 << 38))
    for size in sizes:
        try:
            space = np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)
            break
        except (OSError, ValueError, OverflowError):
            continue
    cases = 0
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        item = np.dtype(dtype).itemsize
        flat = space[: size // item * item].view(dtype)
        for shape in ((3, 40), (40, 3), (2, 3, 35), (5, 1), (1, 5)):
            total = math.prod(shape)
            far = size // total // 4096 * 4096 - 4096  # bytes between elements
            for order in ("C", "F"):
                for near in range(-1, len(shape)):
                    # All axes wide apart, or all but one, and each axis backwards in turn.
                    step = np.array(np.empty(shape, np.int8, order=order).strides, object) * far
                    if near >= 0:
                        step[near] = item
                    for signs in ([1] * len(shape), [-1] * len(shape), [1, -1, 1][: len(shape)]):
                        start = sum(s * (n - 1) for s, n, sign in zip(step, shape, signs) if sign < 0)
                        real = [int(s * sign) for s, sign in zip(step, signs)]
                        spread = as_strided(flat[start // item :], shape, real)
                        dy = rng.standard_normal(shape).astype(dtype)
                        x = rng.standard_normal(shape).astype(dtype)
                        for axis in (*range(len(shape)), tuple(range(len(shape)))):
                            spread[...] = x
                            expected = lnorm.layer_norm(x, 2, 1, axis=axis)
                            same(
                                lnorm.layer_norm(spread, 2, 1, axis=axis), expected, f"{shape} {real} {axis}"
                            )
                            lnorm.layer_norm(spread, 2, 1, axis=axis, out=spread)
                            same(spread.copy(), expected, f"{shape} {real} {axis} in place")
                            spread[...] = dy
                            want = lnorm.layer_norm_backward(dy, x, axis=axis)
                            got = lnorm.layer_norm_backward(spread, x, axis=axis, out=spread)
                            same(np.array(got[0]), want[0], f"{shape} {real} {axis} backward")
                            # Sums of a layout of its own: promised to a bound, not to the bit.
                            unit = 32 * np.finfo(dtype).eps * np.abs(dy).sum() * max(shape)
                            for a, b in zip(got[1:], want[1:]):
                                assert np.abs(a - b).max() <= unit, f"{shape} {real} {axis} sums"
                            cases += 3
    limits = (2**63 - 1, -(2**63), 2**62, -(2**62) + 1, 1, 0, -1)
    x = rng.standard_normal((6, 5)).astype(np.float32)
    for limit in limits:
        for shape, step in (
            ((1, 6, 5), (limit, 20, 4)),
            ((6, 1, 5), (20, limit, 4)),
            ((6, 5, 1), (20, 4, limit)),
        ):
            a = as_strided(x, shape, step)
            for axis in (0, 1, 2, (0, 1), (1, 2), (0, 1, 2)):
                b = x.reshape(shape)
                same(lnorm.layer_norm(a, axis=axis), lnorm.layer_norm(b, axis=axis), f"{shape} {step} {axis}")
                c, d = (lnorm.layer_norm_backward(e, e, axis=axis)[0] for e in (a, b))
                same(c, d, f"{shape} {step} {axis} backward")
                cases += 2
    for shape in ((0, 2**60), (2**60, 0), (2**31, 0, 2**28)):
        x = np.empty(shape, np.float32)
        for axis in range(len(shape)):
            assert lnorm.layer_norm(x, axis=axis).shape == shape
            dx, _, _ = lnorm.layer_norm_backward(x, x, axis=axis, param_grads=False)
            assert dx.shape == shape
            cases += 2
            try:  # float64 statistics and gradients of 2⁶⁰ elements
                lnorm.layer_norm(x, axis=axis, return_stats=True)
                lnorm.layer_norm_backward(x, x, axis=axis)
            except (MemoryError, ValueError):
                pass
    return f"{cases} cases, over {size:.3g} bytes of addresses"


# Name: the trial, and the memory it needs in GiB.
TRIALS = {
    "strides": (strides, 1),
    "many of one": (many_of_one, 3),
    "many rows": (many_rows, 9),
    "many columns": (many_columns, 9),
    "backward of many rows": (backward_of_many_rows, 9),
    "long row": (long_row, 9),
    "long row, backward": (long_row_backward, 9),
}


def free() -> float:
    with open("/proc/meminfo") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("MemAvailable")) / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=float, default=12, help="GiB that a trial may take")
    parser.add_argument("--only", choices=TRIALS)
    parser.add_argument("--child", choices=TRIALS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(f"{arguments.child}: {TRIALS[arguments.child][0]()}")
        return 0
    faults = 0
    for name, (_, gib) in TRIALS.items():
        if arguments.only not in (None, name):
            continue
        if gib > arguments.most or gib * 1.33 > free():
            print(f"{name}: NOT RUN, it needs {gib} GiB; {free():.1f} are free, {arguments.most:g} allowed")
            continue
        command = [sys.executable, "-X", "faulthandler", __file__, "--child", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        print(done.stdout or f"{name}: FAILED, status {done.returncode}\n", end="", flush=True)
        faults += done.returncode != 0
    print(f"found: {faults}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
