"""Ratios to a plain copy: the figures that lnorm promises, made again with one command.

    python benchmarks/ratios.py

Absolute times mean little on a shared machine, so every call is timed in turn with `np.copyto(out, x)` on
the same arrays, in slices of some 20 ms, and the median of the ratios over a dozen rounds is shown. One
thread, float32, whole Python calls with `out=` given; outputs are checked before anything is timed.
"""

import argparse
import time

import numpy as np

import lnorm

ROUNDS = 13
SLICE = 0.02  # seconds


def seconds_per_call(function, sets):
    """Mean over one slice, the calls taking the sets of arrays in turn."""
    calls, start = 0, time.perf_counter()
    while True:
        for arrays in sets:
            function(*arrays)
        calls += len(sets)
        elapsed = time.perf_counter() - start
        if elapsed >= SLICE:
            return elapsed / calls


def ratio(function, reference, sets):
    """Median over the rounds of the time of function / the time of reference."""
    ratios = []
    for _ in range(ROUNDS):
        ours, copy = seconds_per_call(function, sets), seconds_per_call(reference, sets)
        ratios.append(ours / copy)
    return float(np.median(ratios))


def arrays(shape, count, rng):
    """Sets of (x, scale, offset, dy, out), so that no call sees the same input twice in a row."""
    for _ in range(count):
        x, dy = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        scale, offset = (rng.standard_normal(shape[-1], dtype=np.float32) for _ in range(2))
        yield x, scale, offset, dy, np.empty_like(x)


def forward(x, scale, offset, dy, out):
    lnorm.layer_norm(x, scale, offset, out=out)


def copy(x, scale, offset, dy, out):
    np.copyto(out, x)


def check(x, scale, offset, dy, out):
    forward(x, scale, offset, dy, out)
    rows = x[:64].astype(np.float64)
    mean = rows.mean(-1, keepdims=True)
    expected = (rows - mean) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5) * scale + offset
    np.testing.assert_allclose(out[:64], expected, rtol=1e-5, atol=1e-5)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    lnorm.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    config = lnorm.show_config(mode="dicts")
    isa = config["instruction sets"]["in use"]
    print(f"lnorm {config['version']}, {isa}, {options.threads} thread(s), {config['compiler']}")
    print(f"{'':10} {'shape':>14}  ratio to np.copyto  bar")
    for shape, bar in (((1, 768), 1.2), ((128, 768), 2.5), ((2048, 768), 1.8), ((32768, 768), 1.05)):
        sets = list(arrays(shape, 2 if shape[0] == 1 else 1, rng))
        check(*sets[0])
        print(f"{'forward':10} {shape!s:>14}  {ratio(forward, copy, sets):18.2f}  {bar}", flush=True)
    shape, bar = (32768, 768), 1.6
    sets = list(arrays(shape, 1, rng))
    x = sets[0][0]
    _, mean, rstd = lnorm.layer_norm(x, return_stats=True)

    def backward(x, scale, offset, dy, out):
        lnorm.layer_norm_backward(dy, x, scale, mean=mean, rstd=rstd, out=out)

    print(f"{'backward':10} {shape!s:>14}  {ratio(backward, copy, sets):18.2f}  {bar}")


if __name__ == "__main__":
    main()
