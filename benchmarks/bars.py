"""The bars: ratios to a plain copy that lnorm is to keep, and whether it does here and now."""

import numpy as np
from tqdm import tqdm

from .cases import GROUPS
from .measure import SLICE, contestants, in_turn

ROUNDS = 13

CASES = [case for cases in GROUPS.values() for case in cases if case.bar is not None]


def ratio(case, rounds=ROUNDS):
    calls, _ = contestants(case, ["lnorm", "copy"], case.bar_threads)
    seconds = in_turn(calls, rounds, SLICE)
    return float(np.median(np.divide(seconds["lnorm"], seconds["copy"])))


def main():
    met = 0
    tqdm.write(f"{'group':12} {'case':48} threads  ratio    bar")
    for case in tqdm(CASES, disable=None, leave=False):
        measured = round(ratio(case), 2)  # the bars have as many digits
        met += measured <= case.bar
        verdict = "met" if measured <= case.bar else f"not met: {measured / case.bar - 1:.0%} above"
        tqdm.write(
            f"{case.group:12} {case!s:48} {case.bar_threads:7} {measured:6.2f} {case.bar:6.2f}  {verdict}"
        )
    print(f"{met} of {len(CASES)} met")
