"""Two threads are to be no slower than one, at any size: both in turn, from a size on that takes one thread."""

import numpy as np
from tqdm import tqdm

import lnorm

from .cases import Case, image
from .implementations import prepare
from .measure import SLICE, in_turn

ROUNDS = 9
NOISE = 1.05  # two threads that take longer than this are a loss

# From 2^14 elements on: a second thread starts at 2^16.
CASES = [
    *(Case((2**k // n, n)) for n in (16, 64, 768) for k in range(14, 23)),
    *(Case((1, 2**k)) for k in range(14, 23)),
    *(Case((2**k // 768, 768), backward=True) for k in range(14, 23)),
    *(image((size, 96, 14, 14), None) for size in (1, 2, 4, 8, 16, 64)),
]


def with_threads(case, data, threads):
    call, _ = prepare("lnorm", case, data, threads)

    def set_and_call():
        lnorm.set_num_threads(threads)
        call()

    return set_and_call


def main():
    """Prints the ratio of each case; the number of losses."""
    losses = 0
    try:
        for case in tqdm(CASES, disable=None, leave=False):
            data = case.data()
            calls = {threads: [with_threads(case, own, threads) for own in data] for threads in (1, 2)}
            seconds = in_turn(calls, ROUNDS, SLICE, threads=2)
            ratio = float(np.median(np.divide(seconds[2], seconds[1])))
            losses += ratio > NOISE
            tqdm.write(f"{case!s:36} {ratio:5.2f}{'  slower than one thread' if ratio > NOISE else ''}")
    finally:
        lnorm.set_num_threads(None)
    print(f"two threads take longer than one in {losses} of {len(CASES)} cases")
    return losses
