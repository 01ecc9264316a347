"""Promise: no byte is read before it was written, none outside of what was allocated.

valgrind's memcheck over a serial selection of the tests: every instruction set it can execute (it has no
AVX-512), forward and backward, all layouts, with Python's own allocator off and one thread. What CPython and
NumPy do at their start is not looked at; an error counts when a function of the extension is in its stack.

    python tests/trials/valgrind.py [--quick]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]

# Small enough for a processor that is 40 times slower. Marks uninitialized memory where results are compared.
CODE = """
import sys
import numpy as np
import lnorm
sys.path.insert(0, {tests!r})
from oracle import AWKWARD_ROWS, awkward, bits, rng_for
calls = 0
for dtype in (np.float32, np.float64):
    for name in AWKWARD_ROWS:
        for n in {widths}:
            x, epsilon = awkward(name, (5, n), dtype)
            scale, offset = rng_for("parameters", n).standard_normal((2, n)).astype(dtype)
            dy = rng_for("dy", n).standard_normal((5, n)).astype(dtype)
            stats = lnorm.layer_norm(x, scale, offset, epsilon=epsilon, return_stats=True)
            results = [*stats, *lnorm.layer_norm_backward(dy, x, scale, epsilon=epsilon)]
            results += lnorm.layer_norm_backward(dy, x, epsilon=epsilon, mean=stats[1], rstd=stats[2])
            results += [lnorm.layer_norm(x.T, axis=0, epsilon=epsilon, out=np.empty_like(x).T)]
            results += lnorm.layer_norm_backward(dy.T, x.T, axis=0, epsilon=epsilon)
            results += [lnorm.layer_norm(np.asfortranarray(x), epsilon=epsilon)]
            bits(*results)  # branches on every element
            calls += 6
    shapes = ((3, 5, 33, 4), (1, 3)), ((2, 9, 6, 7), 1), ((2, 70, 3, 50), 1), ((1, 70_000), 1), ((70, 40), 0)
    for shape, axes in shapes:
        x, dy = rng_for(shape).standard_normal((2, *shape)).astype(dtype)
        stats = lnorm.layer_norm(x, 2, 3, axis=axes, return_stats=True)
        bits(*stats, *lnorm.layer_norm_backward(dy, x, axis=axes), *lnorm.layer_norm_backward(dy, x, x, axis=axes))
        calls += 3
large = np.ones((2200, 1000), np.float32)
bits(lnorm.layer_norm(large))  # streamed
print(calls + 1, "calls")
"""
WIDTHS = (1, 2, 3, 16, 31, 33, 97, 128, 513)


def errors(log):
    """Reports of memcheck whose stack goes through the extension."""
    blocks = re.split(r"^==\\d+== ?$", re.sub(r"^==\d+== ?", "", log, flags=re.M), flags=re.M)
    blocks = "\n".join(blocks).split("\n\n")
    return [block for block in blocks if " at 0x" in block and "_core." in block]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="AVX2 only, fewer widths")
    quick = parser.parse_args().quick
    code = CODE.format(tests=str(TESTS), widths=(3, 33, 97) if quick else WIDTHS)
    found = 0
    for isa in ("x86-64-v3",) if quick else ("x86-64-v3", "x86-64", "generic"):
        env = {**os.environ, "PYTHONMALLOC": "malloc", "LNORM_ISA": isa, "LNORM_NUM_THREADS": "1"}
        env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log")
            memcheck = [
                "valgrind",
                f"--log-file={log}",
                "--error-limit=no",
                "--num-callers=30",
                "--read-var-info=no",
            ]
            done = subprocess.run(
                [*memcheck, sys.executable, "-c", code], env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            reports = errors(log.read_text())
        found += len(reports)
        print(f"{isa}: {done.stdout.strip()}, {len(reports)} reports", *reports[:5], sep="\n", flush=True)
    sys.exit(bool(found))
