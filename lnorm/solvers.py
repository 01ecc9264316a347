"""Solvers: what makes the layer's learn-rate and L2 factors mean something. Updates in place, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from .properties import (
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Checked,
    Learnable,
    Property,
    describe,
    number,
    one_of,
)


class HasLearnables(Protocol):
    """Such as a layer."""

    @property
    def learnables(self) -> tuple[Learnable, ...]: ...


def _members(items: tuple[Learnable | HasLearnables, ...]) -> Iterator[Learnable]:
    for item in items:
        found: Any = getattr(item, "learnables", (item,))
        members: Iterable[Any] = found if isinstance(found, Iterable) else (item,)
        for learnable in members:
            if not issubclass(type(learnable), Learnable):
                raise TypeError(f"a solver takes Learnables and layers, not {type(learnable).__name__}")
            if learnable.value is None:
                raise ValueError(f"learnable {learnable.name!r} is empty: initialize its layer first")
            yield learnable


def _state_array(key: str, value: Any) -> np.ndarray:
    """A copy of an array of a state."""
    try:
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise TypeError(f"its dtype is {array.dtype}")
        return np.array(array)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the state of a solver has arrays, {key!r} is none: {error}") from None


class Solver(Checked):
    """What `SGDM`, `RMSProp` and `Adam` share.

    Of each learnable i with value w, a step takes ``λᵢ = l2_regularization·l2_factorᵢ``, ``gᵢ = gradient + λᵢ·w``
    and ``ηᵢ = learn_rate·learn_rate_factorᵢ``, computed in the precision of w. A learn-rate factor of 0 leaves the
    value and the solver's moments untouched.

    Parameters
    ----------
    learn_rate : float >= 0
    l2_regularization : float >= 0, default 1e-4
    gradient_threshold : float > 0, default inf
        The limit of gᵢ, of which the L2 term is a part: it is the gradient of the whole loss.
    gradient_threshold_method : str, default "l2norm"
        "l2norm" scales a learnable's gᵢ down to the threshold if its norm is larger; "global-l2norm" scales
        all of them if the norm over all of them (also those with a learn-rate factor of 0) is larger;
        "absolute-value" clips each element.

    Raises
    ------
    TypeError, ValueError
        For values of the wrong kind and for wrong values, here and whenever a property is set.
    """

    __slots__ = ("_moments", "_steps")
    moments: ClassVar[tuple[str, ...]]  # The names of what a solver keeps for each learnable.
    learn_rate: Any
    l2_regularization = Property(1e-4, NOT_NEGATIVE)
    gradient_threshold = Property(math.inf, number("a number > 0", lambda value: value > 0))
    gradient_threshold_method = Property("l2norm", one_of("l2norm", "global-l2norm", "absolute-value"))

    def __init__(self, **properties: Any) -> None:
        super().__init__(**properties)
        self._moments: dict[str, np.ndarray] = {}  # By "position.name.moment": the names in state_dict.
        self._steps = 0

    def step(self, *learnables: Learnable | HasLearnables) -> None:
        """Update values in place by their gradients.

        Parameters
        ----------
        *learnables : Learnable or layer
            The same ones in the same order at every step, as the solver's moments belong to them.

        Raises
        ------
        TypeError
            For anything else.
        ValueError
            For an empty learnable, for a gradient that is missing or of another shape than its value, and for
            learnables that do not fit those of the steps before. No value has changed then. A missing
            gradient is no error where the learn-rate factor is 0.
        """
        members = {f"{i}.{member.name}": member for i, member in enumerate(_members(learnables))}
        moments = {key: moment.copy() for key, moment in self._moments_of(members).items()}
        gradients = self._limited({key: self._gradient(member) for key, member in members.items()})
        updated = {key: member for key, member in members.items() if member.learn_rate_factor > 0}
        # A step that breaks off, for want of memory or on Ctrl-C, is undone: values come from these copies.
        undo = [(member.value, member.value.copy()) for member in updated.values()]
        steps = self._steps + 1
        try:
            for key, member in updated.items():
                rate = self.learn_rate * member.learn_rate_factor
                of_member = (moments[f"{key}.{name}"] for name in self.moments)
                self._update(member.value, gradients[key], rate, steps, *of_member)
            self._moments, self._steps = moments, steps
        except BaseException:
            for value, before in reversed(undo):
                np.copyto(value, before)
            raise

    def _update(self, w: np.ndarray, g: np.ndarray, rate: float, step: int, *moments: np.ndarray) -> None:
        raise NotImplementedError

    def _moments_of(self, members: dict[str, Learnable]) -> dict[str, np.ndarray]:
        fresh = {
            f"{key}.{name}": np.zeros_like(m.value) for key, m in members.items() for name in self.moments
        }
        if not self._moments:
            return fresh
        expected, given = (
            {key: (m.shape, m.dtype) for key, m in moments.items()} for moments in (self._moments, fresh)
        )
        if expected != given:
            differing = sorted({key.rpartition(".")[0] for key, _ in expected.items() ^ given.items()})
            raise ValueError(
                f"the solver's state is of other learnables; position, name, shape or dtype: {differing}"
            )
        return self._moments

    def _gradient(self, member: Learnable) -> np.ndarray:
        """Of the loss with its L2 term."""
        if member.gradient is None:
            if member.learn_rate_factor == 0:
                return np.zeros_like(member.value)
            raise ValueError(
                f"learnable {member.name!r} has no gradient: call backward, or set it, before step"
            )
        if member.gradient.shape != member.value.shape:
            shapes = f"{member.gradient.shape}, its value {member.value.shape}"
            raise ValueError(
                f"the gradient of learnable {member.name!r} has shape {shapes}: they must be equal"
            )
        decay = self.l2_regularization * member.l2_factor
        if not member.value.flags.writeable and member.learn_rate_factor > 0:
            raise ValueError(f"the value of learnable {member.name!r} has become read-only")
        return member.gradient.astype(member.value.dtype, copy=False) + decay * member.value

    def _limited(self, gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        threshold = self.gradient_threshold
        if threshold == math.inf:
            return gradients
        if self.gradient_threshold_method == "absolute-value":
            return {key: np.clip(g, -threshold, threshold) for key, g in gradients.items()}
        norms = {key: float(np.linalg.norm(np.ravel(g).astype(np.float64))) for key, g in gradients.items()}
        if self.gradient_threshold_method == "global-l2norm":
            norms = dict.fromkeys(norms, math.hypot(*norms.values()))
        return {
            key: g * (threshold / norms[key]) if norms[key] > threshold else g for key, g in gradients.items()
        }

    def loss(self, *learnables: Learnable | HasLearnables) -> float:
        """The regularization's part of the loss, ``½·Σ λᵢ·Σw²`` with ``λᵢ = l2_regularization·l2_factorᵢ``.

        Examples
        --------
        >>> import numpy as np, lnorm
        >>> lnorm.SGDM(l2_regularization=0.5).loss(lnorm.Learnable(np.array([1.0, 3.0]), l2_factor=2))
        5.0
        """
        squares = ((m.l2_factor, np.sum(np.square(m.value, dtype=np.float64))) for m in _members(learnables))
        return float(sum(0.5 * self.l2_regularization * factor * square for factor, square in squares))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of what steps change in the solver, for `numpy.savez`: the number of steps and the moments.

        A solver of the same class and properties goes on from it with the same bits.

        Examples
        --------
        >>> import lnorm
        >>> lnorm.Adam().state_dict()
        {'steps': array(0)}
        """
        return {"steps": np.array(self._steps)} | {
            key: moment.copy() for key, moment in self._moments.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` returned, also by way of `numpy.savez` and `numpy.load`.

        Raises
        ------
        ValueError
            If it is not the state of such a solver, which is unchanged then. Whether it fits the learnables
            is seen at the next step.
        """
        if not isinstance(state, Mapping) or not all(issubclass(type(key), str) for key in state):
            raise ValueError(f"state must be a mapping from names to arrays, not {describe(state)}")
        moments = {key: _state_array(key, state[key]) for key in state if key != "steps"}
        keys = {key.rpartition(".")[0] for key in moments}
        steps = _state_array("steps", state["steps"]) if "steps" in state else np.array(None)
        if steps.shape or steps.dtype.kind not in "iu" or steps < 0:
            raise ValueError(f"the state of a solver has a count of steps, not {describe(steps)}")
        if moments.keys() != {f"{key}.{name}" for key in keys for name in self.moments}:
            raise ValueError(
                f"the state of {type(self).__name__} has {self.moments} of each learnable, not {[*moments]}"
            )
        if any(moment.dtype.kind != "f" for moment in moments.values()):
            raise ValueError("the moments in the state of a solver are arrays of floats")
        self._moments, self._steps = moments, int(steps)


class SGDM(Solver):
    """Stochastic gradient descent with momentum: ``v ← momentum·v − ηᵢ·g``, ``w ← w + v``.

    Parameters
    ----------
    learn_rate : float >= 0, default 0.01
    momentum : float in [0, 1), default 0.9
    **properties
        Those of every `Solver`.

    References
    ----------
    Murphy, Machine Learning: A Probabilistic Perspective, MIT Press, 2012, section 8.5.2.

    Examples
    --------
    >>> import numpy as np, lnorm
    >>> w = lnorm.Learnable(np.array([1.0, -1.0]), "w")
    >>> solver = lnorm.SGDM(learn_rate=0.5, momentum=0.5, l2_regularization=0)
    >>> for _ in range(2):
    ...     w.gradient = np.array([1.0, 0.0])
    ...     solver.step(w)
    >>> w.value
    array([-0.25, -1.  ])
    """

    __slots__ = ()
    moments = ("velocity",)
    learn_rate = Property(0.01, NOT_NEGATIVE)
    momentum = Property(0.9, FRACTION)

    def _update(self, w: np.ndarray, g: np.ndarray, rate: float, step: int, *moments: np.ndarray) -> None:
        (v,) = moments
        v *= self.momentum
        v -= rate * g
        w += v


class RMSProp(Solver):
    """Steps over the root mean square of the gradients: ``s ← ρ·s + (1−ρ)·g²``, ``w ← w − ηᵢ·g/(√s + ε)``.

    Parameters
    ----------
    learn_rate : float >= 0, default 0.001
    squared_gradient_decay_factor : float in [0, 1), default 0.9
        ρ.
    epsilon : float > 0, default 1e-8
    **properties
        Those of every `Solver`.

    References
    ----------
    Hinton, Neural Networks for Machine Learning, lecture 6e, 2012.

    Examples
    --------
    >>> import lnorm
    >>> lnorm.RMSProp(squared_gradient_decay_factor=0.99)
    RMSProp(squared_gradient_decay_factor=0.99)
    """

    __slots__ = ()
    moments = ("squared_gradient_average",)
    learn_rate = Property(0.001, NOT_NEGATIVE)
    squared_gradient_decay_factor = Property(0.9, FRACTION)
    epsilon = Property(1e-8, POSITIVE)

    def _update(self, w: np.ndarray, g: np.ndarray, rate: float, step: int, *moments: np.ndarray) -> None:
        (s,) = moments
        rho = self.squared_gradient_decay_factor
        s *= rho
        s += (1 - rho) * g**2
        w -= rate * g / (np.sqrt(s) + self.epsilon)


class Adam(Solver):
    """Adam: ``m ← β₁·m + (1−β₁)·g``, ``v ← β₂·v + (1−β₂)·g²``, ``w ← w − ηᵢ·√(1−β₂ᵗ)/(1−β₁ᵗ)·m/(√v + ε)``.

    t counts the solver's steps. This is the order of computation at the end of the paper's section 2, in which ε is
    not bias-corrected.

    Parameters
    ----------
    learn_rate : float >= 0, default 0.001
    gradient_decay_factor : float in [0, 1), default 0.9
        β₁.
    squared_gradient_decay_factor : float in [0, 1), default 0.999
        β₂.
    epsilon : float > 0, default 1e-8
    **properties
        Those of every `Solver`.

    References
    ----------
    Kingma and Ba, Adam: a method for stochastic optimization, 2014, arXiv:1412.6980.

    Examples
    --------
    >>> import numpy as np, lnorm
    >>> w, layer = lnorm.Learnable(np.ones((2, 3)), "w"), lnorm.LayerNormalizationLayer(dtype="float64")
    >>> y = layer.forward(np.array([[1.0, 2.0]]) @ w.value + [0, 1, 2])
    >>> dy = layer.backward(y)
    >>> w.gradient = np.array([[1.0], [2.0]]) @ dy
    >>> solver = lnorm.Adam(learn_rate=0.1, l2_regularization=0)
    >>> solver.step(w, layer)
    >>> layer.scale.round(3)
    array([0.9, 1. , 0.9])
    """

    __slots__ = ()
    moments = ("gradient_average", "squared_gradient_average")
    learn_rate = Property(0.001, NOT_NEGATIVE)
    gradient_decay_factor = Property(0.9, FRACTION)
    squared_gradient_decay_factor = Property(0.999, FRACTION)
    epsilon = Property(1e-8, POSITIVE)

    def _update(self, w: np.ndarray, g: np.ndarray, rate: float, step: int, *moments: np.ndarray) -> None:
        m, v = moments
        beta1, beta2 = self.gradient_decay_factor, self.squared_gradient_decay_factor
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * g**2
        correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
        w -= rate * correction * m / (np.sqrt(v) + self.epsilon)
