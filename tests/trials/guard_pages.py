"""Promise: no byte outside the arrays is read or written.

Every input and every result (scale, offset, mean, rstd, dscale and doffset too) stands between pages that cannot
be touched: once it ends right before one, once it begins right behind one. Rows, columns, several axes, short,
long, streamed and shared rows, in both dtypes, in place and not, for every instruction set that runs here and 1,
2 and 3 threads; rows near the limits of their type, which are taken again, among them. The results must have the
bits that ordinary arrays give.

    python tests/trials/guard_pages.py [--quick]
"""

import argparse
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from guarded import guard, guarded
from oracle import bits, rng_for

import lnorm
from lnorm import functional

WIDTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 129, 255, 257, 511, 512, 513)
WIDTHS += (767, 768, 1023, 1025, 2047, 2048, 2049, 4099)
FEW_WIDTHS = (1, 3, 16, 33, 97, 513)

ENDS = True


class Shim:
    """NumPy for functional.py, but what it makes its results with puts them between guard pages."""

    def __getattr__(self, name):
        return getattr(np, name)

    def full(self, shape, value):
        return guard(np.full(shape, value), ENDS)

    def zeros(self, shape, dtype):
        return guarded(shape, dtype, ENDS)

    def empty_like(self, x, dtype=None, subok=False):
        return guarded(x.shape, dtype or x.dtype, ENDS)


def small(widths):
    for n in widths:
        for m in (1, 2, 4, 5, 8, 9, 17):
            yield (m, n), (1,)
    for n in widths:
        if n < 2049:
            for m in (1, 15, 16, 17, 33, 64, 65, 130):
                yield (n, m), (0,)
            yield (3, n, 19), (1,)
    yield from (
        ((5, 33, 4), (0, 2)),
        ((2, 9, 6, 7), (1,)),
        ((2, 9, 6, 7), (1, 2, 3)),
        ((4, 600, 3), (0, 1)),
    )


LARGE = [  # streamed, shared by threads, more columns than a chunk of the backward pass
    ((8200, 257), (1,)),
    ((2731, 769), (1,)),
    ((515, 4099), (1,)),
    ((33, 65_537), (1,)),
    ((1, 65_537), (1,)),
    ((1, 300_007), (1,)),
    ((2, 2_200_001), (1,)),
    ((2, 129, 91, 97), (1,)),
    ((2, 64, 128, 144), (1,)),
    ((3, 65, 80, 145), (1, 2, 3)),
]


def parameters(rng, shape, axes, kind, dtype):
    """None, of the normalized axes, or one that differs by observation too."""
    if kind == "none":
        return None
    kept = [n if d in axes or kind == "full" else 1 for d, n in enumerate(shape)]
    if kind == "row" and axes == (len(shape) - 1,):
        kept = kept[-1:]
    return rng.standard_normal(kept).astype(dtype)


def inputs(shape, dtype, ill):
    rng = rng_for(shape, "guard")
    x, dy = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
    if ill:  # far from the first elements' mean, at the limits, not finite
        x = x + np.where(np.arange(shape[-1]) < 32, 0, 1e6).astype(dtype)
        x[0] = x[0] * dtype(np.finfo(dtype).max / 1e9)
        x[-1, ..., -1] = np.nan
    return x, dy, rng


def run(shape, axes, dtype, kind, ill, in_place, fortran):
    """One case with ordinary arrays, then at both ends."""
    global ENDS
    x, dy, rng = inputs(shape, dtype, ill)
    if fortran:  # the order of dscale's sums may depend on the layout
        x, dy = np.asfortranarray(x), np.asfortranarray(dy)
    scale, offset = (parameters(rng, shape, axes, kind, dtype) for _ in range(2))
    axis = axes[0] if len(axes) == 1 else axes
    order = range(len(shape))[::-1] if fortran else None
    functional.np = np
    y, mean, rstd = lnorm.layer_norm(x, scale, offset, axis=axis, return_stats=True)
    given = lnorm.layer_norm_backward(dy, x, scale, axis=axis, mean=mean, rstd=rstd)
    computed = lnorm.layer_norm_backward(dy, x, scale, axis=axis)
    functional.np = Shim()
    for ENDS in (True, False):
        gx, gdy = guard(x, ENDS, order), guard(dy, ENDS, order)
        gscale, goffset = (None if a is None else guard(a, ENDS) for a in (scale, offset))
        out = gx if in_place else guard(np.zeros_like(x), ENDS, order)
        for stats in (False, True):
            if in_place:
                gx[...] = x
            got = lnorm.layer_norm(gx, gscale, goffset, axis=axis, out=out, return_stats=stats)
            assert bits(*got if stats else [got]) == bits(*(y, mean, rstd)[: 3 if stats else 1])
        gx[...] = x
        for stats, expected in (
            ({}, computed),
            ({"mean": guard(mean, ENDS), "rstd": guard(rstd, ENDS)}, given),
        ):
            gdy[...] = dy
            out = gdy if in_place else guard(np.zeros_like(x), ENDS, order)
            got = lnorm.layer_norm_backward(gdy, gx, gscale, axis=axis, out=out, **stats)
            assert bits(*got) == bits(*expected)


def cases(quick):
    """(arguments of run) in an order that meets every kind early."""
    for shape, axes in small(FEW_WIDTHS if quick else WIDTHS):
        for dtype, kind in itertools.product((np.float32, np.float64), ("none", "row", "full")):
            yield shape, axes, dtype, kind, False, False, False
            if not quick or kind == "row":
                yield shape, axes, dtype, kind, True, kind == "row", shape[0] % 2 == 0
    for shape, axes in LARGE[1::3] if quick else LARGE:
        for dtype in (np.float32, np.float64)[: 1 if quick else 2]:
            yield shape, axes, dtype, "row", False, False, False
            if not quick:
                yield shape, axes, dtype, "none", True, False, False
                yield shape, axes, dtype, "full", False, True, True


def child(quick, threads):
    lnorm.set_num_threads(threads)
    for case in cases(quick):
        print(case[:2], case[2].__name__, *case[3:], flush=True)
        run(*case)


def trial(isa, threads, quick):
    """How many cases ran. The last one printed is the one that failed."""
    command = [sys.executable, "-X", "faulthandler", __file__, "--child", str(threads), *["--quick"] * quick]
    env = {**os.environ, "LNORM_ISA": isa, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{isa}, {threads} threads: {lines[-1:]}\n{done.stderr[-3000:]}"
    return len(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a minute instead of some")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.quick, args.child)
    else:
        total = 0
        for isa in lnorm.show_config(mode="dicts")["instruction sets"]["runnable"]:
            for threads in (1, 3) if args.quick else (1, 2, 3):
                count = trial(isa, threads, args.quick)
                total += count
                print(f"{isa}, {threads} threads: {count} cases, each at both ends: nothing touched outside")
        print(f"{total} cases")
