"""Promise: no call keeps memory, whether it succeeds or fails.

Every kind of call, good ones and those that raise at each place where an error can be found, 100 000 times in
all. In the second half the process must not grow: neither the bytes that Python and NumPy count nor the heap of
the C library, nor the number of objects, nor the references to what every call is given.

    python tests/trials/leaks.py [--calls N]
"""

import argparse
import ctypes
import gc
import sys
import tracemalloc

import numpy as np

import lnorm


class Hostile:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array today")


class HostileIndex:
    def __index__(self):
        raise RuntimeError("no index today")


X = np.linspace(-1, 1, 12 * 40, dtype=np.float32).reshape(12, 40)
DY, SCALE, OFFSET = np.cos(X), np.ones(40, np.float32), np.zeros(40, np.float32)
WIDE = np.linspace(-1, 1, 2 * 17_000, dtype=np.float32).reshape(
    2, -1
)  # more than a chunk of the backward pass
LONG = np.linspace(-1, 1, 70_000, dtype=np.float32).reshape(1, -1)  # shared by threads
READ_ONLY = np.broadcast_to(X, X.shape)
MEAN, RSTD = lnorm.layer_norm(X, return_stats=True)[1:]

CALLS = {
    "plain": lambda: lnorm.layer_norm(X),
    "out": lambda: lnorm.layer_norm(X, SCALE, OFFSET, out=np.empty_like(X)),
    "statistics": lambda: lnorm.layer_norm(X, return_stats=True),
    "columns": lambda: lnorm.layer_norm(X, axis=0),
    "all axes, cast, byte-swapped": lambda: lnorm.layer_norm(X.astype(">f8"), SCALE, axis=(1, 0)),
    "integers": lambda: lnorm.layer_norm([[1, 2, 3]]),
    "overlap": lambda: lnorm.layer_norm(X[1:], out=X.copy()[1:]),
    "backward": lambda: lnorm.layer_norm_backward(DY, X, SCALE),
    "backward, statistics": lambda: lnorm.layer_norm_backward(DY, X, SCALE, mean=MEAN, rstd=RSTD),
    "backward, columns": lambda: lnorm.layer_norm_backward(DY, X, axis=0),
    "backward, per observation": lambda: lnorm.layer_norm_backward(DY, X, X),
    "layer": lambda: layer_once(),
    "threads": lambda: lnorm.set_num_threads(2),
    "config": lambda: lnorm.show_config(mode="dicts"),
}
RARE = {  # too slow for every round
    "wide rows": lambda: lnorm.layer_norm_backward(WIDE, WIDE),
    "a shared row": lambda: lnorm.layer_norm(LONG),
}
ERRORS = {
    "dtype": lambda: lnorm.layer_norm(X.astype(complex)),
    "masked": lambda: lnorm.layer_norm(np.ma.masked_array(X)),
    "hostile": lambda: lnorm.layer_norm(Hostile()),
    "ragged": lambda: lnorm.layer_norm([[1], [1, 2]]),
    "axis": lambda: lnorm.layer_norm(X, axis=2),
    "axis twice": lambda: lnorm.layer_norm(X, axis=(0, 0)),
    "hostile axis": lambda: lnorm.layer_norm(X, axis=HostileIndex()),
    "epsilon": lambda: lnorm.layer_norm(X, epsilon=-1.0),
    "epsilon is no number": lambda: lnorm.layer_norm(X, epsilon="1"),
    "scale": lambda: lnorm.layer_norm(X, np.ones(39)),
    "hostile offset": lambda: lnorm.layer_norm(X, None, Hostile()),
    "out's dtype": lambda: lnorm.layer_norm(X, out=np.empty(X.shape)),
    "out's shape": lambda: lnorm.layer_norm(X, out=np.empty(3, np.float32)),
    "out read-only": lambda: lnorm.layer_norm(X, out=READ_ONLY),
    "out is no array": lambda: lnorm.layer_norm(X, out=[0]),
    "keyword": lambda: lnorm.layer_norm(X, nonsense=1),
    "missing": lambda: lnorm.layer_norm(),
    "dy's shape": lambda: lnorm.layer_norm_backward(DY[1:], X),
    "mean alone": lambda: lnorm.layer_norm_backward(DY, X, mean=MEAN),
    "mean's shape": lambda: lnorm.layer_norm_backward(DY, X, mean=MEAN[1:], rstd=RSTD),
    "backward scale": lambda: lnorm.layer_norm_backward(DY, X, np.ones(3)),
    "backward out": lambda: lnorm.layer_norm_backward(DY, X, out=READ_ONLY),
    "threads": lambda: lnorm.set_num_threads(0),
    "threads' type": lambda: lnorm.set_num_threads("2"),
    "layer": lambda: lnorm.LayerNormalizationLayer(epsilon=0),
    "layer backward first": lambda: lnorm.LayerNormalizationLayer().backward(DY),
}
GIVEN = (X, DY, SCALE, OFFSET, WIDE, LONG, READ_ONLY, MEAN, RSTD)


def layer_once():
    layer = lnorm.LayerNormalizationLayer(num_channels=40)
    layer.forward(X)
    layer.backward(DY)
    lnorm.SGDM().step(layer)


def round_of_calls(rare):
    for call in (CALLS | RARE if rare else CALLS).values():
        call()
    for name, call in ERRORS.items():
        try:
            call()
        except Exception:
            continue
        raise AssertionError(f"{name} raised nothing")


class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd".split()] + [
        (name, ctypes.c_size_t) for name in "usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def heap():
    """Bytes in use of the C library's heap; 0 where it does not tell."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    mallinfo.restype = Mallinfo
    info = mallinfo()
    return info.uordblks + info.hblkhd


def measure():
    gc.collect()
    sys._clear_type_cache()  # it keeps names that were looked up, such as those of dtypes in errors
    return {
        "traced bytes": tracemalloc.get_traced_memory()[0],
        "heap bytes": heap(),
        "objects": len(gc.get_objects()),
        "references": sum(map(sys.getrefcount, GIVEN)),
    }


def growth(calls):
    """What grew in the second half, which had how many rounds, and the calls that were made."""
    per_round = len(CALLS) + len(ERRORS)
    half = max(10, calls // per_round // 2)
    tracemalloc.start()
    for i in range(2 * half):
        if i == half:
            before = measure()
        round_of_calls(rare=i % 100 == 0)
    after = measure()
    tracemalloc.stop()
    return {name: after[name] - before[name] for name in after}, half, 2 * half * per_round


def failures(grown, rounds):
    """The smallest object, lost once in each round, takes 16 bytes. Caches of Python that still fill take less."""
    allowed = {"traced bytes": 8 * rounds, "heap bytes": 8 * rounds + 50_000, "objects": 10, "references": 0}
    return {name: by for name, by in grown.items() if by > allowed[name]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=100_000)
    grown, rounds, calls = growth(parser.parse_args().calls)
    print(f"{calls} calls, {len(CALLS)} kinds that succeed and {len(ERRORS)} that raise; grown by {grown}")
    lost = failures(grown, rounds)
    sys.exit(f"leak: {lost}" if lost else 0)
