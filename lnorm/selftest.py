"""``python -m lnorm selftest``: whether this machine computes the bits that every other one does.

The inputs are integers made into floats without a rounding, so that no library function of the machine has a say in
them. ``selftest.txt`` holds a hash of each result; ``python -m lnorm selftest --table > lnorm/selftest.txt`` makes it
again, and ``tests/trials/same_bits_elsewhere.py`` holds it against other compilers and processors.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import lnorm

from . import _core

RESULTS = ("y", "statistics", "dx", "gradients", "dx given statistics", "gradients given statistics")

# Registers, lanes, blocks and groups of rows and their neighbours; rows that are written around the caches; a row that
# threads share.
WIDTHS: tuple[int, ...] = (
    1,
    2,
    3,
    5,
    8,
    15,
    16,
    17,
    31,
    32,
    33,
    47,
    64,
    65,
    95,
    96,
    97,
    127,
    128,
    129,
    255,
    256,
    257,
)
WIDTHS += (511, 512, 513, 768, 1025, 2049, 4099)
SHAPES: dict[str, tuple[tuple[int, ...], int | tuple[int, ...]]] = {
    **{f"rows of {n}": ((13, n), -1) for n in WIDTHS},
    **{f"columns of {n}": ((n, 77), 0) for n in (2, 17, 96, 129, 768)},
    "columns in several strips": ((5, 1201), 0),
    "the middle axis": ((2, 67, 24, 25), 1),
    "all but the first axis": ((3, 9, 20, 21), (1, 2, 3)),
    "two of four axes": ((3, 5, 33, 4), (1, 3)),
    "many short rows": ((5003, 37), -1),
    "many rows": ((3001, 768), -1),
    "a long row": ((1, 300_007), -1),
}

# The fields of the formats: bits of the significand, with the hidden one; the integer of the same size.
FORMATS: dict[np.dtype, tuple[int, Any]] = {
    np.dtype(np.float32): (24, np.uint32),
    np.dtype(np.float64): (53, np.uint64),
}


class Numbers:
    """Arrays of floats of one dtype, from SplitMix64 (Steele, Lea and Flood, 2014), for the case of this name."""

    def __init__(self, dtype: np.dtype, name: str) -> None:
        self.dtype = dtype
        self.bits, self.uint = FORMATS[dtype]
        self._drawn = zlib.crc32(name.encode()) << 32

    def integers(self, shape: tuple[int, ...], bits: int) -> np.ndarray:
        """Uniform in 0 ... 2^bits - 1."""
        z = np.arange(self._drawn + 1, self._drawn + math.prod(shape) + 1, dtype=np.uint64)
        self._drawn += z.size
        z *= np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        z ^= z >> np.uint64(31)
        return (z >> np.uint64(64 - bits)).reshape(shape)

    def around_zero(self, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform in -1 ... 1."""
        half = 1 << (self.bits - 1)
        return (self.integers(shape, self.bits).astype(np.int64) - half).astype(self.dtype) / half

    def far_from_zero(self, shape: tuple[int, ...]) -> np.ndarray:
        """They differ in the last ten bits."""
        return ((1 << (self.bits - 1)) + self.integers(shape, 10).astype(np.int64)).astype(self.dtype)

    def of_any_exponent(self, shape: tuple[int, ...]) -> np.ndarray:
        """Any pattern, but one bit of the exponent is 0: no infinity and no NaN."""
        patterns = self.integers(shape, 8 * self.dtype.itemsize).astype(self.uint)
        return (patterns & ~self.uint(1 << (self.bits - 1))).view(self.dtype)

    def subnormal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.integers(shape, self.bits - 1).astype(self.uint).view(self.dtype)

    def with_specials(self, shape: tuple[int, ...]) -> np.ndarray:
        """A NaN and an infinity in a row each, and a row that is constant."""
        x = self.around_zero(shape)
        x[1, shape[1] // 2], x[3, 0], x[5] = np.nan, -np.inf, x[5, 0]
        return x


# The methods above, and an epsilon.
KINDS = {"far from zero": 1e-5, "with specials": 1e-5, "of any exponent": 0, "subnormal": 0}


def every_other(a: np.ndarray) -> np.ndarray:
    return np.repeat(a, 2, axis=-1)[..., ::2]


def as_fields(a: np.ndarray) -> np.ndarray:
    """Strides that are no multiple of the size of an element."""
    records = np.zeros(a.shape, [("tag", "u1"), ("a", a.dtype)])
    records["a"] = a
    return records["a"]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every other element": every_other,
    "Fortran order": np.asfortranarray,
    "fields of records": as_fields,
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder()),
    "backwards": lambda a: a[::-1, :, ::-1],
}

Case = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None, dict[str, Any]]


def cases(largest: float = math.inf) -> Iterator[tuple[str, Case]]:
    """Name, and x, dy, scale, offset and the keywords of a call, for an x of at most so many elements."""
    for dtype in FORMATS:
        for name, (shape, axis) in SHAPES.items():
            if math.prod(shape) <= largest:
                draw = Numbers(dtype, name).around_zero
                row = tuple(
                    n if i in np.arange(len(shape))[np.atleast_1d(axis)] else 1 for i, n in enumerate(shape)
                )
                yield f"{dtype}, {name}", (draw(shape), draw(shape), draw(row), draw(row), {"axis": axis})
        for parameters in (None, (), (40, 1), (9, 1, 64), (9, 40, 64)):
            name = f"parameters of shape {parameters}"
            draw = Numbers(dtype, name).around_zero
            x, dy = draw((9, 40, 64)), draw((9, 40, 64))
            scale, offset = (None, None) if parameters is None else (draw(parameters), draw(parameters))
            yield f"{dtype}, {name}", (x, dy, scale, offset, {})
        for name, lay in LAYOUTS.items():
            draw = Numbers(dtype, name).around_zero
            x, dy = lay(draw((9, 40, 64))), lay(draw((9, 40, 64)))
            yield f"{dtype}, {name}", (x, dy, draw((64,)), draw((64,)), {})
        for kind, epsilon in KINDS.items():
            for n in (3, 45, 769):
                name = f"rows of {n} {kind}"
                numbers = Numbers(dtype, name)
                draw = numbers.around_zero
                x = getattr(numbers, kind.replace(" ", "_"))((13, n))
                yield f"{dtype}, {name}", (x, draw((13, n)), draw((n,)), draw((n,)), {"epsilon": epsilon})


def results(case: Case) -> list[str]:
    """The hashes of RESULTS."""
    x, dy, scale, offset, options = case
    y, mean, rstd = lnorm.layer_norm(x, scale, offset, return_stats=True, **options)
    dx, *gradients = lnorm.layer_norm_backward(dy, x, scale, **options)
    given = lnorm.layer_norm_backward(dy, x, scale, mean=mean, rstd=rstd, **options)
    return [hash_of(*part) for part in ([y], [mean, rstd], [dx], gradients, given[:1], given[1:])]


def hash_of(*arrays: np.ndarray) -> str:
    """Enough of a hash to tell a difference. Processors differ in the NaN that they make, and in the order of bytes."""
    total = hashlib.sha256()
    for a in arrays:
        total.update(np.where(np.isnan(a), np.nan, a).astype(a.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()[:8]


def table() -> str:
    """The hashes of every case, as this process computes them."""
    return "".join(f"{' '.join(results(case))}  {name}\n" for name, case in cases())


def expected() -> dict[str, list[str]]:
    """The hashes of every case in every other place."""
    text = (importlib.resources.files("lnorm") / "selftest.txt").read_text(encoding="ascii")
    lines = (line.split("  ", 1) for line in text.splitlines())
    return {name: hashes.split() for hashes, name in lines}


def differences(largest: float = math.inf) -> Iterator[str]:
    """What differs here, in any instruction set that runs here."""
    _, runnable, in_use = _core.instruction_sets()
    due = expected()
    try:
        for name, case in cases(largest):
            for isa in runnable:
                _core.use_instruction_set(isa)
                wrong = [
                    part
                    for part, got, hash in zip(RESULTS, results(case), due[name], strict=True)
                    if got != hash
                ]
                if wrong:
                    yield f"{isa}: {name}: {', '.join(wrong)}"
    finally:
        _core.use_instruction_set(in_use)
