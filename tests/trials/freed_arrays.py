"""Promise: a call holds what it works on, whatever other threads do to the arrays meanwhile.

While calls are under way, long enough to have given the GIL away, another thread drops its references to the
inputs and the output, tries to resize them in place, closes the memory map below them, and allocates over what
may have been freed. The result must have the bits of an undisturbed call; what an exporter forbids while it is in
use (resize, close) must be refused with its usual error. Run under PYTHONMALLOC=malloc and AddressSanitizer
(sanitizers.py) it also sees reads of freed memory that go unnoticed here.

    python tests/trials/freed_arrays.py [--seconds S]
"""

import argparse
import mmap
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from oracle import bits, rng_for

import lnorm

SHAPE = (300, 1024)  # more than the elements above which a call gives the GIL away


def values(name, dtype):
    return rng_for(name).standard_normal(SHAPE).astype(dtype)


def mapped(array):
    memory = mmap.mmap(-1, array.nbytes)
    view = np.frombuffer(memory, array.dtype).reshape(array.shape)
    view[...] = array
    return view, memory


def disturb(box, going, refused):
    """Everything that could pull the memory away from under a call."""
    while going.is_set():
        for name in list(box):
            value = box.get(name)
            if isinstance(value, np.ndarray) and value.base is None:
                try:
                    value.resize((1, 1), refcheck=True)
                    refused["resized"] = refused.get("resized", 0) + 1
                except ValueError:
                    refused["resize"] = refused.get("resize", 0) + 1
            elif isinstance(value, mmap.mmap):
                try:
                    value.close()
                    refused["closed"] = refused.get("closed", 0) + 1
                except BufferError:
                    refused["close"] = refused.get("close", 0) + 1
            del value
            box.pop(name, None)  # the last reference but the call's own
        for size in (SHAPE[0] * SHAPE[1] * 4, SHAPE[0] * SHAPE[1] * 8, 4096):
            np.full(size, 0x7F, np.uint8)  # takes what was freed, and spoils it
        time.sleep(0)


def kinds(dtype):
    """name -> (what the arguments are made of, the call on them). The call takes them out of what it is given:
    then nobody but the call and the disturber knows them."""
    x, dy, scale = values("x", dtype), values("dy", dtype), values("scale", dtype)[0]
    forward, backward = lnorm.layer_norm, lnorm.layer_norm_backward
    return {
        "forward": (
            lambda: {"x": x.copy(), "scale": scale.copy()},
            lambda a: forward(a.pop("x"), a.pop("scale")),
        ),
        "to out": (
            lambda: {"x": x.copy(), "out": np.empty_like(x)},
            lambda a: forward(a.pop("x"), out=a.pop("out")),
        ),
        "in place": (lambda: {"x": x.copy()}, lambda a: forward(a["x"], out=a.pop("x"))),
        "columns": (lambda: {"x": x.copy()}, lambda a: forward(a.pop("x"), axis=0)),
        "cast": (lambda: {"x": x.astype(">f8")}, lambda a: forward(a.pop("x"))),
        "backward": (
            lambda: {"x": x.copy(), "dy": dy.copy(), "scale": scale.copy()},
            lambda a: backward(a.pop("dy"), a.pop("x"), a.pop("scale"))[0],
        ),
        "memory map": (lambda: dict(zip(("x", "map"), mapped(x))), lambda a: forward(a.pop("x"))),
    }


def trial(seconds, dtype, threads):
    lnorm.set_num_threads(threads)
    refused, calls = {}, 0
    for name, (make, call) in kinds(dtype).items():
        expected = bits(call(make()))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            box, going = make(), threading.Event()
            arguments = dict(box)
            arguments.pop("map", None)
            going.set()
            thread = threading.Thread(target=disturb, args=(box, going, refused))
            thread.start()
            got = call(arguments)
            going.clear()
            thread.join()
            assert bits(got) == expected, f"{name}, {np.dtype(dtype)}: other bits"
            calls += 1
    return calls, refused


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=5, help="for each kind of call, dtype and number of threads"
    )
    seconds = parser.parse_args().seconds
    total = 0
    for dtype in (np.float32, np.float64):
        for threads in (1, 2):
            calls, refused = trial(seconds, dtype, threads)
            total += calls
            print(f"{np.dtype(dtype)}, {threads} threads: {calls} calls, refused {refused}")
    print(f"{total} calls disturbed")
