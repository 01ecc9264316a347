"""Run by test_same_bits.py in its own process, as the instruction set is chosen at import: prints one hash
over forward and backward of many widths, dtypes and layouts, for the number of threads in its argument."""

import hashlib
import sys

import numpy as np
from oracle import AWKWARD_ROWS, FLOATS, WIDTHS, awkward, bits, rng_for

import lnorm

# Large enough for several threads to work (at least 4 MB); few rows, rows left over, columns, several axes.
LARGE = [
    ((1531, 768), -1),
    ((16, 70_001), -1),
    ((30_011, 37), -1),
    ((1, 300_007), -1),  # one row, which threads share
    ((2, 131_072), -1),
    ((2, 67, 96, 97), 1),
    ((3, 65, 80, 81), (1, 2, 3)),
]
SMALL = (
    [((7, n), -1) for n in WIDTHS]
    + [((n, 7), 0) for n in WIDTHS]
    + [((3, 5, 33, 4), (1, 3)), ((2, 9, 6, 7), 1)]
)


def results():
    for name in AWKWARD_ROWS:
        for dtype in FLOATS:
            for n in (3, 45, 769):
                x, epsilon = awkward(name, (3, n), dtype)
                yield lnorm.layer_norm(x, epsilon=epsilon, return_stats=True)
    for shape, axis in SMALL + LARGE:
        rng = rng_for(shape, axis)
        normalized = [
            n if i in np.arange(len(shape))[np.atleast_1d(axis)] else 1 for i, n in enumerate(shape)
        ]
        for dtype in FLOATS:
            x = rng.standard_normal(shape, np.float32).astype(dtype)
            dy = rng.standard_normal(shape, np.float32).astype(dtype)
            scale, offset = rng.standard_normal((2, *normalized)).astype(dtype)
            _, mean, rstd = stats = lnorm.layer_norm(x, scale, offset, axis=axis, return_stats=True)
            yield stats
            yield lnorm.layer_norm_backward(dy, x, scale, axis=axis)
            yield lnorm.layer_norm_backward(dy, x, axis=axis, mean=mean, rstd=rstd)
    x, dy = rng_for("mixed").standard_normal((2, 40, 300, 64)).astype(np.float32)
    for shape in ((), (64,), (40, 1, 64), (300, 1), (40, 300, 64)):
        yield lnorm.layer_norm_backward(dy, x, np.ones(shape, np.float32))


if __name__ == "__main__":
    lnorm.set_num_threads(int(sys.argv[1]))
    total = hashlib.sha256()
    for arrays in results():
        for shape, data in bits(*arrays):
            total.update(repr(shape).encode())
            total.update(data)
    print(lnorm.show_config(mode="dicts")["instruction sets"]["in use"], total.hexdigest())
