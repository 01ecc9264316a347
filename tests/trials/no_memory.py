"""No memory: every allocation of a call fails in turn.

Promise: MemoryError, or the right result without what was wanted; inputs, `out`, layer and solver are as they were,
and the next call gives the same bits.

Trial: a malloc, compiled here and preloaded, fails the k-th allocation, for every k that a call makes (Python's and
NumPy's own included, PYTHONMALLOC=malloc); and the k-th of 1 KiB or more with all such that follow. (Without a single
byte the interpreter itself hangs.) Where address space is short (RLIMIT_AS), the large allocations fail for real.

    python tests/trials/no_memory.py
"""

import ctypes
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

MALLOC = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
/* Armed, the allocations of `least` bytes or more are counted from 1 on, and those from first to last fail.
   Switched through memory, because a call from Python would allocate. */
struct { long armed, count, first, last, least; } control;
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
static int fails(size_t n) {
  if (!control.armed || n < (size_t)control.least) return 0;
  control.count++;
  if (control.count < control.first || control.count > control.last) return 0;
  errno = ENOMEM;
  return 1;
}
void *malloc(size_t n) { return fails(n) ? NULL : __libc_malloc(n); }
void *calloc(size_t a, size_t n) { return fails(a * n) ? NULL : __libc_calloc(a, n); }
void *realloc(void *p, size_t n) { return fails(n) ? NULL : __libc_realloc(p, n); }
void *aligned_alloc(size_t a, size_t n) { return fails(n) ? NULL : __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
  void *q = fails(n) ? NULL : __libc_memalign(a, n);
  if (q) *p = q;
  return q ? 0 : ENOMEM;
}
"""
EVER = 2**60


def objects() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """By name: what makes the arguments of a call, and the call."""
    import lnorm

    Layer = lnorm.LayerNormalizationLayer

    def arrays(shape: Any = (70, 24), kind: Any = np.float32, order: Any = "C") -> dict[str, Any]:
        values = np.arange(np.prod(shape)).reshape(shape) % 13
        return dict(
            x=np.array(values, kind, order=order),
            dy=np.array(values[::-1], kind, order=order),
            out=np.full(shape, 7, kind, order=order),
            scale=np.arange(shape[-1]).astype(kind),
            offset=np.ones(shape[-1], kind),
        )

    def mixed() -> dict[str, Any]:
        swapped = arrays()
        return swapped | {"x": swapped["x"].astype(">f4"), "scale": swapped["scale"].astype(int)}

    def forward(a: Any, **more: Any) -> Any:
        return lnorm.layer_norm(a["x"], a["scale"], a["offset"], **more)

    def backward(a: Any, **more: Any) -> Any:
        return lnorm.layer_norm_backward(a["dy"], a["x"], a["scale"], **more)

    def layer(**more: Any) -> dict[str, Any]:
        made = arrays() | {"layer": Layer(scale_initializer="narrow-normal", rng=1, **more)}
        return made

    def trained(kind: Any = None) -> dict[str, Any]:
        made = layer()
        made["layer"].forward(made["x"])
        made["layer"].backward(made["dy"])
        if kind is not None:
            made["w"] = lnorm.Learnable(np.ones((30, 7)), "w")
            made["v"] = lnorm.Learnable(np.ones((3, 4), ">f4")[:, ::-1], "v")
            made["w"].gradient, made["v"].gradient = np.full((30, 7), 2.0), np.full((3, 4), 3.0)
            made["solver"] = kind(gradient_threshold=2, gradient_threshold_method="global-l2norm")
            made["solver"].step(made["w"], made["v"], made["layer"])
        return made

    step = lambda a: a["solver"].step(a["w"], a["v"], a["layer"])  # noqa: E731
    wide = lambda: arrays((3, 20_000))  # noqa: E731
    return {
        "forward": (arrays, forward),
        "forward, out": (arrays, lambda a: forward(a, out=a["out"])),
        "forward, statistics": (arrays, lambda a: forward(a, out=a["out"], return_stats=True)),
        "forward, planned": (lambda: arrays((7, 5, 6), np.float64, "F"), lambda a: forward(a, axis=(0, 2))),
        "forward, in place with overlap": (arrays, lambda a: lnorm.layer_norm(a["x"][1:], out=a["x"][:-1])),
        "forward, byte-swapped": (mixed, lambda a: forward(a, out=a["out"])),
        "forward, from a list": (lambda: {"x": [[1, 2, 3]] * 9}, lambda a: lnorm.layer_norm(a["x"])),
        "forward, one row shared by threads": (
            lambda: arrays((1, 300_000)),
            lambda a: forward(a, out=a["out"]),
        ),
        "backward": (arrays, backward),
        "backward, out": (arrays, lambda a: backward(a, out=a["out"])),
        "backward, wide": (wide, lambda a: backward(a, out=a["out"])),
        "backward, without gradients": (wide, lambda a: backward(a, out=a["out"], param_grads=False)),
        "backward, planned": (lambda: arrays((7, 5, 6), np.float64, "F"), lambda a: backward(a, axis=(0, 2))),
        "backward, overlap": (
            arrays,
            lambda a: lnorm.layer_norm_backward(a["x"][1:], a["x"][:-1], out=a["x"][:-1]),
        ),
        "layer, made": (arrays, lambda a: Layer(scale=a["scale"], name="made")),
        "layer, initialize": (layer, lambda a: a["layer"].initialize(24) and None),
        "layer, first predict": (layer, lambda a: a["layer"].predict(a["x"])),
        "layer, predict": (trained, lambda a: a["layer"].predict(a["x"], a["out"])),
        "layer, first forward": (layer, lambda a: a["layer"].forward(a["x"])),
        "layer, backward": (trained, lambda a: a["layer"].backward(a["dy"])),
        "layer, backward that accumulates": (
            trained,
            lambda a: a["layer"].backward(a["dy"], accumulate=True),
        ),
        "layer, scale": (trained, lambda a: setattr(a["layer"], "scale", a["offset"])),
        "layer, dtype": (trained, lambda a: setattr(a["layer"], "dtype", "float64")),
        "layer, state": (
            trained,
            lambda a: a["layer"].load_state_dict(dict(scale=a["offset"], offset=a["scale"])),
        ),
        **{
            f"{kind.__name__}, {name}": (lambda kind=kind: trained(kind), call)
            for kind in (lnorm.SGDM, lnorm.RMSProp, lnorm.Adam)
            for name, call in {
                "step": step,
                "loss": lambda a: a["solver"].loss(a["w"], a["layer"]),
                "state": lambda a: a["solver"].load_state_dict(a["solver"].state_dict()),
            }.items()
        },
    }


def show(value: Any) -> Any:
    """A value, with all that is in it and with arrays as their bytes."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {k: show(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [show(v) for v in value]
    if hasattr(value, "_state"):
        return {n: show(getattr(value, n)) for n in ("_state", "_moments", "_steps") if hasattr(value, n)} | {
            "forwarded": getattr(value, "_forwarded", None) is None
        }
    return repr(value)


def fail_each(library: str, name: str) -> int:
    """In a process whose malloc is ours. Returns the number of faults."""
    control = (ctypes.c_long * 5).in_dll(ctypes.CDLL(library), "control")
    faults = 0
    for make, call in [objects()[name]]:
        arguments = make()
        whole = show(call(arguments)), show(arguments)  # warm, and what is right
        for last in (0, EVER):
            k, refused, served = 0, 0, 0
            while True:
                k += 1
                arguments = make()
                before = show(arguments)
                result = error = None
                control[1], control[2], control[3], control[4] = 0, k, last or k, 1024 if last else 0
                control[0] = 1
                try:
                    result = call(arguments)
                except BaseException as caught:
                    control[0] = 0
                    error = caught
                control[0] = 0
                count = control[1]
                problem = ""
                if error is None:
                    served += 1
                    if (show(result), show(arguments)) != whole:
                        problem = "another result"
                else:
                    refused += 1
                    # Python's and NumPy's own: a random generator's lock; an iterator that does not say what was wrong.
                    numpys = re.search("without (setting an )?exception|allocate lock", str(error))
                    if not (isinstance(error, MemoryError) or numpys):
                        problem = f"{type(error).__name__}: {error}"
                    if show(arguments) != before:
                        problem += " something has changed"
                    if (show(call(arguments)), show(arguments)) != whole:
                        problem += " the next call is wrong"
                if problem:
                    faults += 1
                    print(
                        f"  {name}, allocation {k}{' and all after it' if last else ''}: {problem}",
                        flush=True,
                    )
                if count < k:
                    break
            print(
                f"{name}: {k - 1} allocations{' of 1 KiB or more, to the end' if last else ''}: {refused} MemoryErrors",
                flush=True,
            )
    return faults


def short_of_address_space() -> int:
    """Large arrays, until the limit of the address space refuses one."""
    import lnorm

    x = np.ones((1 << 14, 1 << 10), np.float32)  # 64 MiB
    layer, w = lnorm.LayerNormalizationLayer(), lnorm.Learnable(np.ones((1 << 14, 1 << 10), np.float32))
    w.gradient = x
    layer.forward(x)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: lnorm.layer_norm(x),
        "forward, strided": lambda: lnorm.layer_norm(x.T, axis=0),
        "backward": lambda: lnorm.layer_norm_backward(x, x),
        "layer": lambda: layer.predict(x),
        "layer backward": lambda: layer.backward(x),
        "solver": lambda: lnorm.Adam().step(w),
        "initialize": lambda: lnorm.LayerNormalizationLayer().initialize(1 << 40),
    }
    for call in list(calls.values())[:2]:
        call()
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    before, faults = show([x, layer, w]), 0
    resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), resource.RLIM_INFINITY))
    for name, call in calls.items():
        try:
            call()
            told = "no error"
        except MemoryError:
            told = ""
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        if told:
            faults += 1
            print(f"  {name} without address space: {told}")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    faults += show([x, layer, w]) != before
    print(f"address space: tried {len(calls)}, found {faults}")
    return faults


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return min(1, fail_each(*sys.argv[2:]))
    if sys.argv[1:2] == ["--address-space"]:
        return min(1, short_of_address_space())
    with tempfile.TemporaryDirectory() as folder:
        source, library = f"{folder}/failing.c", f"{folder}/failing.so"
        Path(source).write_text(MALLOC)
        subprocess.run(["cc", "-O1", "-fPIC", "-shared", "-fno-builtin", source, "-o", library], check=True)
        preload = {"LD_PRELOAD": library, "PYTHONMALLOC": "malloc", "PYTHONFAULTHANDLER": "1"}
        runs = [*((["--child", library, name], preload) for name in objects()), (["--address-space"], {})]
        statuses = [
            subprocess.run([sys.executable, __file__, *words], env=os.environ | env).returncode
            for words, env in runs
        ]
    for (words, _), status in zip(runs, statuses, strict=True):
        if status < 0:
            print(f"CRASH: {words[-1]}: signal {-status}")
    print(f"found: {sum(map(bool, statuses))} of {len(runs)} calls at fault")
    return 1 if any(statuses) else 0


if __name__ == "__main__":
    sys.exit(main())
