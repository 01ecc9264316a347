"""The solvers: the formulas step by step, factors, thresholds, state."""

import copy
import io
import itertools
import math
import pickle

import numpy as np
import pytest

import lnorm
from lnorm import SGDM, Adam, Learnable, RMSProp

NOT_NUMBERS = [
    (None, TypeError),
    ("1", TypeError),
    (True, TypeError),
    (1j, TypeError),
    (math.nan, ValueError),
]
NOT_NEGATIVE = ([0, 1, np.float32(0.5)], [(-1e-9, ValueError), (math.inf, ValueError), *NOT_NUMBERS])
FRACTION = ([0, 0.5, 0.999], [(1, ValueError), (-0.1, ValueError), *NOT_NUMBERS])
POSITIVE = ([1e-300, 1], [(0, ValueError), (math.inf, ValueError), *NOT_NUMBERS])
METHODS = ["l2norm", "global-l2norm", "absolute-value"]

SHARED = {
    "l2_regularization": (1e-4, *NOT_NEGATIVE),
    "gradient_threshold": (math.inf, [1e-9, 5, math.inf], [(0, ValueError), (-1, ValueError), *NOT_NUMBERS]),
    "gradient_threshold_method": ("l2norm", METHODS, [("l2", ValueError), (None, TypeError)]),
}
PROPERTIES = {
    SGDM: {"learn_rate": (0.01, *NOT_NEGATIVE), "momentum": (0.9, *FRACTION)},
    RMSProp: {
        "learn_rate": (0.001, *NOT_NEGATIVE),
        "squared_gradient_decay_factor": (0.9, *FRACTION),
        "epsilon": (1e-8, *POSITIVE),
    },
    Adam: {
        "learn_rate": (0.001, *NOT_NEGATIVE),
        "gradient_decay_factor": (0.9, *FRACTION),
        "squared_gradient_decay_factor": (0.999, *FRACTION),
        "epsilon": (1e-8, *POSITIVE),
    },
}
TABLE = [(solver, name, *row) for solver, own in PROPERTIES.items() for name, row in (own | SHARED).items()]
solvers = pytest.mark.parametrize("solver", [SGDM, RMSProp, Adam])


@pytest.mark.parametrize("solver, name, default, valid, invalid", TABLE)
def test_properties(solver, name, default, valid, invalid):
    assert getattr(solver(), name) == default
    for value in valid:
        assigned = solver()
        setattr(assigned, name, value)
        assert getattr(assigned, name) == getattr(solver(**{name: value}), name) == value
    for value, error in invalid:
        with pytest.raises(error, match=f"^{name} must be .+, not .+"):
            setattr(assigned, name, value)
        with pytest.raises(error, match=f"^{name} must be .+, not .+"):
            solver(**{name: value})
        assert getattr(assigned, name) == valid[-1]


@solvers
def test_misspelt_names_are_errors(solver):
    with pytest.raises(TypeError, match=r"'learning_rate'.*learn_rate"):
        solver(learning_rate=1)
    with pytest.raises(AttributeError):
        solver().learning_rate = 1


@solvers
def test_repr_is_python_that_makes_the_solver_again(solver):
    assert repr(solver()) == f"{solver.__name__}()"
    assert repr(eval(repr(solver(learn_rate=1 / 3)))) == f"{solver.__name__}(learn_rate={1 / 3})"


def sgdm(w, g, rate, kept, t):
    kept["v"] = 0.8 * kept.get("v", 0) - rate * g
    return w + kept["v"]


def rmsprop(w, g, rate, kept, t):
    kept["s"] = 0.95 * kept.get("s", 0) + (1 - 0.95) * g * g
    return w - rate * g / (math.sqrt(kept["s"]) + 1e-3)


def adam(w, g, rate, kept, t):
    kept["m"] = 0.8 * kept.get("m", 0) + (1 - 0.8) * g
    kept["v"] = 0.95 * kept.get("v", 0) + (1 - 0.95) * g * g
    return w - rate * math.sqrt(1 - 0.95**t) / (1 - 0.8**t) * kept["m"] / (math.sqrt(kept["v"]) + 1e-3)


FORMULAS = {
    sgdm: SGDM(learn_rate=0.1, momentum=0.8, l2_regularization=0.03),
    rmsprop: RMSProp(
        learn_rate=0.1, squared_gradient_decay_factor=0.95, epsilon=1e-3, l2_regularization=0.03
    ),
    adam: Adam(
        learn_rate=0.1,
        gradient_decay_factor=0.8,
        squared_gradient_decay_factor=0.95,
        epsilon=1e-3,
        l2_regularization=0.03,
    ),
}


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.__name__)
def test_every_step_is_the_formula(formula):
    """On numbers one at a time, with every learn-rate factor and L2 factor, of weights and of a layer
    together."""
    solver, rng = copy.deepcopy(FORMULAS[formula]), np.random.default_rng(0)
    factors = list(itertools.product((0, 0.5, 2), (0, 3)))
    weights = [Learnable(rng.standard_normal((2, 3)), "w", *pair) for pair in factors]
    layer = lnorm.LayerNormalizationLayer(dtype="float64", scale=rng.standard_normal(4), offset=np.zeros(4))
    layer.scale_learn_rate_factor, layer.scale_l2_factor = 2, 3
    factors += [(1, 1), (2, 3)]
    learnables = [*weights, *layer.learnables]
    numbers = [p.value.ravel().tolist() for p in learnables]
    kept = [[{} for _ in values] for values in numbers]
    first = [p.value.copy() for p in learnables]
    for t in range(1, 21):
        for p in learnables:
            p.gradient = rng.standard_normal(p.value.shape)
        for p, values, moments, (learn_rate_factor, l2_factor) in zip(
            learnables, numbers, kept, factors, strict=True
        ):
            for i, gradient in enumerate(p.gradient.ravel().tolist()):
                if learn_rate_factor:
                    g = gradient + 0.03 * l2_factor * values[i]
                    values[i] = formula(values[i], g, 0.1 * learn_rate_factor, moments[i], t)
        solver.step(*weights, layer)
        for p, values in zip(learnables, numbers, strict=True):
            np.testing.assert_allclose(p.value.ravel(), values, rtol=1e-12, atol=1e-14)
    for p, w in zip(learnables, first, strict=True):
        assert (p.value.tobytes() == w.tobytes()) == (p.learn_rate_factor == 0)


@solvers
def test_a_factor_of_0_leaves_the_moments_untouched(solver):
    w, s = Learnable(np.ones(3), "w"), solver()
    for factor in (1, 0):
        before = {name: moment.tobytes() for name, moment in s.state_dict().items() if name != "steps"}
        w.learn_rate_factor, w.gradient = factor, np.ones(3)
        s.step(w)
    assert before == {name: moment.tobytes() for name, moment in s.state_dict().items() if name != "steps"}
    w.gradient = None
    s.step(w)


@solvers
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_resumes_with_the_same_bits(solver, dtype):
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((10, 2, 3))

    def train(s, w, layer, steps):
        for gradient in gradients[steps]:
            w.gradient = gradient
            layer.forward(w.value)
            layer.backward(gradient)
            s.step(w, layer)
        return w.value.tobytes(), layer.scale.tobytes(), layer.offset.tobytes()

    def fresh():
        layer = lnorm.LayerNormalizationLayer(dtype=dtype).initialize(3)
        return solver(learn_rate=0.1), Learnable(np.ones((2, 3), dtype) * [1, 2, 4], "w.1"), layer

    def through_a_file(state):
        file = io.BytesIO()
        np.savez(file, **state)
        file.seek(0)
        return np.load(file, allow_pickle=False)

    expected = train(*fresh(), slice(10))
    s, w, layer = fresh()
    train(s, w, layer, slice(4))
    again, other_w, other_layer = fresh()
    other_w.value = w.value.copy()
    other_layer.load_state_dict(through_a_file(layer.state_dict()))
    again.load_state_dict(through_a_file(s.state_dict()))
    assert train(again, other_w, other_layer, slice(4, 10)) == expected
    s, w, layer = pickle.loads(pickle.dumps((s, w, layer)))
    assert train(s, w, layer, slice(4, 10)) == expected


def test_computes_in_the_dtype_of_the_value():
    for dtype in (np.float32, np.float64):
        w = Learnable(np.ones(2, dtype))
        for solver in (SGDM, RMSProp, Adam):
            w.gradient = np.array([1, -2])
            s = solver()
            s.step(w)
            moments = [moment.dtype for name, moment in s.state_dict().items() if name != "steps"]
            assert {w.value.dtype, *moments} == {np.dtype(dtype)}


@solvers
def test_gradients_of_another_dtype_are_cast_first(solver):
    first, second = (Learnable(np.float32([1, 2, 3]) / 3) for _ in range(2))
    steps = solver(learn_rate=0.1), solver(learn_rate=0.1)
    for step in range(1, 6):
        first.gradient = np.float32([1, 2, 3]) / step
        second.gradient = first.gradient.astype(np.float64)
        steps[0].step(first)
        steps[1].step(second)
    assert first.value.tobytes() == second.value.tobytes()


@solvers
def test_states_are_copies(solver):
    w, s = Learnable(np.ones(3)), solver()
    w.gradient = np.ones(3)
    s.step(w)
    state = s.state_dict()
    kept = {name: array.tobytes() for name, array in state.items()}
    s.step(w)
    again = solver()
    again.load_state_dict(state)
    again.step(w)
    assert {name: array.tobytes() for name, array in state.items()} == kept


def test_updates_the_callers_array():
    mine = np.ones((2, 2))
    w = Learnable(mine, "w")
    assert w.value is mine
    w.gradient = np.full((2, 2), 100)
    SGDM(l2_regularization=0).step(w)
    assert mine.tolist() == [[0, 0], [0, 0]]


class TestThreshold:
    """Of two learnables with gradients (3, 4) and (0, 12): norms 5 and 12, together 13."""

    @staticmethod
    def steps(threshold, method, decay=0.0, frozen=False):
        a, b = Learnable(np.zeros(2), "a"), Learnable(np.zeros(2), "b", learn_rate_factor=0 if frozen else 1)
        a.gradient, b.gradient = np.array([3.0, 4.0]), np.array([0.0, 12.0])
        a.value += 1
        b.value += 1
        SGDM(
            learn_rate=1,
            gradient_threshold=threshold,
            gradient_threshold_method=method,
            l2_regularization=decay,
        ).step(a, b)
        return (1 - a.value).round(12).tolist(), (1 - b.value).round(12).tolist()

    def test_of_each_norm(self):
        assert self.steps(6, "l2norm") == ([3, 4], [0, 6])
        assert self.steps(2.5, "l2norm") == ([1.5, 2], [0, 2.5])

    def test_of_the_norm_of_all(self):
        assert self.steps(13, "global-l2norm") == ([3, 4], [0, 12])
        assert self.steps(6.5, "global-l2norm") == ([1.5, 2], [0, 6])
        assert self.steps(6.5, "global-l2norm", frozen=True) == ([1.5, 2], [0, 0])

    def test_of_each_element(self):
        assert self.steps(3.5, "absolute-value") == ([3, 3.5], [0, 3.5])

    def test_limits_the_gradient_of_the_whole_loss(self):
        assert self.steps(3.5, "absolute-value", decay=1) == ([3.5, 3.5], [1, 3.5])

    def test_holds_for_negative_gradients_and_keeps_zeros(self):
        w = Learnable(np.zeros(2))
        for method in METHODS:
            for gradient, expected in (([-10, 0], [1, 0]), ([0, 0], [0, 0])):
                w.value, w.gradient = np.zeros(2), np.array(gradient)
                SGDM(learn_rate=1, gradient_threshold=1, gradient_threshold_method=method).step(w)
                assert w.value.tolist() == expected


def test_loss_is_half_the_weighted_sum_of_squares():
    layer = lnorm.LayerNormalizationLayer(scale=[1, 2], offset=[3, 0], offset_l2_factor=0)
    w = Learnable(np.full((2, 2), 2.0), l2_factor=3)
    assert Adam(l2_regularization=0.5).loss(layer, w) == 0.5 * 0.5 * (1 * 5 + 3 * 16)
    assert Adam().loss() == 0


class TestMisuse:
    @staticmethod
    def members():
        w, layer = Learnable(np.ones((2, 2)), "w"), lnorm.LayerNormalizationLayer().initialize(3)
        w.gradient = np.ones((2, 2))
        layer.forward(np.eye(3))
        layer.backward(np.eye(3))
        return w, layer

    @pytest.mark.parametrize("wrong", [np.ones(3), None, "w", [Learnable(np.ones(1))]])
    def test_other_things_than_learnables(self, wrong):
        with pytest.raises(TypeError, match="Learnables and layers"):
            SGDM().step(wrong)

    def test_changes_nothing(self):
        w, layer = self.members()
        missing, misfit = Learnable(np.ones(3), "missing"), Learnable(np.ones(3), "misfit")
        misfit.gradient = np.ones(1)
        empty = lnorm.LayerNormalizationLayer()
        s = Adam()
        for wrong, message in (
            (missing, "no gradient"),
            (misfit, r"'misfit' has shape \(1,\)"),
            (empty, "'offset' is empty"),
        ):
            with pytest.raises(ValueError, match=message):
                s.step(w, layer, wrong)
        assert w.value.tolist() == [[1, 1], [1, 1]] and s.state_dict() == {"steps": 0}

    def test_learnables_of_other_steps(self):
        w, layer = self.members()
        for solver in (SGDM(), RMSProp(), Adam()):
            solver.step(w, layer)
            other = Learnable(np.ones(5), "w")
            other.gradient = np.ones(5)
            for wrong in ([layer, w], [w], [w, layer, other], [other, layer]):
                with pytest.raises(ValueError, match="state is of other learnables"):
                    solver.step(*wrong)
            layer.dtype = "float64"
            with pytest.raises(ValueError, match=r"'1.offset', '2.scale'"):
                solver.step(w, layer)
            layer.dtype = "float32"
            w.gradient = np.ones((2, 2))
            solver.step(w, layer)

    def test_states_of_other_solvers(self):
        w, layer = self.members()
        states = []
        for solver in (SGDM(), RMSProp(), Adam()):
            solver.step(w, layer)
            states.append(solver.state_dict())
        good = states[2]
        broken = [{}, {"steps": -1}, {"steps": 1.5}, {"steps": [1, 2]}, {**good, "note": np.ones(2)}]
        broken += [
            {**good, "0.w.gradient_average": np.array(["a"])},
            {k: v for k, v in good.items() if "0.w.s" not in k},
        ]
        for wrong in (*states[:2], *broken):
            with pytest.raises(ValueError, match=r"solver|Adam"):
                solver.load_state_dict(wrong)
        assert {k: v.tobytes() for k, v in solver.state_dict().items()} == {
            k: v.tobytes() for k, v in good.items()
        }


class TestLearnable:
    def test_defaults(self):
        w = Learnable(np.ones(3))
        assert (w.name, w.learn_rate_factor, w.l2_factor, w.gradient) == ("", 1, 1, None)
        assert repr(w) == "<Learnable '': (3,) float64, learn_rate_factor=1.0, l2_factor=1.0>"

    @pytest.mark.parametrize(
        "name, value, error",
        [
            ("value", np.arange(3), TypeError),
            ("value", None, TypeError),
            ("value", np.broadcast_to(1.0, 3), ValueError),
            ("name", 1, TypeError),
            ("learn_rate_factor", -1, ValueError),
            ("l2_factor", "1", TypeError),
            ("gradient", ["a"], TypeError),
            ("gradient", [1j], TypeError),
        ],
    )
    def test_is_checked(self, name, value, error):
        w = Learnable(np.ones(3), "w")
        with pytest.raises(error, match=f"{name} must be"):
            setattr(w, name, value)
        assert (w.value.tolist(), w.name, w.learn_rate_factor, w.l2_factor, w.gradient) == (
            [1, 1, 1],
            "w",
            1,
            1,
            None,
        )
        if name != "gradient":
            with pytest.raises(error, match=f"{name} must be"):
                Learnable(**{"value": np.ones(3), name: value})

    def test_copies_are_independent(self):
        for thing, name in ((Learnable(np.ones(3)), "l2_factor"), (SGDM(), "l2_regularization")):
            again = copy.copy(thing)
            setattr(again, name, 7)
            assert getattr(thing, name) != 7

    def test_survives_pickle_and_deepcopy(self):
        w = Learnable(np.ones(3), "w", 2, 3)
        for again in (pickle.loads(pickle.dumps(w)), copy.deepcopy(w)):
            assert repr(again) == repr(w) and again.value.tolist() == [1, 1, 1] and again.value is not w.value
