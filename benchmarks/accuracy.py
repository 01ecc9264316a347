"""The error of each implementation, in units of the machine epsilon, against the offset of the data.

Rows are N(0, 1) about an offset, float32, with scale 1 and offset 0; what counts is the worst error over the rows,
relative to the largest |x̂| of the row.
"""

import numpy as np

from .cases import EPSILON, Case, Data
from .implementations import NAMES, NotMeasured, prepare

SHAPES = [(1024, 64), (256, 768), (64, 4096)]
OFFSETS = [0, *(10**k for k in range(7))]


def worst_error(y, x):
    """The reference is exact for this purpose: float64 about an integer near the data, so that x - it is exact."""
    d = x.astype(np.float64) - np.rint(x.mean(dtype=np.float64))
    d -= d.mean(-1, keepdims=True)
    exact = d / np.sqrt((d * d).mean(-1, keepdims=True) + EPSILON)
    error = abs(y - exact).max(-1) / abs(exact).max(-1)
    return float(error.max() / np.finfo(np.float32).eps)


def errors(names=NAMES, shapes=SHAPES, offsets=OFFSETS):
    found = {"offsets": offsets, "errors": {}, "not measured": {}}
    for shape in shapes:
        case = Case(shape, into="new")
        normal = np.random.default_rng(0).standard_normal(shape)
        ones, zeros = np.ones(shape[-1], np.float32), np.zeros(shape[-1], np.float32)
        rows = found["errors"][str(shape)] = {}
        for name in names:
            if name == "copy":
                continue
            try:
                for offset in offsets:
                    x = (normal + offset).astype(np.float32)
                    data = Data(x, ones, zeros, np.empty_like(x))
                    call, outputs = prepare(name, case, data, 1)
                    rows.setdefault(name, []).append(worst_error(np.asarray(outputs(call())[0]), x))
            except NotMeasured as reason:
                found["not measured"][name] = str(reason)
    return found
