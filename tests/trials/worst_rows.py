"""Promise: the accuracy holds for every row, also for the worst one that a search can find.

Hill climbing over a row's values tries to make the error large. Random rows do not come near the bound, because
their roundings cancel; so here every lane of a sum sees the same few values again and again (element j of a row
goes to lane j mod 32), and a rounding that goes one way goes that way everywhere. What changes are those values,
the first 32 elements (which the sums are centred on), some large ones at the end, and the scale. The largest
error of y in eps of |scale|*max|xhat|, and that of dx in eps of the largest sum of |terms| in the row, against
the exact row.

    python tests/trials/worst_rows.py [--minutes M] [--seed S] [--save FILE]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from oracle import BOUND, worst_dx_error, worst_forward_error

import lnorm

LANES, PATTERN, TAIL = 32, 16, 8
CLIMBERS = 64
REPEATS = (1, 4, 16)  # rows of 512, 2048 and 8192

# Where the genes of a row stand: K, the pattern, the tail, the same of dy, and the scale.
HEAD, BODY, END = 0, slice(1, 1 + PATTERN), slice(1 + PATTERN, 1 + PATTERN + TAIL)
X_GENES = 1 + PATTERN + TAIL
SCALE = 2 * X_GENES
GENES = SCALE + 1


def spread(genes, repeats):
    """Rows made of the genes of x or of dy."""
    rows = np.tile(np.repeat(genes[:, BODY], LANES, axis=1), (1, repeats))
    rows[:, :LANES] = genes[:, :1]
    rows[:, -TAIL:] = genes[:, END]
    return rows


def counts(repeats):
    """How often a row holds each of x's genes."""
    count = np.full(X_GENES, LANES * repeats)
    count[[HEAD, 1, PATTERN]] += [0, -LANES, -TAIL]
    count[HEAD], count[END] = LANES, 1
    return count


def take(rows, repeats):
    """One element of each gene out of rows."""
    n = rows.shape[1]
    last = rows[:, n - 512 :: LANES] if repeats > 1 else rows[:, ::LANES]
    body = last.copy()
    if repeats == 1:
        body[:, 0] = rows[:, 0]  # the first of the pattern is nowhere
    return np.concatenate([rows[:, :1], body, rows[:, -TAIL:]], axis=1)


def errors_of_y(genes, repeats):
    wide = np.longdouble if genes.dtype == np.float64 else np.float64
    x, scale = spread(genes[:, :X_GENES], repeats), genes[:, SCALE:]
    y = take(lnorm.layer_norm(x, scale, epsilon=0), repeats)
    values, count = genes[:, :X_GENES].astype(wide), counts(repeats)
    if repeats == 1:
        values[:, 1] = values[:, HEAD]
    n = count.sum()
    d = values - values[:, :1]
    d -= (d * count).sum(axis=1, keepdims=True) / n
    xhat = d / np.sqrt((d * d * count).sum(axis=1, keepdims=True) / n)
    return np.max(abs(y / scale.astype(wide) - xhat), axis=1) / (
        np.finfo(genes.dtype).eps * abs(xhat).max(axis=1)
    )


def errors_of_dx(genes, repeats):
    wide = np.longdouble if genes.dtype == np.float64 else np.float64
    x, dy = spread(genes[:, :X_GENES], repeats), spread(genes[:, X_GENES:SCALE], repeats)
    dx = take(lnorm.layer_norm_backward(dy, x, epsilon=0.0, param_grads=False)[0], repeats)
    values, g, count = (
        genes[:, :X_GENES].astype(wide),
        genes[:, X_GENES:SCALE].astype(wide),
        counts(repeats),
    )
    if repeats == 1:
        values[:, 1], g[:, 1] = values[:, HEAD], g[:, HEAD]
    n = count.sum()
    mean = lambda a: (a * count).sum(axis=1, keepdims=True) / n  # noqa: E731
    d = values - values[:, :1]
    d -= mean(d)
    rstd = 1 / np.sqrt(mean(d * d))
    xhat = d * rstd
    terms = abs(g) + mean(abs(g)) + abs(xhat) * mean(abs(g * xhat))
    error = abs(dx / rstd - (g - mean(g) - xhat * mean(g * xhat)))
    return error.max(axis=1) / (np.finfo(genes.dtype).eps * terms.max(axis=1))


def start(rng):
    """Rows whose first elements lie about a standard deviation from the mean, where the sums cancel the most."""
    shape = (CLIMBERS, GENES)
    kind = rng.integers(3)
    genes = [rng.uniform(0.5, 2, shape), rng.standard_normal(shape), rng.lognormal(0, 1, shape)][kind]
    body = genes[:, BODY]
    genes[:, HEAD] = body.mean(axis=1) - body.std(axis=1) * rng.uniform(0, 1, CLIMBERS)
    outlier = rng.choice([1, 1, 5, 30])
    genes[:, END] = outlier * abs(body).max(axis=1)[:, None] * rng.uniform(-1, 1, (CLIMBERS, TAIL))
    genes[:, SCALE] = rng.uniform(1, 2, CLIMBERS)
    return genes


def changed(genes, rng):
    """Children of one row: some genes moved, by an ulp or by themselves, two exchanged, or all scaled."""
    children = np.repeat(genes[None].astype(np.float64), CLIMBERS, axis=0)
    size = 10 ** rng.uniform(-8 if genes.dtype == np.float32 else -17, 0.5, (CLIMBERS, 1))
    which = rng.random(children.shape) < rng.choice([1, 2, 5]) / GENES
    which[np.arange(CLIMBERS), rng.integers(0, GENES, CLIMBERS)] = True
    way = rng.integers(4)
    if way <= 1:
        children += np.where(which, size * rng.standard_normal(children.shape), 0) * abs(children).mean()
    elif way == 2:
        a, b = rng.integers(1, 1 + PATTERN, (2, CLIMBERS))
        rows = np.arange(CLIMBERS)
        for base in (0, X_GENES):
            children[rows, base + a], children[rows, base + b] = (
                children[rows, base + b],
                children[rows, base + a],
            )
    else:
        children[:, :X_GENES] *= 1 + size * rng.standard_normal((CLIMBERS, 1))
        children[:, X_GENES:SCALE] *= 1 + size * rng.standard_normal((CLIMBERS, 1))
    children = children.astype(genes.dtype)
    children[:, SCALE] = np.where(children[:, SCALE] == 0, 1, children[:, SCALE])
    return children


def climb(errors, dtype, repeats, rng, end, patience=300):
    """The best genes and their error from one start; and how many rows were tried."""
    genes = start(rng).astype(dtype)
    found = errors(genes, repeats)
    best, top, idle, tried = genes[found.argmax()], found.max(), 0, CLIMBERS
    while idle < patience and time.monotonic() < end:
        children = changed(best, rng)
        found = np.nan_to_num(errors(children, repeats), nan=0, posinf=0)
        idle = 0 if found.max() > top else idle + 1
        if found.max() >= top:
            best, top = children[found.argmax()], found.max()
        tried += CLIMBERS
    return best, top, tried


def measured(what, genes, repeats):
    """The row of the genes, held against the oracle."""
    genes = genes[None]
    x, dy = spread(genes[:, :X_GENES], repeats), spread(genes[:, X_GENES:SCALE], repeats)
    if what == "y":
        scale = genes[0, SCALE]
        return worst_forward_error(lnorm.layer_norm(x, scale, epsilon=0), x, scale, epsilon=0)
    return worst_dx_error(lnorm.layer_norm_backward(dy, x, epsilon=0.0)[0], dy, x, epsilon=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--save", help="an .npz for the worst rows' genes, which tests/test_worst_rows.py reads"
    )
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    lnorm.set_num_threads(1)
    kept, broken = {}, False
    for what, errors in (("y", errors_of_y), ("dx", errors_of_dx)):
        for dtype in (np.float32, np.float64):
            end = time.monotonic() + args.minutes * 60 / 4
            tried = climbs = 0
            top = (0, None, None)
            while time.monotonic() < end:
                repeats = int(rng.choice(REPEATS))
                genes, error, rows = climb(errors, dtype, repeats, rng, end)
                tried, climbs = tried + rows, climbs + 1
                if error > top[0]:
                    top = (error, genes, repeats)
            error = measured(what, *top[1:])
            name = f"{what} {np.dtype(dtype)}"
            kept[name] = np.append(top[1], dtype(top[2]))
            broken |= not error <= BOUND[what]
            print(
                f"{name}: {tried} rows in {climbs} climbs, at worst {error:.3f} eps (bound {BOUND[what]}), "
                f"n = {top[2] * LANES * PATTERN}",
                flush=True,
            )
    if args.save:
        np.savez(args.save, **kept)
    sys.exit(broken)
