"""Properties that are checked whenever they are set, and Learnable, which the layer and the solvers share."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np


def describe(value: Any) -> str:
    """A value as errors and displays show it: an array by its shape and dtype, what has no repr by its type."""
    try:
        text = f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else repr(value)
    except Exception:  # An int may have more digits than Python writes, and a class anything.
        text = f"{type(value).__name__} without a repr"
    text = text.replace("\n", " ")
    return text if len(text) <= 100 else text[:97] + "..."


def is_masked(value: Any) -> bool:
    """A masked array. Who has none has not imported numpy.ma, which takes 15 ms, and is not made to."""
    return isinstance(value, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))


class Rule(NamedTuple):
    """What a property accepts: in words, by kind and by value. `convert` gives what is kept, and may raise."""

    text: str
    kind: Any
    test: Callable[[Any], bool] = lambda value: True
    convert: Callable[[Any], Any] = lambda value: value

    def accept(self, value: Any) -> Any:
        # bool is an int to Python, timedelta64 one to NumPy, but neither is a number to anybody who sets a property.
        if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, self.kind):
            raise TypeError
        kept = self.convert(value)
        if not self.test(kept):
            raise ValueError
        return kept


def number(text: str, test: Callable[[float], bool]) -> Rule:
    return Rule(text, numbers.Real, test, float)


def one_of(*words: str) -> Rule:
    return Rule("one of " + ", ".join(map(repr, words)), str, lambda word: word in words)


TEXT = Rule("a str", str)
NOT_NEGATIVE = number("a finite number >= 0", lambda value: 0 <= value < math.inf)
POSITIVE = number("a finite number > 0", lambda value: 0 < value < math.inf)
FRACTION = number("a number >= 0 and < 1", lambda value: 0 <= value < 1)


class Property:
    """A checked attribute of a `Checked` object. Errors name the property, the rule and the value."""

    def __init__(self, default: Any, rule: Rule) -> None:
        self.default = default
        self.rule = rule
        self.__doc__ = f"{rule.text[0].upper()}{rule.text[1:]} (default {default!r})."

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        return self if owner is None else owner._state[self.name]

    def __set__(self, owner: Any, value: Any) -> None:
        owner._assign({self.name: self.check(value)})

    def check(self, value: Any) -> Any:
        try:
            return self.rule.accept(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{self.name} must be {self.rule.text}, not {describe(value)}") from None


class Constant:
    """An attribute that nobody can set."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        return self.value

    def __set__(self, owner: Any, value: Any) -> None:
        raise AttributeError(
            f"{self.name} is read-only and always {self.value!r}: it cannot be set to {describe(value)}"
        )


class Checked:
    """An object made of properties, which are set by keyword or later.

    All values are in one dict, which is replaced and never changed: an error leaves the object as it was, and another
    thread never sees half of a change. There is no `__dict__`, so that a misspelt name is an error.
    """

    __slots__ = ("__weakref__", "_state")
    _properties: ClassVar[dict[str, Property]] = {}

    def __init_subclass__(cls) -> None:
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Property)}
        cls._properties = cls._properties | own

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in self._properties:
                valid = ", ".join(self._properties)
                raise TypeError(f"{type(self).__name__} has no argument {name!r}; valid are {valid}")
        self._state: dict[str, Any] = {}
        self._assign({name: p.check(values.get(name, p.default)) for name, p in self._properties.items()})

    def _assign(self, values: dict[str, Any]) -> None:
        """Take checked values, all or none."""
        self._state = self._state | values

    def __repr__(self) -> str:
        """Python that makes the object again, with the arguments that differ from their defaults."""
        shown = []
        for name, prop in self._properties.items():
            value = self._state[name]
            if isinstance(value, np.ndarray) or value != prop.default:
                shown.append(f"{name}={source(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def source(value: Any) -> str:
    """A value as Python: an array as a list of the shortest digits that give the same floats, all of them."""
    if isinstance(value, np.ndarray):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, np.dtype):
        return repr(value.name)
    return getattr(value, "__qualname__", None) or repr(value)


def _weights(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind != "f" or is_masked(value):  # A mask would be ignored.
        raise TypeError
    return array


def _gradient(value: Any) -> np.ndarray | None:
    array = None if value is None else np.asarray(value)
    if array is not None and (array.dtype.kind not in "fiu" or is_masked(value)):
        raise TypeError
    return array


class Learnable(Checked):
    """An array that a solver updates in place: a weight matrix of your own, or a layer's scale or offset.

    Parameters
    ----------
    value : writeable array of floats, any shape
        Kept as it is, not copied: a solver's step changes your array.
    name : str
    learn_rate_factor : float >= 0
        Multiplies the solver's learn rate. 0 freezes the value.
    l2_factor : float >= 0
        Multiplies the solver's `l2_regularization`.

    Attributes
    ----------
    gradient : array of the shape of `value`, or None
        Of the loss with respect to `value`. You, or a layer's ``backward``, set it before each step.

    Raises
    ------
    TypeError, ValueError
        For a value of the wrong kind, or a wrong value, here and whenever an attribute is set.

    Examples
    --------
    >>> import numpy as np, lnorm
    >>> weights = lnorm.Learnable(np.ones((2, 2)), "weights", l2_factor=0)
    >>> weights.gradient = np.array([[1.0, 0.0], [0.0, 2.0]])
    >>> lnorm.SGDM(learn_rate=0.1).step(weights)
    >>> weights.value
    array([[0.9, 1. ],
           [1. , 0.8]])
    """

    __slots__ = ()
    value = Property(
        None, Rule("a writeable array of floats", object, lambda array: array.flags.writeable, _weights)
    )
    name = Property("", TEXT)
    learn_rate_factor = Property(1.0, NOT_NEGATIVE)
    l2_factor = Property(1.0, NOT_NEGATIVE)
    gradient = Property(None, Rule("None or an array of real numbers", object, convert=_gradient))

    def __init__(
        self, value: Any, name: str = "", learn_rate_factor: float = 1.0, l2_factor: float = 1.0
    ) -> None:
        super().__init__(value=value, name=name, learn_rate_factor=learn_rate_factor, l2_factor=l2_factor)

    def __repr__(self) -> str:
        value = "empty" if self.value is None else describe(self.value)
        factors = f"learn_rate_factor={self.learn_rate_factor}, l2_factor={self.l2_factor}"
        return f"<Learnable {self.name!r}: {value}, {factors}>"
