"""What hostile objects, numbers and states found (tests/trials/bad_input.py and no_memory.py): each kept as a test."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lnorm

Layer = lnorm.LayerNormalizationLayer
X = np.arange(12, dtype=np.float32).reshape(2, 6)
# More digits than Python writes: repr is a ValueError.
ENDLESS = 10**5000


@pytest.mark.parametrize("axis", [2**31, -(2**40), 2**63, ENDLESS, -ENDLESS], ids=range(5))
@pytest.mark.parametrize("x", [X, X.T], ids=["plain", "planned"])
def test_an_axis_beyond_every_int_is_an_axis_error(axis, x, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda what: pytest.fail(f"unraisable: {what.exc_value}"))
    for call in (lambda: lnorm.layer_norm(x, axis=axis), lambda: lnorm.layer_norm_backward(x, x, axis=axis)):
        with pytest.raises(np.exceptions.AxisError, match=r"^axis: .* is out of bounds"):
            call()


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: lnorm.layer_norm(X, epsilon=ENDLESS), "epsilon"),
        (lambda: lnorm.layer_norm(X, epsilon=-ENDLESS), "epsilon"),
        (lambda: lnorm.set_num_threads(ENDLESS), "n"),
        (lambda: lnorm.show_config(ENDLESS), "mode"),
        (lambda: lnorm.show_config(np.array(["dicts", "stdout"])), "mode"),
        (lambda: Layer(num_channels=-ENDLESS), "num_channels"),
        (lambda: Layer(epsilon=ENDLESS), "epsilon"),
        (lambda: lnorm.Adam(learn_rate=ENDLESS), "learn_rate"),
        (lambda: setattr(Layer(), "num_inputs", ENDLESS), "num_inputs"),
        (lambda: Layer().learn_rate_factor(np.array(["scale"])), "parameter"),
        (lambda: Layer().load_state_dict(None), "state"),
        (lambda: lnorm.SGDM().load_state_dict({1: np.ones(2)}), "state"),
        (lambda: lnorm.SGDM().load_state_dict({"steps": [[1], [2, 3]]}), "state"),
        (lambda: Layer().predict([[1, 2], [3]]), "x"),
        (lambda: Layer().initialize([[1, 2], [3]]), "data"),
        (lambda: Layer(num_channels=2**63), "num_channels"),
        (lambda: Layer(rng=[[1], [2]]), "rng"),
        (lambda: lnorm.layer_norm(np.full((2, 2), "1", np.dtypes.StringDType())), "x"),
        (lambda: lnorm.layer_norm(X, epsilon=np.timedelta64(1)), "epsilon"),
        (lambda: lnorm.Learnable(np.ma.ones(3)), "value"),
    ],
)
def test_the_error_names_the_argument(call, name):
    with pytest.raises((TypeError, ValueError, AttributeError), match=rf"\b{name}\b") as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


class Stops:
    def __index__(self):
        raise StopIteration


def test_an_axis_that_stops_an_iteration_is_not_left_out():
    for call in (lambda: lnorm.layer_norm(X, axis=(0, Stops())), lambda: lnorm.layer_norm(X, axis=Stops())):
        with pytest.raises(StopIteration):
            call()


# A flag whose truth spoils the arrays that were checked before, and an `out` that lies. Kernels that believed them
# wrote and read outside the arrays, so they run in a child.
SPOILERS = """
import numpy as np, lnorm
def fresh():
    return [np.ones((64, 600), np.float32) for _ in range(3)] + [np.ones((64, 1)) for _ in range(2)]
class Flag:
    def __init__(self, *arrays): self.arrays = arrays
    def __bool__(self):
        for a in self.arrays: a.resize((0, 0), refcheck=False)
        return False
class Retype(Flag):
    def __bool__(self):
        for a in self.arrays: a.dtype = np.int8
        return False
class Liar(np.ndarray):
    shape = property(lambda self: (64, 600))
    dtype = property(lambda self: np.dtype(np.float32))
for flag in (Flag, Retype):
    for order in "CF":
        dy, x, out, mean, rstd = fresh()
        x = np.array(x, order=order)
        for call in (
            lambda: lnorm.layer_norm(x, out=out, return_stats=flag(x)),
            lambda: lnorm.layer_norm(x, out=out, return_stats=flag(out)),
            lambda: lnorm.layer_norm_backward(dy, x, mean=mean, rstd=rstd, out=out, param_grads=flag(x)),
            lambda: lnorm.layer_norm_backward(dy, x, mean=mean, rstd=rstd, out=out, param_grads=flag(dy, out)),
            lambda: lnorm.layer_norm_backward(dy, x, mean=mean, rstd=rstd, out=out, param_grads=flag(mean)),
        ):
            dy, x, out, mean, rstd = fresh()
            x = np.array(x, order=order)
            try: call()
            except (TypeError, ValueError) as error: pass
for kind in ("f4", "i1"):
    liar = np.ndarray.__new__(Liar, (2, 3), kind)
    for call in (
        lambda: lnorm.layer_norm(fresh()[0], out=liar),
        lambda: lnorm.layer_norm_backward(fresh()[0], fresh()[0], out=liar),
    ):
        try: call()
        except (TypeError, ValueError): pass
        else: raise SystemExit("a liar was believed")
[bytearray(4000) for _ in range(1000)]
print("alive")
"""


def test_nothing_runs_between_a_check_and_the_kernel():
    path = os.pathsep.join(
        filter(None, [str(Path(lnorm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", SPOILERS],
        env=os.environ | {"PYTHONPATH": path, "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "85"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_64_dimensions_with_a_scale():
    x = np.arange(6, dtype=np.float64).reshape((1,) * 62 + (2, 3))
    y = lnorm.layer_norm(x, np.arange(3.0), np.ones((2, 1)))
    np.testing.assert_array_equal(
        y.reshape(2, 3), lnorm.layer_norm(x.reshape(2, 3), np.arange(3.0), np.ones((2, 1)))
    )
    dx, dscale, _ = lnorm.layer_norm_backward(x, x, np.arange(3.0))
    assert dx.shape == x.shape and dscale.shape == (3,)


@pytest.mark.parametrize("refused", [X.astype(complex), np.ma.masked_array(X), [[1, 2], [3]], "text"])
def test_refused_data_initializes_no_layer(refused):
    for call in (Layer.predict, Layer.forward):
        layer = Layer()
        with pytest.raises((TypeError, ValueError)):
            call(layer, refused)
        assert layer.num_channels == "auto" and layer.scale is None
    layer = Layer()
    with pytest.raises(TypeError, match="out"):
        layer.predict(X, out="nothing")
    assert layer.num_channels == "auto" and layer.predict(np.ones((2, 4))).shape == (2, 4)


@pytest.mark.parametrize("kind", [lnorm.SGDM, lnorm.RMSProp, lnorm.Adam])
def test_a_step_that_breaks_off_is_undone(kind):
    a, b = lnorm.Learnable(np.ones(3), "a"), lnorm.Learnable(np.ones(3), "b")
    solver = kind(learn_rate=1e300)
    a.gradient = b.gradient = np.full(3, 1e-3)
    solver.step(a, b)
    before = a.value.tobytes(), b.value.tobytes(), repr(solver.state_dict())
    b.gradient = np.full(3, 1e308)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        solver.step(a, b)
    assert (a.value.tobytes(), b.value.tobytes(), repr(solver.state_dict())) == before


def test_a_value_that_has_become_read_only_is_no_half_step():
    a, b = lnorm.Learnable(np.ones(3), "a"), lnorm.Learnable(np.ones(3), "b")
    a.gradient = b.gradient = np.ones(3)
    solver = lnorm.SGDM()
    b.value.flags.writeable = False
    with pytest.raises(ValueError, match=r"'b'.*read-only"):
        solver.step(a, b)
    assert a.value.tolist() == [1, 1, 1] and solver.state_dict() == {"steps": 0}
    b.learn_rate_factor = 0
    solver.step(a, b)
    assert a.value.max() < 1


def test_gradients_too_large_for_the_layer_raise_no_warning():
    layer = Layer()
    layer.forward(np.arange(6.0).reshape(2, 3))
    layer.backward(np.full((2, 3), 1e300))
    assert np.all(np.isinf(layer.learnables[0].gradient))
