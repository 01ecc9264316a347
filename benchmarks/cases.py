"""What is measured: the cases, in named groups, and the bars that lnorm promises for some of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

EPSILON = 1e-5

# Calls on less than this take a few sets of arrays in turn, so that none sees the same input twice in a row. Three sets
# of (1, 768) and what is shared between them still fit a first-level cache of 32 KiB.
SMALL = 32 * 1024
SETS = 3


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    bar: float | None = None  # the ratio to a plain copy that is promised; see `bar_threads`
    backward: bool = False
    dtype: str = "float32"
    axis: int | tuple[int, ...] = -1
    parameters: tuple[int, ...] = ()  # the shape of scale and offset; (): that of the last axis
    order: str = "C"
    into: str = "given"  # where the result goes: "given" (out=), "new" (the call allocates it), "in place"
    layer: bool = False  # lnorm is called through the layer's predict
    quick: bool = False  # also in a quick run
    group: str = ""

    def __str__(self):
        words = [str(self.shape).replace(" ", "")]
        words += ["backward"] * self.backward + [self.dtype] * (self.dtype != "float32")
        words += [f"axis={self.axis}".replace(" ", "")] * (self.axis != -1)
        words += ["per-observation parameters"] * (self.parameters[1:2] == (1,) and self.axis == -1)
        words += ["Fortran order"] * (self.order == "F") + ["layer.predict"] * self.layer
        words += {"given": [], "new": ["allocating"], "in place": ["in place"]}[self.into]
        return " ".join(words)

    @property
    def axes(self):
        """The normalized axes, none negative."""
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return tuple(axis % len(self.shape) for axis in axes)

    @property
    def last(self):
        """Whether the normalized axes are the last ones of an array in C order: rows that stand side by side."""
        first = len(self.shape) - len(self.axes)
        return self.order == "C" and self.axes == tuple(range(first, len(self.shape)))

    @property
    def n(self):
        return math.prod(self.shape[axis] for axis in self.axes)

    @property
    def observations(self):
        return math.prod(self.shape) // self.n

    @property
    def nbytes(self):
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def bar_threads(self):
        return 2 if self.group == "threads" else 1

    def reduced(self):
        """The same kind of call on a few elements, for the tests."""
        shape, parameters = (tuple(min(size, 9) for size in sizes) for sizes in (self.shape, self.parameters))
        return replace(self, shape=shape, parameters=parameters)

    def data(self):
        """The sets of arrays that the calls take in turn; they share scale and offset, as calls of one layer do."""
        rng = np.random.default_rng(0)

        def normal(shape):
            return np.asarray(rng.standard_normal(shape, dtype=self.dtype), order=self.order)

        scale, offset = (normal(self.parameters or self.shape[-1:]) for _ in range(2))
        sets = []
        for _ in range(SETS if self.nbytes < SMALL else 1):
            x = normal(self.shape)
            backward = {"dy": normal(self.shape), **statistics(x, self.axes)} if self.backward else {}
            sets.append(Data(x=x, scale=scale, offset=offset, out=np.empty_like(x), **backward))
        return sets


@dataclass
class Data:
    """The operands of a call. `out` takes y, or dx; mean and rstd (float64) are given to the backward pass only."""

    x: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    out: np.ndarray
    dy: np.ndarray | None = None
    mean: np.ndarray | None = None
    rstd: np.ndarray | None = None


# --- the reference -------------------------------------------------------------------------------------------------


def statistics(x, axes):
    """mean and rstd in float64, with the axes kept."""
    mean = x.mean(axes, keepdims=True, dtype=np.float64)
    return {"mean": mean, "rstd": 1 / np.sqrt(np.square(x - mean).mean(axes, keepdims=True) + EPSILON)}


def expected(case, data):
    """What the call has to return, in float64: (y,) or (dx, dscale, doffset)."""
    mean, rstd = statistics(data.x, case.axes).values()
    xhat = (data.x - mean) * rstd
    if not case.backward:
        return (xhat * data.scale + data.offset,)
    g = data.dy.astype(np.float64) * data.scale
    dx = g - g.mean(case.axes, keepdims=True) - xhat * (g * xhat).mean(case.axes, keepdims=True)
    return (
        dx * rstd,
        sum_to(data.dy * xhat, data.scale.shape),
        sum_to(data.dy.astype(np.float64), data.scale.shape),
    )


def sum_to(terms, shape):
    """Summed over whatever was broadcast from `shape`."""
    padded = (1,) * (terms.ndim - len(shape)) + tuple(shape)
    return terms.sum(tuple(i for i, size in enumerate(padded) if size == 1), keepdims=True).reshape(shape)


# --- the groups ----------------------------------------------------------------------------------------------------


def image(shape, bar, axis=1, **kwargs):
    """Channels first, with one scale and offset per channel."""
    return Case(shape, bar, axis=axis, parameters=(shape[1], 1, 1), **kwargs)


GROUPS = {
    "small calls": [
        Case((1, 64), 0.7),
        Case((1, 768), 0.7, quick=True),
        Case((1, 768), layer=True, quick=True),
        Case((1, 768), 1.5, into="new", quick=True),
        Case((16, 768), 1.4),
    ],
    "forward": [
        Case((128, 768), 1.8, quick=True),
        Case((2048, 768), 1.45, quick=True),
        Case((2048, 4096), 1.0),
        Case((32768, 768), 0.95, quick=True),
        Case((2048, 16384), 0.95),
        Case((65536, 64), 1.15, quick=True),
        Case((500000, 16), 2.5),
        Case((4, 5000000), 1.5),
        Case((32768, 768), 1.0, into="in place"),
        Case((128, 768), into="new", quick=True),
        Case((2048, 768), into="new", quick=True),
        Case((32768, 768), 1.0, into="new"),
    ],
    "backward": [
        Case((128, 768), 4.5, backward=True, quick=True),
        Case((2048, 768), 2.5, backward=True),
        Case((32768, 768), 1.25, backward=True),
        Case((65536, 64), 1.8, backward=True),
        Case((128, 768), backward=True, into="new", quick=True),
        Case((2048, 768), backward=True, into="new"),
        Case((32768, 768), backward=True, into="new"),
    ],
    # At each number of threads that is asked for; the bars are those for two.
    "threads": [
        Case((128, 768), 1.3, quick=True),
        Case((2048, 768), 0.8, quick=True),
        Case((32768, 768)),
        Case((1, 5000000), 1.2),
        Case((2048, 768), backward=True),
        Case((2048, 768), into="new"),
    ],
    "layouts": [
        image((8, 96, 56, 56), 2.5, quick=True),
        image((8, 96, 56, 56), 1.6, axis=(1, 2, 3)),
        image((4, 768, 14, 14), 2.0),
        image((8, 128, 128, 128), 1.7),
        image((8, 96, 56, 56), 6.0, backward=True),
        Case((64, 1024, 768), 1.0, parameters=(64, 1, 768)),
        Case((4096, 768), 3.0, order="F"),
    ],
    "dtypes": [
        Case((128, 768), 1.6, dtype="float64", quick=True),
        Case((8192, 768), 1.0, dtype="float64"),
        Case((2048, 768), dtype="float64", backward=True),
    ],
    # The same 96 MiB in rows of every width.
    "row width": [
        Case((3 * 2**23 // n, n), quick=n in (64, 1024, 16384))
        for n in (16, 64, 256, 1024, 4096, 16384, 65536)
    ],
    "scaling with n": [Case((1, 10**k), quick=k < 7) for k in range(8)],
    "scaling with observations": [Case((10**k, 64), quick=k < 6) for k in range(7)],
}
GROUPS = {name: [replace(case, group=name) for case in cases] for name, cases in GROUPS.items()}
