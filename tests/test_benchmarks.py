"""The benchmark suite is right about what it says: results are checked, changes and losses shown, nobody left out."""

import copy
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lnorm

FOLDER = Path(__file__).parents[1] / "benchmarks"
if not FOLDER.exists():
    pytest.skip("the benchmarks are not here", allow_module_level=True)

# The package is not installed, and the root of the repository shall not be on sys.path: `lnorm` is the installed one.
spec = importlib.util.spec_from_file_location(
    "benchmarks", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
)
sys.modules.setdefault("benchmarks", importlib.util.module_from_spec(spec))

from benchmarks import implementations, instructions, measure, report, threads  # noqa: E402
from benchmarks.accuracy import errors  # noqa: E402
from benchmarks.cases import GROUPS  # noqa: E402

CASES = list(dict.fromkeys(replace(c.reduced(), group="") for cases in GROUPS.values() for c in cases))


@pytest.fixture(autouse=True)
def threads_as_before():
    yield
    lnorm.set_num_threads(None)


def result(**medians):
    """A run of one case, with rounds of 2 % noise about these multiples of the copy."""
    rng = np.random.default_rng(sorted(map(ord, repr(medians))))
    entry = {
        "isa": "generic", "threads": 1, "group": "forward", "case": "(2,3)",
        "CPUs busy with others": None, "disturbed": False,
        "seconds": {
            name: list(1e-6 * median * rng.normal(1, 0.02, 13)) for name, median in {"copy": 1, **medians}.items()
        },
        "not measured": {"ONNX Runtime": "has no backward"},
    }  # fmt: skip
    missing = {"JAX": "not installed"}
    return {"machine": {}, "versions": {}, "missing": missing, "quick": False, "entries": [entry]}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_is_done_right_by_lnorm_and_the_expression(case):
    calls, reasons = measure.contestants(case, implementations.OWN, 1)
    assert calls["lnorm"] and calls["copy"]
    assert reasons == ({"NumPy": "has no layer"} if case.layer else {})


def test_a_wrong_result_is_never_timed(monkeypatch):
    def wrong(case, data, threads):
        return lambda: np.copyto(data.out, data.x + 1), lambda _: (data.out,)

    monkeypatch.setitem(implementations.OWN, "lnorm", wrong)
    with pytest.raises(AssertionError, match=r"lnorm.*off by"):
        measure.measure(GROUPS["small calls"][0], ["copy", "lnorm"], quick=True)


def test_a_wrong_result_of_a_peer_is_listed(monkeypatch):
    monkeypatch.setattr(
        implementations,
        "peer",
        lambda name: lambda *_: (lambda: None, lambda _: (np.ones((1, 64), np.float32),)),
    )
    _, reasons = measure.contestants(GROUPS["small calls"][0], implementations.NAMES, 1)
    assert reasons.keys() == implementations.PEERS.keys() and "wrong" in reasons["numba"]


def test_a_result_that_another_left_is_never_taken_for_ones_own(monkeypatch):
    monkeypatch.setitem(
        implementations.OWN, "NumPy", lambda case, data, threads: (lambda: None, lambda _: (data.out,))
    )
    with pytest.raises(AssertionError, match="NumPy"):
        measure.contestants(GROUPS["small calls"][0], implementations.OWN, 1)


def test_a_missing_peer_is_listed(monkeypatch):
    monkeypatch.setattr(implementations, "find_spec", lambda name: None)
    absent = dict.fromkeys(implementations.PEERS, "not installed")
    assert implementations.missing(implementations.PEERS) == absent
    case = GROUPS["small calls"][0]
    calls, reasons = measure.contestants(case, implementations.NAMES, 1)
    assert list(calls) == list(implementations.OWN) and reasons == absent
    text = report.markdown(result(lnorm=1))
    assert "JAX: not measured (not installed)" in text and "ONNX Runtime has no backward" in text
    assert errors(["numba"], [(2, 8)], [0])["not measured"] == {"numba": "not installed"}


def test_the_report_shows_losses_and_wins():
    text = report.markdown(result(lnorm=2, NumPy=1.5, numba=4, PyTorch=2.001))
    wins, losses = text.split("## Where lnorm is slower")
    assert (
        "| NumPy | 0 | 0 | 1 |" in wins
        and "| numba | 1 | 0 | 0 |" in wins
        and "| PyTorch | 0 | 1 | 0 |" in wins
    )
    losses = losses.split("##")[0]
    assert "NumPy" in losses and "numba" not in losses and "PyTorch" not in losses
    assert "Nowhere in this run." in report.markdown(result(lnorm=1, NumPy=2))


def test_compare_finds_a_change_and_no_noise():
    old, noise = result(lnorm=2, NumPy=9), result(lnorm=2.0001, NumPy=9.0001)
    assert report.changes(old, noise) == []
    [(key, name, before, after)] = report.changes(old, result(lnorm=2.4, NumPy=9))
    assert key == ("generic", 1, "forward", "(2,3)") and name == "lnorm"
    assert before == pytest.approx(2, rel=0.03) and after == pytest.approx(2.4, rel=0.03)
    text, slower = report.compare(old, result(lnorm=2.4, NumPy=9))
    assert slower and "+" in text
    assert not report.compare(result(lnorm=2.4), result(lnorm=2))[1]


def test_compare_is_not_misled_by_disturbed_rounds_or_a_wide_spread():
    old = result(lnorm=2)
    disturbed = copy.deepcopy(old)
    disturbed["entries"][0]["seconds"]["lnorm"][:3] = [1, 1, 1]
    assert report.changes(old, disturbed) == []
    wide = copy.deepcopy(old)
    for i in range(0, 13, 2):
        wide["entries"][0]["seconds"]["lnorm"][i] *= 3
    assert report.changes(old, wide) == []


def test_what_others_disturbed_is_marked_and_counts_nowhere():
    old, new = result(lnorm=2, NumPy=1), result(lnorm=3, NumPy=1)
    new["entries"][0]["disturbed"] = True
    text = report.markdown(new)
    assert "(2,3) **disturbed**" in text and "Nowhere in this run." in text
    assert report.changes(old, new) == []


def test_rounds_of_several_processes_are_joined_unless_disturbed():
    [one], [other] = result(lnorm=2)["entries"], result(lnorm=3)["entries"]
    assert (
        measure.joined(one, other)["seconds"]["lnorm"] == one["seconds"]["lnorm"] + other["seconds"]["lnorm"]
    )
    disturbed = {**other, "disturbed": True}
    assert measure.joined(one, disturbed) == measure.joined(disturbed, one) == one


def test_the_budget_has_every_case():
    budget = json.loads(instructions.BUDGET.read_text())
    assert budget["instructions per element"].keys() == instructions.CASES.keys()
    assert budget["compiler"] and budget["instruction set"] == instructions.ISA


def test_contestants_take_turns():
    order = []
    calls = {name: [lambda name=name: order.append(name)] for name in ("copy", "lnorm")}
    seconds = measure.in_turn(calls, rounds=3, slice_seconds=1e-5)
    assert {name: len(values) for name, values in seconds.items()} == {"copy": 3, "lnorm": 3}
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns == ["copy", "lnorm"] * 4  # once to see how many calls fill a slice


@pytest.mark.parametrize("ratio, losses", [(0.6, 0), (1.2, 2)])
def test_two_threads_that_are_slower_are_a_loss(monkeypatch, ratio, losses):
    set_to = []

    def measured(calls, rounds, slice_seconds, threads):
        for number, own in calls.items():
            own[0]()
            set_to.append((number, lnorm.get_num_threads()))
        return {1: [1.0, 2.0, 3.0], 2: [ratio * 1.0, ratio * 2.0, ratio * 3.0]}

    before = lnorm.get_num_threads()
    lnorm.set_num_threads(2)
    two = lnorm.get_num_threads()  # one, in a build without OpenMP
    lnorm.set_num_threads(None)
    monkeypatch.setattr(threads, "CASES", threads.CASES[:2])
    monkeypatch.setattr(threads, "in_turn", measured)
    assert threads.main() == losses
    assert set_to == [(1, 1), (2, two)] * 2
    assert lnorm.get_num_threads() == before
