"""The layer: properties, checks and learnables. Labels become axes and shapes; layer_norm does the mathematics."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from . import properties as p
from ._core import layer_norm, layer_norm_backward
from .functional import check_array
from .properties import Checked, Constant, Learnable, Property, Rule, describe

PARAMETERS = ("offset", "scale")
DEFAULT_FORMATS = {2: "BC", 3: "BTC", 4: "BSSC", 5: "BSSSC"}
# Which labels share a mean. "auto" follows the data: images and volumes have at least two spatial dimensions.
NORMALIZED: dict[str, Callable[[str], str]] = {
    "batch-excluded": lambda labels: "STC",
    "channel-only": lambda labels: "C",
    "spatial-channel": lambda labels: "SC",
    "auto": lambda labels: "SC" if labels.count("S") >= 2 else "C",
}
INITIALIZERS: dict[str, Callable[[tuple[int], np.random.Generator], np.ndarray]] = {
    "ones": lambda sz, rng: np.ones(sz),
    "zeros": lambda sz, rng: np.zeros(sz),
    "narrow-normal": lambda sz, rng: rng.normal(0, 0.01, sz),
}


def _is_format(labels: str | None) -> bool:
    most = {"C": 1, "B": 1, "T": 1, "S": math.inf}
    return labels is None or (
        "C" in labels and all(labels.count(label) <= most.get(label, 0) for label in labels)
    )


def _channel_values(value: Any) -> np.ndarray | None:
    """One value per channel, copied, because solvers change it in place."""
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or p.is_masked(value):  # A mask would be ignored.
        raise TypeError
    if array.size == 0 or array.size != max(array.shape, default=0):
        raise ValueError
    return np.array(array).reshape(-1)


def _shape(name: str, data: Any) -> tuple[int, ...]:
    """The shape of data in the layer's format, also of an array type other than NumPy's."""
    try:
        shape = data.shape
    except (AttributeError, ValueError):  # such as a memoryview that was released
        shape = None
    return shape if isinstance(shape, tuple) else check_array(name, data).shape


def _dtype(value: Any) -> np.dtype:
    if value is None:  # To NumPy, None is float64.
        raise TypeError
    return np.dtype(value)


def _is_rng(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, (list, tuple)) and not all(isinstance(word, numbers.Integral) for word in value):
        raise TypeError  # NumPy's recursion into lists in themselves ends in a crash.
    if issubclass(type(value), np.ndarray) and value.dtype.kind not in "iu":
        raise TypeError
    np.random.default_rng(value)  # For its errors: NumPy says what it takes.
    return True


COUNT = Rule(
    "'auto' or a positive int, no more than an array can have",
    (str, numbers.Integral),
    lambda count: count == "auto" or (isinstance(count, int) and 0 < count <= sys.maxsize // 8),
    lambda count: count if isinstance(count, str) else int(count),
)
INITIALIZER = Rule(
    f"one of {', '.join(map(repr, INITIALIZERS))} or a callable",
    (str, Callable),
    lambda initializer: callable(initializer) or initializer in INITIALIZERS,
)
FORMAT = Rule(
    "None or a string of labels: one C, at most one B and one T, any S", (str, NoneType), _is_format
)
DTYPE = Rule("float32 or float64", object, lambda dtype: dtype in (np.float32, np.float64), _dtype)
RNG = Rule("what numpy.random.default_rng takes", object, _is_rng)
VALUES = Rule("None or one real number per channel, in one dimension", object, convert=_channel_values)


class Plan(NamedTuple):
    """What the labels mean for data of one number of dimensions."""

    axis: int | tuple[int, ...]
    scale: np.ndarray  # A view of the layer's own, shaped to broadcast against the data, like offset.
    offset: np.ndarray
    epsilon: float
    channel: int  # The position of the channels among the dimensions, and their number:
    num_channels: int


class LayerNormalizationLayer(Checked):
    """Layer normalization with one learnable scale and offset per channel.

    Each observation is normalized by the mean and variance of its own elements, then scaled and shifted per
    channel: ``y = scale*(x - mean)/sqrt(variance + epsilon) + offset`` (Ba, Kiros and Hinton, 2016,
    arXiv:1607.06450). All arguments are keywords. Each is also a property, checked in the same way whenever
    it is set; an error leaves the layer as it was.

    Parameters
    ----------
    name : str, default ""
    epsilon : float >= 1e-5, default 1e-5
    num_channels : "auto" or int > 0, default "auto"
        Fixed by the first data, by `initialize`, or by setting `scale` or `offset`; data with another number
        of channels is an error from then on.
    dtype : float32 or float64, default float32
        Of the learnables. A result has the dtype of its data.
    data_format : str or None, default None
        A label for each dimension of the data, in its order: C (channel, exactly one), B (batch, the
        observations, at most one), T (time, at most one), S (space, any number). None goes by the number of
        dimensions: "BC", "BTC", "BSSC", "BSSSC". Data is never transposed into another order.
    operation_dimension : str, default "batch-excluded"
        Which dimensions share a mean: all but B in "batch-excluded", C in "channel-only", S and C in
        "spatial-channel"; "auto" is "spatial-channel" for data with two S or more and "channel-only"
        otherwise.
    scale_initializer, offset_initializer : str or callable, default "ones" and "zeros"
        "ones", "zeros", "narrow-normal" (of standard deviation 0.01), or a function ``f(sz)`` that returns an
        array of shape `sz`, which is ``(num_channels,)``. Used only while `scale` or `offset` is empty.
    rng : default None
        What `numpy.random.default_rng` takes. It draws the scale first, then the offset.
    scale, offset : array or None, default None
        The learnables, 1-D, copied when set. A shape like (1, 1, C) is accepted; None makes them empty.
    scale_learn_rate_factor, offset_learn_rate_factor, scale_l2_factor, offset_l2_factor : float >= 0, default
    1.0
        What a solver's learn rate and L2 regularization are multiplied by.

    Attributes
    ----------
    num_inputs, input_names, num_outputs, output_names
        1, ("in",), 1 and ("out",); read-only.

    Raises
    ------
    TypeError
        For a keyword that is no argument, and for values of the wrong kind.
    ValueError
        For wrong values, and when `num_channels`, `scale` and `offset` contradict each other.

    See Also
    --------
    lnorm.layer_norm : the function behind it.

    Notes
    -----
    ``str(layer)`` is a display in groups. ``repr(layer)`` is Python that makes the layer again, learnables
    included (a function or a random generator is shown by its name).

    Examples
    --------
    >>> import numpy as np, lnorm
    >>> layer = lnorm.LayerNormalizationLayer(name="layernorm")
    >>> layer.predict(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])).round(3)
    array([[-1.225,  0.   ,  1.225],
           [ 0.   ,  0.   ,  0.   ]])
    >>> print(layer)
    LayerNormalizationLayer with properties:
    <BLANKLINE>
               name: 'layernorm'
       num_channels: 3
    <BLANKLINE>
       Hyperparameters
            epsilon: 1e-05
    <BLANKLINE>
       Learnable parameters
             offset: (3,) float32
              scale: (3,) float32
    """

    __slots__ = ("_filling", "_forwarded", "_plans")

    name = Property("", p.TEXT)
    epsilon = Property(1e-5, p.number("a finite number >= 1e-05", lambda value: 1e-5 <= value < math.inf))
    num_channels = Property("auto", COUNT)
    dtype = Property(np.dtype(np.float32), DTYPE)
    data_format = Property(None, FORMAT)
    operation_dimension = Property("batch-excluded", p.one_of(*NORMALIZED))
    scale_initializer = Property("ones", INITIALIZER)
    offset_initializer = Property("zeros", INITIALIZER)
    rng = Property(None, RNG)
    scale = Property(None, VALUES)
    offset = Property(None, VALUES)
    scale_learn_rate_factor = Property(1.0, p.NOT_NEGATIVE)
    offset_learn_rate_factor = Property(1.0, p.NOT_NEGATIVE)
    scale_l2_factor = Property(1.0, p.NOT_NEGATIVE)
    offset_l2_factor = Property(1.0, p.NOT_NEGATIVE)
    num_inputs = Constant(1)
    input_names = Constant(("in",))
    num_outputs = Constant(1)
    output_names = Constant(("out",))

    def __init__(self, **properties: Any) -> None:
        self._forwarded: tuple[Any, ...] | None = None  # What backward needs of the last forward.
        super().__init__(**properties)

    @classmethod
    def from_arrays(
        cls, scale: Any, offset: Any, *, epsilon: float = 1e-5, **properties: Any
    ) -> LayerNormalizationLayer:
        """A layer with the given learnables, such as those of a trained network.

        Parameters
        ----------
        scale, offset : array of C values, or None for what the initializer gives
        epsilon : float >= 1e-5
        **properties
            Any other property of the layer.

        Returns
        -------
        LayerNormalizationLayer

        Raises
        ------
        TypeError, ValueError
            As the constructor does; also when the two sizes differ.

        Examples
        --------
        >>> import lnorm
        >>> lnorm.LayerNormalizationLayer.from_arrays([1, 2], [0, 0.5], epsilon=1e-3)
        LayerNormalizationLayer(epsilon=0.001, num_channels=2, scale=[1.0, 2.0], offset=[0.0, 0.5])
        """
        return cls(scale=scale, offset=offset, epsilon=epsilon, **properties)

    def _assign(self, values: dict[str, Any]) -> None:
        state = self._state | values
        for name in PARAMETERS:
            if state[name] is None:
                state.pop(f"{name}_gradient", None)  # The next value may have another size.
                continue
            state[name] = state[name].astype(state["dtype"], copy=False)
            size, count = state[name].size, state["num_channels"]
            if count not in ("auto", size):
                raise ValueError(
                    f"{name} must have one value per channel: {size} values, num_channels = {describe(count)}"
                )
            state["num_channels"] = size
        # Made first: where there is no memory for them, nothing has changed.
        plans: dict[int, Plan] = {}
        filling: dict[str, dict[str, Any]] = {}  # in this order, see _fill
        self._state, self._plans, self._filling = state, plans, filling

    def initialize(self, data: Any) -> LayerNormalizationLayer:
        """Fix the number of channels, and fill what is empty of `scale` and `offset` by the initializers.

        Parameters
        ----------
        data : array or int
            Data in the layer's format, of which only the shape matters, or the number of channels.

        Returns
        -------
        LayerNormalizationLayer
            The layer itself.

        Raises
        ------
        ValueError
            If the number of channels is fixed already and another one, if the data is not in the layer's
            format, or if an initializer returns another shape. The layer is unchanged then.

        Examples
        --------
        >>> import lnorm
        >>> lnorm.LayerNormalizationLayer().initialize(3).scale
        array([1., 1., 1.], dtype=float32)
        """
        if isinstance(data, numbers.Integral):
            self._fill(data)
        else:
            self._resolve(_shape("data", data))
        return self

    def _fill(self, num_channels: Any) -> None:
        count = self._properties["num_channels"].check(num_channels)
        if self.num_channels not in ("auto", count):
            raise ValueError(
                f"data must have num_channels = {describe(self.num_channels)} channels, not {describe(count)}"
            )
        # Where the first data comes in several threads at once, all take what the first of them filled in.
        filling = self._filling
        empty = [name for name in ("scale", "offset") if self._state[name] is None]
        if empty:
            rng = np.random.default_rng(self.rng)
            values = {name: self._initial(name, (count,), rng) for name in empty}
            self._assign(filling.setdefault("values", {"num_channels": count, **values}))

    def _initial(self, name: str, sz: tuple[int], rng: np.random.Generator) -> np.ndarray:
        initializer = self._state[f"{name}_initializer"]
        value = initializer(sz) if callable(initializer) else INITIALIZERS[initializer](sz, rng)
        if np.shape(value) != sz:
            raise ValueError(f"{name}_initializer must return an array of shape {sz}, not {describe(value)}")
        return self._properties[name].check(value)

    def _resolve(self, shape: tuple[int, ...]) -> Plan:
        labels = self.data_format or DEFAULT_FORMATS.get(len(shape))
        if labels is None or len(labels) != len(shape):
            raise ValueError(
                f"data_format must have one label per dimension of the data: {labels!r}, {shape}; set it"
            )
        channel = labels.index("C")
        before = self._state
        self._fill(shape[channel])
        # In this order: another thread may set a property meanwhile, and no plan may outlive its state.
        plans, state = self._plans, self._state
        try:
            normalized = NORMALIZED[state["operation_dimension"]](labels)
            axis = tuple(i - len(labels) for i, label in enumerate(labels) if label in normalized)
            scale, offset = (
                state[name].reshape(-1, *[1] * (len(labels) - channel - 1)) for name in ("scale", "offset")
            )
            plan = Plan(
                axis if len(axis) > 1 else axis[0], scale, offset, state["epsilon"], channel, scale.size
            )
            plans[len(shape)] = plan
        except BaseException:
            self._undo(before, state)
            raise
        return plan

    def _undo(self, before: dict[str, Any], initialized: dict[str, Any]) -> None:
        """An empty layer is empty again, unless another thread has changed it since."""
        if self._state is initialized is not before:
            self._state, self._plans = before, {}

    def _plan(self, x: Any) -> Plan:
        shape = x.shape if type(x) is np.ndarray else _shape("x", x)
        plan = self._plans.get(len(shape)) or self._resolve(shape)
        if shape[plan.channel] != plan.num_channels:
            self._fill(shape[plan.channel])  # Raises: the number of channels is fixed.
        return plan

    def _normalize(self, x: Any, out: np.ndarray | None = None, return_stats: bool = False) -> Any:
        """y; with statistics, all that backward needs is kept. Data that is refused initializes no layer."""
        before = self._state
        plan = self._plan(x)
        initialized = self._state
        try:
            if not return_stats:
                return layer_norm(x, plan.scale, plan.offset, axis=plan.axis, epsilon=plan.epsilon, out=out)
            y, mean, rstd = layer_norm(
                x, plan.scale, plan.offset, axis=plan.axis, epsilon=plan.epsilon, return_stats=True
            )
            self._forwarded = x, mean, rstd, plan
            return y
        except BaseException:
            self._undo(before, initialized)
            raise

    def predict(self, x: Any, out: np.ndarray | None = None) -> Any:
        """Normalize, and keep nothing; ``layer(x)`` is the same. Its first data initializes an empty layer.

        Parameters
        ----------
        x : array in the layer's format
        out : array of the result's shape and dtype, optional
            May be `x` itself.

        Returns
        -------
        array
            Of the shape and dtype of `x` (float64 for integers); `out` if it was given.

        Raises
        ------
        TypeError, ValueError
            If `x` does not have the layer's format or number of channels, and what `lnorm.layer_norm` raises.

        Examples
        --------
        >>> import numpy as np, lnorm
        >>> layer = lnorm.LayerNormalizationLayer(data_format="CB")
        >>> layer.predict(np.array([[1.0, 2.0], [3.0, 6.0]])).round(2)
        array([[-1., -1.],
               [ 1.,  1.]])
        """
        return self._normalize(x, out=out)

    __call__ = predict

    def forward(self, x: Any) -> Any:
        """Normalize as `predict` does, and keep what `backward` needs.

        That is references to `x` and to its statistics. Nothing is copied, so do not change `x` before `backward`.

        Parameters
        ----------
        x : array in the layer's format

        Returns
        -------
        array
            Of the shape and dtype of `x` (float64 for integers).

        Raises
        ------
        TypeError, ValueError
            As `predict` does.
        """
        return self._normalize(x, return_stats=True)

    def backward(self, dy: Any, accumulate: bool = False) -> Any:
        """The gradient with respect to the input of the last `forward`; sets the gradients of `learnables`.

        Parameters
        ----------
        dy : array of the shape of that input
            The gradient of the loss with respect to the output.
        accumulate : bool
            Add to the learnables' gradients instead of replacing them.

        Returns
        -------
        array
            Of the shape and dtype of that input.

        Raises
        ------
        RuntimeError
            If there was no `forward`.
        TypeError, ValueError
            What `lnorm.layer_norm_backward` raises.

        Examples
        --------
        >>> import numpy as np, lnorm
        >>> layer = lnorm.LayerNormalizationLayer()
        >>> y = layer.forward(np.array([[1.0, 3.0], [5.0, 2.0]]))
        >>> dx = layer.backward(np.array([[1.0, 0.0], [1.0, 1.0]]))
        >>> offset, scale = layer.learnables
        >>> offset.gradient
        array([2., 1.], dtype=float32)
        """
        if self._forwarded is None:
            raise RuntimeError(
                "backward needs what forward keeps: call forward first (predict keeps nothing)"
            )
        x, mean, rstd, plan = self._forwarded
        dx, dscale, doffset = layer_norm_backward(
            dy, x, plan.scale, axis=plan.axis, epsilon=plan.epsilon, mean=mean, rstd=rstd
        )
        gradients = {}
        for learnable, gradient in zip(self.learnables, (doffset, dscale), strict=True):
            with np.errstate(all="ignore"):
                gradient = np.asarray(gradient, self.dtype).reshape(-1)
                kept = learnable.gradient if accumulate else None
                gradients[f"{learnable.name}_gradient"] = gradient if kept is None else kept + gradient
        self._assign(gradients)  # Both or, where there is no memory, neither.
        return dx

    @property
    def learnables(self) -> tuple[Learnable, Learnable]:
        """`offset` and `scale` as solvers take them: views of the layer, what is set in them is set in it."""
        return _LayerLearnable(self, "offset"), _LayerLearnable(self, "scale")

    def _factor(self, parameter: str, factor: str) -> str:
        if not (isinstance(parameter, str) and parameter in PARAMETERS):
            raise ValueError(
                f"parameter must be one of {', '.join(map(repr, PARAMETERS))}, not {describe(parameter)}"
            )
        return f"{parameter}_{factor}"

    def learn_rate_factor(self, parameter: str) -> float:
        """The learn-rate factor of "scale" or "offset"; any other name is a ValueError."""
        return getattr(self, self._factor(parameter, "learn_rate_factor"))

    def set_learn_rate_factor(self, parameter: str, factor: float) -> None:
        """Set the learn-rate factor of "scale" or "offset" to a number >= 0."""
        setattr(self, self._factor(parameter, "learn_rate_factor"), factor)

    def l2_factor(self, parameter: str) -> float:
        """The L2 factor of "scale" or "offset"; any other name is a ValueError."""
        return getattr(self, self._factor(parameter, "l2_factor"))

    def set_l2_factor(self, parameter: str, factor: float) -> None:
        """Set the L2 factor of "scale" or "offset" to a number >= 0."""
        setattr(self, self._factor(parameter, "l2_factor"), factor)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the learnables, for `numpy.savez`; an empty learnable is an array of size 0.

        Examples
        --------
        >>> import lnorm
        >>> lnorm.LayerNormalizationLayer(scale=[1, 2]).state_dict()
        {'offset': array([], dtype=float32), 'scale': array([1., 2.], dtype=float32)}
        """
        empty = np.empty(0, self.dtype)
        return {
            name: np.array(empty if self._state[name] is None else self._state[name]) for name in PARAMETERS
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the learnables that `state_dict` returned, also by way of `numpy.savez` and `numpy.load`.

        Parameters
        ----------
        state : mapping of "offset" and "scale" to arrays
            Cast to the layer's `dtype`.

        Raises
        ------
        TypeError, ValueError
            If names, dtypes, shapes or the number of channels do not fit. The layer is unchanged then.
        """
        if not isinstance(state, Mapping) or {*state} != {*PARAMETERS}:
            raise ValueError(f"state must be a mapping with the names {PARAMETERS}, not {describe(state)}")
        arrays = [name for name in PARAMETERS if issubclass(type(state[name]), np.ndarray)]
        empty = {name: name in arrays and not state[name].size for name in PARAMETERS}
        values = {name: None if empty[name] else state[name] for name in PARAMETERS}
        self._assign({name: self._properties[name].check(value) for name, value in values.items()})

    # Plans can be made again, and the input of a forward may be too large to be carried along.
    def __getstate__(self) -> dict[str, Any]:
        return self._state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._state, self._plans, self._filling, self._forwarded = state, {}, {}, None

    def __str__(self) -> str:
        lines = [f"{type(self).__name__} with properties:"]
        groups = {
            "": ("name", "num_channels"),
            "Hyperparameters": ("epsilon",),
            "Learnable parameters": PARAMETERS,
        }
        for title, names in groups.items():
            lines += ["", f"   {title}"] if title else [""]
            for name in names:
                value = self._state[name]
                lines.append(f"{name:>15}: {'[]' if value is None else describe(value)}")
        return "\n".join(lines)


class _LayerLearnable(Learnable):
    """One of a layer's learnables: the names of a Learnable for what the layer holds."""

    __slots__ = ("_keys", "_layer")
    name = property(lambda self: self._keys["value"])  # type: ignore[assignment]

    def __init__(self, layer: LayerNormalizationLayer, name: str) -> None:
        self._layer = layer
        self._keys = {"value": name} | {
            k: f"{name}_{k}" for k in ("learn_rate_factor", "l2_factor", "gradient")
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _LayerLearnable, (self._layer, self.name)

    @property
    def _state(self) -> dict[str, Any]:  # type: ignore[override]
        return {key: self._layer._state.get(kept) for key, kept in self._keys.items()}

    def _assign(self, values: dict[str, Any]) -> None:
        rules = (
            self._layer._properties
        )  # The layer's rule for a value is the stricter one: one per channel, copied.
        kept = {self._keys[key]: value for key, value in values.items()}
        self._layer._assign({key: rules[key].check(v) if key in rules else v for key, v in kept.items()})
