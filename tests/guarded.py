"""Arrays between pages that cannot be touched: a byte read or written outside ends the process with a fault."""

import ctypes
import math
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
PROT_NONE = 0


def guarded(shape, dtype, end):
    """Zeros that end at a forbidden page or, without `end`, begin right behind one."""
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    size = count * dtype.itemsize
    pages = max(1, -(-size // PAGE))
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    for guard in (start, start + (pages + 1) * PAGE):
        if mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    at = (pages + 1) * PAGE - size if end else PAGE
    return np.frombuffer(memory, dtype, count, offset=at).reshape(shape)


def guard(array, end, order=None):
    """A copy of the array between forbidden pages, its axes in memory in the given order (the last one fastest)."""
    order = range(array.ndim) if order is None else order
    copy = guarded([array.shape[d] for d in order], array.dtype, end).transpose(np.argsort(order))
    copy[...] = array
    return copy
