"""From any input to planned arrays: axes, broadcasting, dtypes, overlap, foreign array types.

Every argument is checked here and nowhere below. `_core` holds the public functions themselves; what they cannot take
as it is comes to `plan_forward` and `plan_backward`, which hand it back with the normalized axes last, the parameters
broadcast (strides of zero, no memory) and one native dtype.
"""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from . import _core

DTYPES = "float32, float64, integers and bool (computed as float64)"


# --- checks --------------------------------------------------------------------------------------------------------


def check_epsilon(epsilon: Any) -> float:
    """A real, finite number >= 0, as a float."""
    scalar_array = isinstance(epsilon, np.ndarray) and epsilon.ndim == 0 and epsilon.dtype.kind in "fiub"
    if not (isinstance(epsilon, Real) or scalar_array):
        raise TypeError(f"epsilon must be a real number, got {epsilon!r}")
    try:
        value = float(epsilon)
    except OverflowError:
        value = math.inf
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"epsilon must be finite and at least 0, got {epsilon!r}")
    return value


def check_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """The normalized axes as non-negative ints in ascending order, that is in C order."""
    try:
        axes = (
            tuple(map(operator.index, axis)) if isinstance(axis, (tuple, list)) else (operator.index(axis),)
        )
    except TypeError:
        raise TypeError(f"axis must be an int or a tuple of ints, got {axis!r}") from None
    if not axes:
        raise ValueError("axis must name at least one axis to normalize over, got ()")
    try:
        return tuple(sorted(normalize_axis_tuple(axes, ndim, argname="axis")))
    except ValueError as error:
        if isinstance(error, np.exceptions.AxisError):
            raise
        raise ValueError(
            f"axis must not name an axis twice, got {axis!r} for an array of {ndim} dimensions"
        ) from None


def check_array(name: str, value: Any) -> np.ndarray:
    """An ndarray proper of real numbers that have a float32 or float64 to be computed in."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, and its mask would be ignored; fill it first, for example {name}.filled(0)"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name} must be an array of {DTYPES}, got {type(value).__name__}: {error}") from None
    if array.dtype.kind not in "biu" and array.dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise TypeError(f"{name} has dtype {array.dtype}; accepted are {DTYPES}")
    return array


def check_parameter(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """scale or offset in the precision of x; it may be broadcast against x, but not enlarge it."""
    if value is None:
        return None
    array = check_array(name, value)
    try:
        fits = np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} of shape {array.shape} cannot be broadcast to x of shape {shape}")
    with np.errstate(all="ignore"):
        return np.require(array, dtype, "A")


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a numpy.ndarray or None, got {type(out).__name__}")
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"out has dtype {out.dtype}; the result is {dtype}")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; the result has shape {shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; a writeable array is needed")


def compute_dtype(x: np.ndarray) -> np.dtype:
    """float32 and float64 in their own precision, integers and bool in float64; always native."""
    return x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.dtype(np.float64)


# --- planning ------------------------------------------------------------------------------------------------------


def is_native(array: np.ndarray, dtype: np.dtype) -> bool:
    return array.dtype == dtype and array.dtype.isnative and array.flags.aligned


def same_elements(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether every element of a is at the same place as that of b."""
    return a.__array_interface__["data"] == b.__array_interface__["data"] and a.strides == b.strides


def arranged(array: np.ndarray | None, shape: tuple[int, ...], order: list[int]) -> np.ndarray | None:
    """A view of the shape of x, with the axes in this order."""
    return None if array is None else np.broadcast_to(array, shape).transpose(order)


def kept_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with the normalized axes kept as 1."""
    return tuple(1 if d in axes else size for d, size in enumerate(shape))


def plan_forward(
    x: Any, scale: Any, offset: Any, axis: Any, epsilon: Any, out: Any, return_stats: bool
) -> Any:
    if any(is_foreign(a) for a in (x, scale, offset)):
        return dispatch(x, scale, offset, axis, epsilon, out, return_stats)
    x = check_array("x", x)
    dtype = compute_dtype(x)
    axes = check_axes(axis, x.ndim)
    epsilon = check_epsilon(epsilon)
    scale = check_parameter("scale", scale, x.shape, dtype)
    offset = check_parameter("offset", offset, x.shape, dtype)
    if out is not None:
        check_out(out, x.shape, dtype)
    result = out
    if out is None or not is_native(out, dtype):
        out = np.empty_like(x, dtype, subok=False)
    mean = rstd = None
    if return_stats:
        mean, rstd = (np.full(kept_shape(x.shape, axes), np.nan) for _ in range(2))
    if x.size:
        if scale is not None and np.may_share_memory(scale, out):
            scale = scale.copy()
        if offset is not None and np.may_share_memory(offset, out):
            offset = offset.copy()
        # What the kernels cannot read, NumPy copies (and casts) to where the result goes; then it is done in place.
        if not is_native(x, dtype) or (np.may_share_memory(x, out) and not same_elements(x, out)):
            np.copyto(out, x, casting="unsafe")
            x = out
        order = [d for d in range(x.ndim) if d not in axes] + list(axes)
        scale, offset = arranged(scale, x.shape, order), arranged(offset, x.shape, order)
        _core.forward(x.transpose(order), scale, offset, out.transpose(order), mean, rstd, len(axes), epsilon)
    if result is None:
        result = out
    elif result is not out:
        result[...] = out
    return (result, mean, rstd) if return_stats else result


def plan_backward(
    dy: Any, x: Any, scale: Any, axis: Any, epsilon: Any, mean: Any, rstd: Any, param_grads: bool, out: Any
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    for name, value in (("dy", dy), ("x", x), ("scale", scale)):
        if is_foreign(value):
            raise TypeError(
                f"{name} is a {type(value).__name__}, and layer_norm_backward takes NumPy arrays only; "
                f"convert it first, or apply layer_norm_backward to each of its blocks"
            )
    x = check_array("x", x)
    dtype = compute_dtype(x)
    axes = check_axes(axis, x.ndim)
    epsilon = check_epsilon(epsilon)
    scale = check_parameter("scale", scale, x.shape, dtype)
    dy = check_array("dy", dy)
    if dy.shape != x.shape:
        raise ValueError(f"dy has shape {dy.shape}; it must have the shape of x, {x.shape}")
    if (mean is None) != (rstd is None):
        missing, given = ("mean", "rstd") if mean is None else ("rstd", "mean")
        raise ValueError(
            f"{given} was given without {missing}; give both, as layer_norm returned them, or neither"
        )
    kept = kept_shape(x.shape, axes)
    if mean is not None:
        mean, rstd = check_array("mean", mean), check_array("rstd", rstd)
        for name, array in (("mean", mean), ("rstd", rstd)):
            if array.shape != kept:
                raise ValueError(
                    f"{name} has shape {array.shape}; for x of shape {x.shape} and axis={axis!r} it is {kept}"
                )
    with np.errstate(all="ignore"):
        x, dy = np.require(x, dtype, "A"), np.require(dy, dtype, "A")
    if out is not None:
        check_out(out, x.shape, dtype)
    dx = out if out is not None and is_native(out, dtype) else np.empty_like(x, subok=False)
    x, dy = (a.copy() if np.may_share_memory(a, dx) and not same_elements(a, dx) else a for a in (x, dy))
    if scale is not None and np.may_share_memory(scale, dx):
        scale = scale.copy()

    # The gradient's shape against x: 1 wherever the parameters are broadcast. Axes along which they differ from one
    # observation to the next come first, so that observations that share them stand together.
    if scale is None:
        full = tuple(size if d in axes else 1 for d, size in enumerate(x.shape))
        shape = tuple(x.shape[d] for d in axes)
    else:
        full = (1,) * (x.ndim - scale.ndim) + scale.shape
        shape = scale.shape
    varying = [d for d in range(x.ndim) if d not in axes and full[d] != 1]
    shared = [d for d in range(x.ndim) if d not in axes and full[d] == 1]
    order = varying + shared + list(axes)
    dscale = doffset = None
    if param_grads:
        dscale, doffset = (np.zeros([full[d] for d in order], dtype) for _ in range(2))
    if x.size:
        inner = np.empty([full[d] for d in axes], np.int8)  # for its strides: bytes here are elements there
        strides = [0] * (len(varying) + len(shared)) + [
            s if n > 1 else 0 for s, n in zip(inner.strides, inner.shape)
        ]
        if mean is not None:
            mean, rstd = (np.ascontiguousarray(a.transpose(order), np.float64) for a in (mean, rstd))
        _core.backward(
            dy.transpose(order),
            x.transpose(order),
            arranged(scale, x.shape, order),
            dx.transpose(order),
            mean,
            rstd,
            dscale,
            doffset,
            strides,
            math.prod(x.shape[d] for d in varying),
            inner.size,
            len(axes),
            epsilon,
        )
    if out is not None and dx is not out:
        out[...] = dx
        dx = out
    if dscale is None or doffset is None:
        return dx, None, None
    back = np.argsort(order)
    return dx, *(np.ascontiguousarray(a.transpose(back)).reshape(shape) for a in (dscale, doffset))


# --- foreign arrays ------------------------------------------------------------------------------------------------


def is_foreign(value: Any) -> bool:
    """An array type with its own __array_ufunc__, such as dask's."""
    own = getattr(type(value), "__array_ufunc__", np.ndarray.__array_ufunc__)
    return own is not np.ndarray.__array_ufunc__ and not isinstance(value, (np.generic, np.ma.MaskedArray))


def dispatch(x: Any, scale: Any, offset: Any, axis: Any, epsilon: Any, out: Any, return_stats: bool) -> Any:
    """Hand the call to the array type itself, by NumPy's protocol, as a generalized ufunc over the last axis."""
    epsilon = check_epsilon(epsilon)
    ufunc = _core.layer_norm_stats if return_stats else _core.layer_norm_ufunc
    kwargs = {} if out is None else {"out": out}
    shape = getattr(x, "shape", None)
    if shape is None:
        return ufunc(x, 1.0 if scale is None else scale, 0.0 if offset is None else offset, epsilon, **kwargs)
    axes = check_axes(axis, len(shape))
    dtype = np.dtype(np.float32) if np.dtype(x.dtype) == np.float32 else np.dtype(np.float64)
    inner = tuple(shape[d] for d in axes)
    order = [d for d in range(len(shape)) if d not in axes] + list(axes)
    last = order == list(range(len(shape))) and len(axes) == 1

    def parameter(name: str, value: Any, default: float) -> Any:
        """With the normalized axes last, made one, and of x's precision."""
        if value is None:
            return np.broadcast_to(dtype.type(default), (math.prod(inner),))
        if not is_foreign(value):
            value = check_parameter(name, value, tuple(shape), dtype)
        if last and value.ndim and value.shape[-1] == shape[-1]:
            return value.astype(dtype)
        value = value.reshape((1,) * (len(shape) - value.ndim) + value.shape).astype(dtype)
        value = np.broadcast_to(
            value, tuple(shape[d] if d in axes else value.shape[d] for d in range(len(shape)))
        )
        return value.transpose(order).reshape(tuple(value.shape[d] for d in order[: -len(axes)]) + (-1,))

    scale, offset = parameter("scale", scale, 1), parameter("offset", offset, 0)
    if last:
        result = ufunc(x, scale, offset, epsilon, **kwargs)
        if not return_stats:
            return result
        y, mean, rstd = result
        return y, mean[..., None], rstd[..., None]
    if out is not None:
        raise TypeError(
            f"out is not supported for {type(x).__name__} unless axis is the last one, got axis={axis!r}"
        )
    outer = tuple(shape[d] for d in order[: -len(axes)])
    flat = x.transpose(order).reshape((*outer, math.prod(inner)))
    result = ufunc(flat, scale, offset, epsilon)
    y, *stats = result if return_stats else (result,)
    y = y.reshape(outer + inner).transpose([order.index(d) for d in range(len(shape))])
    return (y, *(s.reshape(kept_shape(tuple(shape), axes)) for s in stats)) if return_stats else y


_core.set_planning(plan_forward, plan_backward)
