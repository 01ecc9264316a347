"""The cases of a quick run under pytest-benchmark: `pytest benchmarks` (extra `bench`), `-k backward`, `-k numba` …

All implementations of a case are one group, the plain copy among them, and are checked before the first is timed.
"""

from functools import lru_cache

import pytest

from .cases import GROUPS
from .implementations import NAMES
from .measure import contestants

pytest.importorskip("pytest_benchmark")

CASES = [
    (case, threads)
    for cases in GROUPS.values()
    for case in cases
    for threads in ((1, 2) if case.group == "threads" else (1,))
    if case.quick
]


checked = lru_cache(maxsize=1)(contestants)  # the tests of a case follow each other


def label(value):
    if isinstance(value, str):
        return value
    case, threads = value
    return f"{case.group}: {case}" + f", {threads} threads" * (threads > 1)


@pytest.mark.filterwarnings("default")  # the peers' own
@pytest.mark.benchmark(max_time=0.1, min_rounds=3)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES, ids=label)
def test_speed(benchmark, case, name):
    benchmark.group = label(case)
    calls, reasons = checked(case[0], tuple(NAMES), case[1])
    if name in reasons:
        pytest.skip(f"{name}: not measured ({reasons[name]})")

    def each_set(own=calls[name]):
        for call in own:
            call()

    benchmark.extra_info["calls"] = len(calls[name])
    benchmark(each_set)
