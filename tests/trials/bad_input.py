"""Bad input: every argument of every public name × hostile values.

Promise: a clear error that names the argument, no crash, and nothing has changed after an error: inputs, `out`, layer,
solver. What an object raises by itself passes through.

Trial: the product of the tables CALLS and HOSTILE, each pair in turn in a child with faulthandler, so that a crash is
seen and the next pair goes on. Warnings are errors. A pair that succeeds must stand in ACCEPTED: nothing is let through
silently.

    python tests/trials/bad_input.py [--every K]
"""

import argparse
import collections
import contextlib
import decimal
import faulthandler
import fractions
import io
import mmap
import re
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
import lnorm

Layer = lnorm.LayerNormalizationLayer


class Own(Exception):
    """What hostile objects raise: not an error of lnorm's."""


# --- hostile values ------------------------------------------------------------------------------------------------
# By name, how to make it. A mutator spoils, in the middle of a call, the arrays that the call was given before.

ARRAY_METHODS = (
    "transpose",
    "reshape",
    "astype",
    "copy",
    "view",
    "__getitem__",
    "__setitem__",
    "fill",
    "strides",
)
ARRAY_METHODS += (
    "shape",
    "dtype",
    "flags",
    "ndim",
    "size",
    "__array__",
    "__array_interface__",
    "__array_wrap__",
)
TARGETS: list[np.ndarray] = []  # What mutators spoil: the arrays of the call under trial.


def raiser(*_: Any, **__: Any) -> Any:
    raise Own


def made(bases: tuple[type, ...] = (), **members: Any) -> type:
    return type("Hostile", bases, members)


def raises_everywhere(error: type[BaseException] = Own) -> Any:
    def raises(*_: Any, **__: Any) -> Any:
        raise error("by the object itself") if error is not Own else Own

    names = "array array_interface array_struct len getitem iter index float int complex bool eq lt gt"
    names += " hash repr str contains mul add sub truediv neg abs call next enter exit getattr format"
    return made(**{f"__{name}__": raises for name in names.split()})()


def registered(**members: Any) -> Any:
    """An object that calls itself a real number."""
    import numbers

    kind = made(**members)
    numbers.Real.register(kind)
    return kind()


def sequence(length: Any) -> Any:
    return made(__len__=lambda self: length, __getitem__=lambda self, i: [1.0, 2.0, 3.0][i])()


def interface(offset: int = 0, **changes: Any) -> Any:
    good = dict(shape=(4, 6), typestr="<f4", data=bytearray(96), version=3, offset=offset)
    return made(__array_interface__=good | changes)()


def foreign(**members: Any) -> Any:
    return made(__array_ufunc__=lambda *a, **k: "text", **members)()


def with_array(shape: Any) -> Any:
    return made(__array__=lambda *a, **k: np.ones((2, 5), np.float32), shape=shape)()


def subclass(shape: Any = (4, 6), kind: str = "f4", members: Any = (), **more: Any) -> Any:
    kind_of_array = made((np.ndarray,), **dict(members), **more)
    return np.ndarray.__new__(kind_of_array, shape, kind)


def itself_as_dtype() -> Any:
    hostile = made()()
    hostile.dtype = hostile
    return hostile


def mapping(get: Any) -> Any:
    class State(Mapping):
        def __getitem__(self, key: Any) -> Any:
            return get(key)

        def __iter__(self) -> Any:
            return iter(("offset", "scale"))

        def __len__(self) -> int:
            return 2

    return State()


def frozen(array: np.ndarray) -> np.ndarray:
    np.ndarray.setflags(array, write=False)
    return array


def self_containing_list() -> list:
    loop: list = []
    loop.append(loop)
    return loop


def deep_list() -> list:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    return deep


def object_array_in_itself() -> np.ndarray:
    array = np.empty(1, object)
    array[0] = array
    return array


def released_memoryview() -> memoryview:
    view = memoryview(bytearray(96))
    view.release()
    return view


def closed_map() -> mmap.mmap:
    closed = mmap.mmap(-1, 96)
    closed.close()
    return closed


def spoil(way: str) -> None:
    targets, TARGETS[:] = TARGETS[:], []  # once in a call
    for array in targets:
        with contextlib.suppress(ValueError, AttributeError, TypeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if way == "shrinks":
                array.resize((0,) * array.ndim, refcheck=False)
            elif way == "grows":
                array.resize([64 * n for n in array.shape], refcheck=False)
            elif way == "retypes":
                array.dtype = np.int8 if array.dtype == np.float32 else np.float32
            elif way == "reshapes":
                array.shape = (array.size,)
            elif way == "restrides":
                array.strides = (0,) * array.ndim
            elif way == "freezes":
                array.flags.writeable = False


def mutator(way: str, method: str) -> Any:
    results = {"__array__": np.ones(6, np.float32), "__index__": -1, "__float__": 1e-5, "__bool__": False}
    results |= {"__len__": 2, "__repr__": "hostile"}

    def spoils(*_: Any, **__: Any) -> Any:
        spoil(way)
        return results[method]

    members = (
        {method: spoils, "__getitem__": lambda self, i: [1.0, 2.0][i]}
        if method == "__len__"
        else {method: spoils}
    )
    if method == "__array__":
        members["shape"] = (6,)
    return registered(**members)


HOSTILE: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "NotImplemented": lambda: NotImplemented,
    "object": object,
    "str": lambda: "text",
    "empty str": lambda: "",
    "surrogate": lambda: "\ud800",
    "NUL": lambda: "\0",
    "bytes": lambda: b"text",
    "complex": lambda: 1j,
    "True": lambda: True,
    "-1": lambda: -1,
    "0": lambda: 0,
    "7": lambda: 7,
    "2.5": lambda: 2.5,
    "-0.5": lambda: -0.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "2**31": lambda: 2**31,
    "-2**31": lambda: -(2**31),
    "2**63": lambda: 2**63,
    "-2**63": lambda: -(2**63),
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "-10**5000": lambda: -(10**5000),
    "Decimal": lambda: decimal.Decimal("0.5"),
    "Decimal sNaN": lambda: decimal.Decimal("sNaN"),
    "Fraction": lambda: fractions.Fraction(-1, 3),
    "Fraction of large": lambda: fractions.Fraction(10**5000, 3),
    "timedelta64": lambda: np.timedelta64(1, "s"),
    "unitless timedelta64": lambda: np.timedelta64(1),
    "NaT": lambda: np.timedelta64("NaT"),
    "datetime64": lambda: np.datetime64("2000"),
    "longdouble": lambda: np.longdouble("1e4000"),
    "negative longdouble": lambda: -np.longdouble("1e-4000"),
    "float16 scalar": lambda: np.float16(-1),
    "numpy bool": lambda: np.bool_(True),
    "numpy void": lambda: np.void(b"1234"),
    "numpy str": lambda: np.str_("text"),
    "list": list,
    "list of 2": lambda: [1, 2],
    "tuple": tuple,
    "dict": dict,
    "dict of int": lambda: {1: 2},
    "dict of arrays": lambda: {"offset": [[1], [2, 3]], "scale": None, "steps": "one"},
    "dict of a state": lambda: {"offset": np.ones((3, 2)), "scale": np.ones(7)},
    "dict of a solver": lambda: {"steps": 1.5, "0.w.velocity": "fast"},
    "set": lambda: {1, 2},
    "range": lambda: range(-3, 9),
    "generator": lambda: (i for i in range(3)),
    "type": lambda: float,
    "module": lambda: np,
    "function": lambda: lambda: 1,
    "function of anything": lambda: lambda *a, **k: [[1], [2, 3]],
    "function that raises": lambda: raiser,
    "ellipsis": lambda: ...,
    "ragged list": lambda: [[1, 2], [3]],
    "list in itself": self_containing_list,
    "deep list": deep_list,
    "deep tuple": lambda: tuple(deep_list()),
    "list of None": lambda: [None, None],
    "list of text": lambda: ["a", "b"],
    "list of huge ints": lambda: [10**30, 1],
    "object array": lambda: np.array([[None] * 6] * 4),
    "object array of floats": lambda: np.ones((4, 6), object),
    "object array in itself": object_array_in_itself,
    "text array": lambda: np.full((4, 6), "1.5"),
    "bytes array": lambda: np.full((4, 6), b"1.5"),
    "StringDType array": lambda: np.full((4, 6), "1", np.dtypes.StringDType()),
    "structured array": lambda: np.zeros((4, 6), [("a", "f4"), ("b", "O")]),
    "void array": lambda: np.zeros((4, 6), "V4"),
    "record array": lambda: np.zeros((4, 6), [("a", "f4")]).view(np.recarray),
    "float16 array": lambda: np.ones((4, 6), "f2"),
    "longdouble array": lambda: np.ones((4, 6), "g"),
    "complex array": lambda: np.ones((4, 6), "c8"),
    "datetime array": lambda: np.zeros((4, 6), "M8[s]"),
    "timedelta array": lambda: np.zeros((4, 6), "m8[s]"),
    "masked array": lambda: np.ma.masked_equal(np.arange(24.0).reshape(4, 6), 3),
    "masked row": lambda: np.ma.masked_equal(np.arange(6.0, dtype=np.float32), 3),
    "masked constant": lambda: np.ma.masked,
    "0-d array": lambda: np.array(0.5),
    "0-d int array": lambda: np.array(-9),
    "empty array": lambda: np.empty((0,)),
    "empty array of rows": lambda: np.empty((4, 0)),
    "array of huge shape": lambda: np.empty((0, 2**59), np.int8),
    "64 dimensions": lambda: np.ones((1,) * 64),
    "wrong width": lambda: np.ones((4, 7), np.float32),
    "transposed shape": lambda: np.ones((6, 4), np.float32),
    "enlarging": lambda: np.ones((3, 4, 6), np.float32),
    "broadcast": lambda: np.broadcast_to(np.float32(1), (4, 6)),
    "read-only": lambda: frozen(np.ones((4, 6), np.float32)),
    "read-only float64": lambda: frozen(np.ones((4, 6))),
    "byte-swapped": lambda: np.ones((4, 6), ">f4"),
    "unaligned": lambda: np.frombuffer(bytearray(97), np.float32, 24, 1).reshape(4, 6),
    "released memoryview": released_memoryview,
    "closed map": closed_map,
    "memoryview of pointers": lambda: memoryview(bytes(24)).cast("P"),
    "bytearray": lambda: bytearray(24),
    "raises everywhere": lambda: raises_everywhere(),
    "raises MemoryError": lambda: raises_everywhere(MemoryError),
    "raises RecursionError": lambda: raises_everywhere(RecursionError),
    "raises StopIteration": lambda: raises_everywhere(StopIteration),
    "raises SystemExit": lambda: raises_everywhere(SystemExit),
    "raises in repr": lambda: made(__repr__=raiser)(),
    "repr is no str": lambda: made(__repr__=lambda self: 1)(),
    "a million characters": lambda: made(__repr__=lambda self: "x" * 10**6)(),
    "str that raises in repr": lambda: made((str,), __repr__=raiser)("text"),
    "int that raises in repr": lambda: made((int,), __repr__=raiser)(-5),
    "float that raises in repr": lambda: made((float,), __repr__=raiser)(-5),
    "equal to everything": lambda: made(__eq__=lambda *a: True, __hash__=lambda self: 0)(),
    "equal to nothing": lambda: made(__eq__=lambda *a: np.array([1, 0]), __hash__=lambda self: 0)(),
    "__index__ of text": lambda: made(__index__=lambda self: "1")(),
    "__index__ of None": lambda: made(__index__=lambda self: None)(),
    "__index__ of itself": lambda: made(__index__=lambda self: self)(),
    "__index__ huge": lambda: made(__index__=lambda self: 10**5000)(),
    "__float__ of text": lambda: registered(__float__=lambda self: "1"),
    "__float__ of itself": lambda: registered(__float__=lambda self: self),
    "__float__ raises": lambda: registered(__float__=raiser),
    "a real without __float__": lambda: registered(__float__=None),
    "__len__ negative": lambda: sequence(-1),
    "__len__ huge": lambda: sequence(2**62),
    "__len__ beyond ssize_t": lambda: sequence(2**70),
    "__len__ of text": lambda: sequence("two"),
    "__len__ lies": lambda: sequence(5),
    "list whose __len__ lies": lambda: made((list,), __len__=lambda self: 10**9)([1.0]),
    "tuple whose __len__ lies": lambda: made((tuple,), __len__=lambda self: 10**9)([1]),
    "tuple whose __iter__ raises": lambda: made((tuple,), __iter__=raiser)([1]),
    "__array__ of None": lambda: made(__array__=lambda *a, **k: None)(),
    "__array__ of itself": lambda: made(__array__=lambda self, *a, **k: self)(),
    "__array__ of a list": lambda: made(__array__=lambda *a, **k: [1, 2])(),
    "__array__ of text": lambda: made(__array__=lambda *a, **k: np.array("text"))(),
    "__array__ without arguments": lambda: made(__array__=lambda self: np.ones((4, 6), complex))(),
    "__array__ is no function": lambda: made(__array__=5)(),
    "__array_interface__ of text": lambda: made(__array_interface__="text")(),
    "__array_interface__ empty": lambda: made(__array_interface__={})(),
    "__array_interface__ no data": lambda: interface(data=None),
    "__array_interface__ data of text": lambda: interface(data=("here", False)),
    "__array_interface__ short data": lambda: interface(data=b"1234"),
    "__array_interface__ wrong type": lambda: interface(typestr="<x9"),
    "__array_interface__ objects": lambda: interface(typestr="|O8"),
    "__array_interface__ negative shape": lambda: interface(shape=(-4, 6)),
    "__array_interface__ huge shape": lambda: interface(shape=(2**62, 2**62)),
    "__array_interface__ shape of text": lambda: interface(shape="46"),
    "__array_interface__ strides outside": lambda: interface(strides=(4000, 4)),
    "__array_struct__ of text": lambda: made(__array_struct__="text")(),
    "__array_ufunc__ is None": lambda: made(__array_ufunc__=None)(),
    "__array_ufunc__ refuses": lambda: made(__array_ufunc__=lambda *a, **k: NotImplemented)(),
    "__array_ufunc__ of text": lambda: made(__array_ufunc__=lambda *a, **k: "text")(),
    "__array_ufunc__ raises": lambda: made(__array_ufunc__=raiser)(),
    "__array_ufunc__ with a shape": lambda: foreign(shape=(4, 6), dtype=np.dtype("f4")),
    "__array_ufunc__ with a shape of text": lambda: foreign(shape="46", dtype=np.dtype("f4")),
    "__array_ufunc__ with a shape of None": lambda: foreign(shape=None, dtype=None),
    "__array_ufunc__ with a number as shape": lambda: foreign(shape=5, dtype="?"),
    "__array_ufunc__ without dtype": lambda: foreign(shape=(4, 6)),
    "shape that lies": lambda: with_array(shape=(4, 6)),
    "shape of text": lambda: with_array(shape="46"),
    "shape of numbers": lambda: with_array(shape=5),
    "shape of None": lambda: with_array(shape=(None, None)),
    "shape of negatives": lambda: with_array(shape=(-1, -6)),
    "class that lies": lambda: made(__class__=property(lambda self: np.ndarray))(),
    "class that lies float": lambda: made(__class__=property(lambda self: float))(),
    "class that lies int": lambda: made(__class__=property(lambda self: int))(),
    "class that lies str": lambda: made(__class__=property(lambda self: str))(),
    "class that lies Learnable": lambda: made(__class__=property(lambda self: lnorm.Learnable))(),
    "subclass": lambda: subclass(),
    "subclass, shape lies": lambda: subclass((2, 3), members={"shape": property(lambda self: (4, 6))}),
    "subclass, dtype lies": lambda: subclass((4, 6), "i1", dtype=property(lambda self: np.dtype("f4"))),
    "subclass, float64 lies": lambda: subclass((4, 6), "i1", dtype=property(lambda self: np.dtype("f8"))),
    "subclass, flags lie": lambda: frozen(
        subclass(flags=property(lambda self: types.SimpleNamespace(writeable=True, aligned=True)))
    ),
    "subclass, transpose lies": lambda: subclass(transpose=lambda *a: np.ones((2, 2), np.float32)),
    "subclass, transpose of text": lambda: subclass(transpose=lambda *a: "text"),
    "subclass, everything raises": lambda: subclass(members=dict.fromkeys(ARRAY_METHODS, property(raiser))),
    "subclass, finalize raises": lambda: subclass(
        __array_finalize__=lambda self, base: base is None or raiser()
    ),
    "subclass, own ufunc raises": lambda: subclass(__array_ufunc__=raiser),
    "no type of its own dtype": lambda: made(dtype=property(raiser))(),
    "dtype of itself": lambda: itself_as_dtype(),
    "Learnable": lambda: lnorm.Learnable(np.ones(3)),
    "empty layer": lambda: Layer(),
    "learnables that raise": lambda: made(learnables=property(raiser))(),
    "learnables of text": lambda: made(learnables="text")(),
    "learnables of None": lambda: made(learnables=None)(),
    "mapping that raises": lambda: mapping(raiser),
    "mapping of text": lambda: mapping(lambda *a: "text"),
    **{
        f"{way} by {method}": lambda way=way, method=method: mutator(way, method)
        for way in ("shrinks", "grows", "retypes", "reshapes", "restrides", "freezes")
        for method in ("__array__", "__index__", "__float__", "__bool__", "__len__", "__repr__")
    },
}

# --- calls ---------------------------------------------------------------------------------------------------------
# By "public name, argument": a function of the hostile value. `fresh` makes what a call needs.


class Fresh:
    """Arguments of one call, all of them witnesses: their bytes may not change in a call that fails."""

    def __init__(self, plain: bool) -> None:
        # Plain arrays go straight to the kernels, the others through the planning.
        numbers = np.arange(24, dtype=np.float32) % 7
        order = "C" if plain else "F"
        kind = np.float32 if plain else np.float64
        self.x = np.array(numbers.reshape(4, 6), kind, order=order)
        self.dy = np.array(numbers[::-1].reshape(4, 6), kind, order=order)
        self.out = np.full((4, 6), 7, kind, order=order)
        self.scale, self.offset = np.arange(6, dtype=kind), np.ones(6, kind)
        self.mean, self.rstd = np.ones((4, 1)), np.ones((4, 1))
        self.layer = Layer(scale=np.arange(1, 7), offset=np.ones(6))
        self.layer.forward(numbers.reshape(4, 6))
        self.layer.backward(np.ones((4, 6)))
        self.empty = Layer()
        self.w = lnorm.Learnable(np.ones((2, 3)), "w")
        self.w.gradient = np.ones((2, 3))
        self.solver = lnorm.Adam()
        self.solver.step(self.w, self.layer)

    def arrays(self) -> list[np.ndarray]:
        return [a for a in vars(self).values() if isinstance(a, np.ndarray)]

    def state(self) -> Any:
        """Everything, with arrays as their kind and bytes."""

        def show(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return value.dtype.str, value.shape, value.strides, value.tobytes()
            if isinstance(value, dict):
                return {k: show(v) for k, v in value.items()}
            if isinstance(value, (Layer, lnorm.Learnable, lnorm.Solver)):
                kept = {n: show(getattr(value, n, None)) for n in ("_state", "_moments", "_steps")}
                return kept, str(getattr(value, "_forwarded", None) is None)
            return repr(value)

        return show(vars(self)) | {"threads": lnorm.get_num_threads()}


def forward(f: Fresh, **changed: Any) -> Any:
    """Whatever is said of the others, an `x` under trial is alone."""
    others = {} if "x" in changed else dict(scale=f.scale, offset=f.offset, out=f.out)
    return lnorm.layer_norm(**dict(x=f.x) | others | changed)


def backward(f: Fresh, **changed: Any) -> Any:
    others = {} if "x" in changed else dict(scale=f.scale, out=f.out, mean=f.mean, rstd=f.rstd)
    return lnorm.layer_norm_backward(**dict(dy=f.dy, x=f.x) | others | changed)


def setter(holder: str, name: str) -> Callable[[Fresh, Any], None]:
    return lambda f, v: setattr(eval(holder, {"f": f}), name, v)


CALLS: dict[str, Callable[[Fresh, Any], Any]] = {
    **{
        f"layer_norm, {name}": lambda f, v, name=name: forward(f, **{name: v})
        for name in ("x", "scale", "offset", "axis", "epsilon", "out", "return_stats")
    },
    **{
        f"layer_norm_backward, {name}": lambda f, v, name=name: backward(f, **{name: v})
        for name in ("dy", "x", "scale", "axis", "epsilon", "mean", "rstd", "param_grads", "out")
    },
    "layer_norm, [axis]": lambda f, v: forward(f, axis=(0, v)),
    "layer_norm_backward, [axis]": lambda f, v: backward(f, axis=(v, 1)),
    "set_num_threads, n": lambda f, v: lnorm.set_num_threads(v),
    "show_config, mode": lambda f, v: lnorm.show_config(v),
    **{f"LayerNormalizationLayer, {n}": lambda f, v, n=n: Layer(**{n: v}) for n in Layer._properties},
    **{f"layer, {n}": setter("f.layer", n) for n in Layer._properties},
    **{
        f"layer, {n} (read-only)": setter("f.layer", n)
        for n in ("num_inputs", "input_names", "num_outputs", "output_names", "learnables")
    },
    "from_arrays, scale": lambda f, v: Layer.from_arrays(v, None),
    "from_arrays, offset": lambda f, v: Layer.from_arrays(None, v),
    "from_arrays, epsilon": lambda f, v: Layer.from_arrays(None, None, epsilon=v),
    "initialize, data": lambda f, v: f.empty.initialize(v),
    "initialize of 6, data": lambda f, v: f.layer.initialize(v),
    "predict, x": lambda f, v: f.layer.predict(v),
    "predict of empty, x": lambda f, v: f.empty.predict(v),
    "predict, out": lambda f, v: f.layer.predict(f.x, v),
    "predict of empty, out": lambda f, v: f.empty.predict(f.x, v),
    "call, x": lambda f, v: f.layer(v),
    "forward, x": lambda f, v: f.layer.forward(v),
    "forward of empty, x": lambda f, v: f.empty.forward(v),
    "backward, dy": lambda f, v: f.layer.backward(v),
    "backward, accumulate": lambda f, v: f.layer.backward(np.ones((4, 6)), v),
    "learn_rate_factor, parameter": lambda f, v: f.layer.learn_rate_factor(v),
    "l2_factor, parameter": lambda f, v: f.layer.l2_factor(v),
    "set_learn_rate_factor, parameter": lambda f, v: f.layer.set_learn_rate_factor(v, 1),
    "set_l2_factor, parameter": lambda f, v: f.layer.set_l2_factor(v, 1),
    "set_learn_rate_factor, learn_rate_factor": lambda f, v: f.layer.set_learn_rate_factor("scale", v),
    "set_l2_factor, l2_factor": lambda f, v: f.layer.set_l2_factor("offset", v),
    "layer.load_state_dict, state": lambda f, v: f.layer.load_state_dict(v),
    "layer.load_state_dict, offset": lambda f, v: f.layer.load_state_dict(dict(offset=v, scale=np.ones(6))),
    "layer.load_state_dict, scale": lambda f, v: f.layer.load_state_dict(dict(offset=np.ones(6), scale=v)),
    **{
        f"learnables[1], {n}": setter("f.layer.learnables[1]", n)
        for n in ("value", "gradient", "learn_rate_factor", "l2_factor")
    },
    "learnables[1], name (read-only)": setter("f.layer.learnables[1]", "name"),
    **{
        f"Learnable, {n}": lambda f, v, n=n: lnorm.Learnable(**{"value": np.ones(2)} | {n: v})
        for n in ("value", "name", "learn_rate_factor", "l2_factor")
    },
    **{f"learnable, {n}": setter("f.w", n) for n in lnorm.Learnable._properties},
    **{
        f"{kind.__name__}, {n}": lambda f, v, kind=kind, n=n: kind(**{n: v})
        for kind in (lnorm.SGDM, lnorm.RMSProp, lnorm.Adam)
        for n in kind._properties
    },
    **{f"solver, {n}": setter("f.solver", n) for n in lnorm.Adam._properties},
    "step, learnables": lambda f, v: f.solver.step(f.w, f.layer, v),
    "step of SGDM, learnables": lambda f, v: lnorm.SGDM().step(v),
    "loss, learnables": lambda f, v: f.solver.loss(f.w, v),
    "solver.load_state_dict, state": lambda f, v: f.solver.load_state_dict(v),
    "solver.load_state_dict, steps": lambda f, v: f.solver.load_state_dict({"steps": v}),
    "solver.load_state_dict, moment": lambda f, v: lnorm.SGDM().load_state_dict(
        {"steps": 1, "0.w.velocity": v}
    ),
    "solver.load_state_dict, key": lambda f, v: lnorm.SGDM().load_state_dict({"steps": 1, v: np.ones(2)}),
}
# The word that the message must have where it is not the argument's own name.
NAMES = {
    "learnables": "([Ll]earnable)",
    "moment": "state",
    "key": "(state|.*hash|.*released)",
    "[axis]": "axis",
}

# What is right although it looks hostile, of each call: names in HOSTILE. What it gives is held by the other tests.
ACCEPTED: dict[str, str] = {
    ("LayerNormalizationLayer, data_format; layer, data_format; layer, offset; layer, scale"): ("None"),
    ("LayerNormalizationLayer, dtype; layer, dtype"): (
        "__array_ufunc__ with a shape|__array_ufunc__ with a shape of text|empty layer|type"
    ),
    (
        "Adam, epsilon; LayerNormalizationLayer, epsilon; RMSProp, epsilon; from_arrays, epsilon; "
        "layer, epsilon; solver, epsilon"
    ): ("2**31|2**63|2.5|7"),
    ("LayerNormalizationLayer, name; Learnable, name; layer, name; learnable, name"): (
        "NUL|class that lies str|empty str|numpy str|str|str that raises in repr|surrogate"
    ),
    ("LayerNormalizationLayer, num_channels"): ("2**31|7"),
    ("LayerNormalizationLayer, rng; layer, rng"): (
        "0|10**400|10**5000|2**31|2**63|7|None|array of huge shape|list|list of 2|list of huge "
        "ints|tuple|tuple whose __len__ lies"
    ),
    (
        "LayerNormalizationLayer, offset; LayerNormalizationLayer, scale; from_arrays, offset; "
        "from_arrays, scale"
    ): (
        "64 dimensions|None|__len__ lies|bytearray|list of 2|list whose __len__ lies|range|tuple "
        "whose __len__ lies"
    ),
    (
        "LayerNormalizationLayer, offset_initializer; LayerNormalizationLayer, scale_initializer; "
        "layer, offset_initializer; layer, scale_initializer"
    ): (
        "empty layer|function|function of anything|function that raises|raises MemoryError|raises "
        "RecursionError|raises StopIteration|raises SystemExit|raises everywhere|type"
    ),
    (
        "Adam, l2_regularization; Adam, learn_rate; LayerNormalizationLayer, offset_l2_factor; "
        "LayerNormalizationLayer, offset_learn_rate_factor; LayerNormalizationLayer, "
        "scale_l2_factor; LayerNormalizationLayer, scale_learn_rate_factor; Learnable, l2_factor; "
        "Learnable, learn_rate_factor; RMSProp, l2_regularization; RMSProp, learn_rate; SGDM, "
        "l2_regularization; SGDM, learn_rate; layer, offset_l2_factor; layer, "
        "offset_learn_rate_factor; layer, scale_l2_factor; layer, scale_learn_rate_factor; "
        "learnable, l2_factor; learnable, learn_rate_factor; learnables[1], l2_factor; "
        "learnables[1], learn_rate_factor; set_l2_factor, l2_factor; set_learn_rate_factor, "
        "learn_rate_factor; solver, l2_regularization; solver, learn_rate"
    ): ("0|2**31|2**63|2.5|7|negative longdouble"),
    ("Learnable, value; learnable, value"): (
        "-0.5|-inf|0-d array|2.5|64 dimensions|__array_interface__ strides outside|__len__ "
        "lies|byte-swapped|empty array|empty array of rows|enlarging|float that raises in "
        "repr|float16 array|float16 scalar|inf|list|list whose __len__ lies|longdouble|longdouble "
        "array|nan|negative longdouble|shape of None|shape of negatives|shape of numbers|shape of "
        "text|shape that lies|subclass|subclass, everything raises|subclass, finalize "
        "raises|subclass, own ufunc raises|subclass, shape lies|subclass, transpose lies|subclass, "
        "transpose of text|transposed shape|tuple|unaligned|wrong width"
    ),
    (
        "Adam, gradient_threshold; RMSProp, gradient_threshold; SGDM, gradient_threshold; solver, "
        "gradient_threshold"
    ): ("2**31|2**63|2.5|7|inf|longdouble"),
    (
        "Adam, gradient_decay_factor; Adam, squared_gradient_decay_factor; RMSProp, "
        "squared_gradient_decay_factor; SGDM, momentum; solver, gradient_decay_factor; solver, "
        "squared_gradient_decay_factor"
    ): ("0|negative longdouble"),
    ("forward of empty, x"): (
        "__array_interface__ short data|__array_interface__ strides "
        "outside|broadcast|byte-swapped|enlarging|read-only|read-only float64|shape of "
        "numbers|shape of text|subclass|subclass, dtype lies|subclass, finalize raises|subclass, "
        "flags lie|subclass, float64 lies|subclass, transpose lies|subclass, transpose of "
        "text|transposed shape|unaligned|wrong width"
    ),
    ("forward, x"): (
        "__array_interface__ short data|__array_interface__ strides "
        "outside|broadcast|byte-swapped|enlarging|read-only|read-only float64|subclass|subclass, "
        "dtype lies|subclass, finalize raises|subclass, flags lie|subclass, float64 lies|subclass, "
        "transpose lies|subclass, transpose of text|unaligned"
    ),
    ("initialize of 6, data"): (
        "StringDType array|__array_interface__ short data|__array_interface__ strides "
        "outside|__array_ufunc__ with a shape|__array_ufunc__ without "
        "dtype|broadcast|byte-swapped|bytes array|complex array|datetime array|enlarging|float16 "
        "array|longdouble array|masked array|object array|object array of "
        "floats|read-only|read-only float64|record array|shape that lies|structured "
        "array|subclass|subclass, dtype lies|subclass, finalize raises|subclass, flags "
        "lie|subclass, float64 lies|subclass, own ufunc raises|subclass, shape lies|subclass, "
        "transpose lies|subclass, transpose of text|text array|timedelta array|unaligned|void array"
    ),
    ("initialize, data"): (
        "7|StringDType array|__array_interface__ short data|__array_interface__ strides "
        "outside|__array_ufunc__ with a shape|__array_ufunc__ without "
        "dtype|broadcast|byte-swapped|bytes array|complex array|datetime array|enlarging|float16 "
        "array|longdouble array|masked array|object array|object array of "
        "floats|read-only|read-only float64|record array|shape of numbers|shape of text|shape that "
        "lies|structured array|subclass|subclass, dtype lies|subclass, finalize raises|subclass, "
        "flags lie|subclass, float64 lies|subclass, own ufunc raises|subclass, shape lies|subclass,"
        " transpose lies|subclass, transpose of text|text array|timedelta array|transposed "
        "shape|unaligned|void array|wrong width"
    ),
    ("layer.load_state_dict, offset; layer.load_state_dict, scale"): (
        "None|array of huge shape|empty array|empty array of rows"
    ),
    ("layer_norm, [axis]"): ("-1|True"),
    ("layer_norm, axis"): ("-1|0|True|tuple whose __len__ lies"),
    ("layer_norm, epsilon; layer_norm_backward, epsilon"): (
        "0|0-d array|2**31|2**63|2.5|7|True|negative longdouble|numpy bool"
    ),
    ("layer_norm, out; layer_norm_backward, out; predict of empty, out; predict, out"): (
        "None|byte-swapped|subclass|subclass, everything raises|subclass, finalize raises|subclass,"
        " own ufunc raises|subclass, transpose lies|subclass, transpose of text|unaligned"
    ),
    ("layer_norm, offset; layer_norm, scale; layer_norm_backward, scale"): (
        "-0.5|-1|-2**31|-2**63|-inf|0|0-d array|0-d int "
        "array|2**31|2**63|2.5|7|None|True|__array_interface__ short data|__array_interface__ "
        "strides outside|broadcast|byte-swapped|float that raises in repr|inf|int that raises in "
        "repr|list whose __len__ lies|nan|numpy bool|read-only|read-only float64|subclass|subclass,"
        " dtype lies|subclass, everything raises|subclass, finalize raises|subclass, flags "
        "lie|subclass, float64 lies|subclass, transpose lies|subclass, transpose of text|tuple "
        "whose __len__ lies|unaligned"
    ),
    ("layer_norm, x"): (
        "64 dimensions|__array_interface__ short data|__array_interface__ strides "
        "outside|__array_ufunc__ of text|__array_ufunc__ with a shape|__array_ufunc__ with a shape "
        "of None|__len__ lies|array of huge shape|broadcast|byte-swapped|bytearray|empty "
        "array|empty array of rows|enlarging|list|list of 2|list whose __len__ "
        "lies|range|read-only|read-only float64|shape of None|shape of negatives|shape of "
        "numbers|shape of text|shape that lies|subclass|subclass, dtype lies|subclass, everything "
        "raises|subclass, finalize raises|subclass, flags lie|subclass, float64 lies|subclass, "
        "shape lies|subclass, transpose lies|subclass, transpose of text|transposed "
        "shape|tuple|tuple whose __len__ lies|unaligned|wrong width"
    ),
    ("layer_norm_backward, axis"): ("-1|True|tuple whose __len__ lies"),
    ("backward, dy; layer_norm_backward, dy; layer_norm_backward, x"): (
        "__array_interface__ short data|__array_interface__ strides "
        "outside|broadcast|byte-swapped|read-only|read-only float64|subclass|subclass, dtype "
        "lies|subclass, everything raises|subclass, finalize raises|subclass, flags lie|subclass, "
        "float64 lies|subclass, transpose lies|subclass, transpose of text|unaligned"
    ),
    ("learnable, gradient; learnables[1], gradient"): (
        "-0.5|-1|-2**31|-2**63|-inf|0|0-d array|0-d int array|2**31|2**63|2.5|64 "
        "dimensions|7|None|__array_interface__ short data|__array_interface__ strides "
        "outside|__len__ lies|array of huge shape|broadcast|byte-swapped|bytearray|empty "
        "array|empty array of rows|enlarging|float that raises in repr|float16 array|float16 "
        "scalar|inf|int that raises in repr|list|list of 2|list whose __len__ "
        "lies|longdouble|longdouble array|nan|negative longdouble|range|read-only|read-only "
        "float64|shape of None|shape of negatives|shape of numbers|shape of text|shape that "
        "lies|subclass|subclass, dtype lies|subclass, everything raises|subclass, finalize "
        "raises|subclass, flags lie|subclass, float64 lies|subclass, own ufunc raises|subclass, "
        "shape lies|subclass, transpose lies|subclass, transpose of text|transposed "
        "shape|tuple|tuple whose __len__ lies|unaligned|wrong width"
    ),
    ("loss, learnables"): ("Learnable"),
    ("predict of empty, x"): (
        "__array_interface__ short data|__array_interface__ strides outside|__array_ufunc__ with a "
        "shape|broadcast|byte-swapped|enlarging|read-only|read-only float64|shape of numbers|shape "
        "of text|subclass|subclass, dtype lies|subclass, finalize raises|subclass, flags "
        "lie|subclass, float64 lies|subclass, transpose lies|subclass, transpose of text|transposed"
        " shape|unaligned|wrong width"
    ),
    ("call, x; predict, x"): (
        "__array_interface__ short data|__array_interface__ strides outside|__array_ufunc__ with a "
        "shape|broadcast|byte-swapped|enlarging|read-only|read-only float64|subclass|subclass, "
        "dtype lies|subclass, finalize raises|subclass, flags lie|subclass, float64 lies|subclass, "
        "transpose lies|subclass, transpose of text|unaligned"
    ),
    ("set_num_threads, n"): ("7|None|True"),
    ("solver.load_state_dict, moment"): (
        "-0.5|-inf|0-d array|2.5|64 dimensions|__array_interface__ short data|__array_interface__ "
        "strides outside|__len__ lies|broadcast|byte-swapped|empty array|empty array of "
        "rows|enlarging|float that raises in repr|float16 array|float16 scalar|inf|list|list whose "
        "__len__ lies|longdouble|longdouble array|masked array|masked constant|masked "
        "row|nan|negative longdouble|read-only|read-only float64|shape of None|shape of "
        "negatives|shape of numbers|shape of text|shape that lies|subclass|subclass, everything "
        "raises|subclass, finalize raises|subclass, flags lie|subclass, own ufunc raises|subclass, "
        "shape lies|subclass, transpose lies|subclass, transpose of text|transposed "
        "shape|tuple|unaligned|wrong width"
    ),
    ("solver.load_state_dict, steps"): ("0|2**31|2**63|7"),
}

# The object's own errors pass through; it also decides what its mutations do to the caller's arrays.
OWN = {
    Own: r"",
    MemoryError: r"by the object itself|",
    RecursionError: r"by the object",
    StopIteration: r"by the object",
}
OWN[RuntimeError] = r"generator raised StopIteration"
OWN[SystemExit] = r"by the object"


# Taken by their truth, which an object may refuse in its own words.
FLAGS = ("return_stats", "param_grads", "accumulate")


def accepted(call: str, value: str) -> bool:
    return call.endswith(FLAGS) or any(
        call in calls.split("; ") and value in values.split("|") for calls, values in ACCEPTED.items()
    )


def judge(call: str, value: str, plain: bool) -> str:
    """An empty str if all is well, else what is wrong."""
    fresh, problems = Fresh(plain), []
    hostile = HOSTILE[value]()
    before = fresh.state()
    mutates = " by __" in value
    TARGETS[:] = fresh.arrays() if mutates else []
    unraisable: list[Any] = []
    sys.unraisablehook = lambda what: unraisable.append(repr(what.exc_value))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            CALLS[call](fresh, hostile)
    except BaseException as error:
        name = call.split(", ")[1].split(" ")[0]
        word = NAMES.get(name, name)
        if name in ("x", "data"):
            # A scalar has no axis, and of the layer's data the format or the channels are wrong.
            word = "(x|axis|ufunc|data|data_format|num_channels)"
        elif name.endswith("_factor"):
            word = rf"(scale_|offset_)?{name}"
        elif call == "learnables[1], value":
            word = "(scale|value)"
        elif call == "layer.load_state_dict, state":
            word = "(state|offset)"
        if "__array_ufunc__ with a shape" in value:
            word = ""  # its own function returns nonsense
        message = "".join(error.args[:1]) if error.args and isinstance(error.args[0], str) else str(error)
        own = any(isinstance(error, kind) and re.search(words, message) for kind, words in OWN.items())
        own |= (mutates and isinstance(error, (TypeError, ValueError, MemoryError))) or name in FLAGS
        if not own:
            if not isinstance(error, AttributeError if "read-only" in call else (TypeError, ValueError)):
                problems.append(f"{type(error).__name__}")
            if not re.search(rf"\b{word}", message):
                problems.append("the message does not name the argument")
            if value != "__array_ufunc__ refuses" and ("\n" in message or len(message) > 500):
                problems.append("the message is long")
            if problems:
                problems.append(f"{message[:200]!r}")
        TARGETS.clear()
        if not mutates and fresh.state() != before:
            problems.append("something has changed")
    else:
        TARGETS.clear()
        if not (mutates or accepted(call, value)):
            problems.append("was accepted")
    finally:
        lnorm.set_num_threads(1)
    return ", ".join(problems + [f"unraisable: {u}" for u in unraisable])


def product(every: int) -> list[tuple[str, str, bool]]:
    pairs = [
        (call, value, plain)
        for call in CALLS
        for plain in ((True, False) if call.startswith("layer_norm") else (True,))
        for value in HOSTILE
    ]
    return pairs[::every]


def child(first: int, every: int) -> None:
    """Judge the pairs from here on: a line before each and one after it."""
    import resource

    faulthandler.enable()
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    for i, pair in enumerate(product(every)[first:], first):
        print(i, flush=True)
        faulthandler.dump_traceback_later(30, exit=True)
        print(i, judge(*pair), sep="\t", flush=True)
        faulthandler.cancel_dump_traceback_later()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--every", type=int, default=1, metavar="K", help="only every K-th pair; K prime")
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child, arguments.every)
        return 0
    pairs, found, i = product(arguments.every), 0, 0

    def report(pair: tuple[str, str, bool], problem: str) -> None:
        nonlocal found
        found += 1
        call, value, plain = pair
        print(f"  {call} = {value}{'' if plain else ' (planned)'}: {problem}", flush=True)

    while i < len(pairs):
        command = [sys.executable, __file__, "--child", str(i), "--every", str(arguments.every)]
        with (
            tempfile.TemporaryFile("w+") as trace,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=trace, text=True) as process,
        ):
            judged = ""
            for line in process.stdout or ():
                number, judged, problem = line.rstrip("\n").partition("\t")
                i = int(number)
                if problem:
                    report(pairs[i], problem)
            status = process.wait()
            if status or not judged:
                trace.seek(0)
                report(pairs[i], f"CRASH, status {status}: {trace.read().strip()[-1500:]}")
        i += 1
    by_call = collections.Counter(call.split(", ")[0] for call, _, _ in pairs)
    print(f"{len(pairs)} pairs: {len(CALLS)} arguments of {len(by_call)} callables x {len(HOSTILE)} values")
    print(f"found: {found}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
