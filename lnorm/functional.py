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
from .properties import describe, is_masked

DTYPES = "float32, float64, integers and bool (computed as float64)"


# --- checks --------------------------------------------------------------------------------------------------------


def check_epsilon(epsilon: Any) -> float:
    """A real, finite number >= 0, as a float."""
    if type(epsilon) is np.ndarray and epsilon.ndim == 0:
        epsilon = epsilon[()]
    # NumPy registers timedelta64 as a real number, and bool_ not.
    if not isinstance(epsilon, (Real, np.bool_)) or isinstance(epsilon, np.timedelta64):
        raise TypeError(f"epsilon must be a real number, got {describe(epsilon)}")
    try:
        value = float(epsilon)
    except OverflowError:
        value = math.inf
    except TypeError as error:
        raise TypeError(f"epsilon must be a real number, got {describe(epsilon)}: {error}") from None
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"epsilon must be finite and at least 0, got {describe(epsilon)}")
    return value


def check_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """The normalized axes as non-negative ints in ascending order, that is in C order."""
    try:
        # Not by map: a StopIteration of an object's own would end it early.
        axes = tuple([operator.index(a) for a in (axis if isinstance(axis, (tuple, list)) else (axis,))])
    except TypeError:
        raise TypeError(f"axis must be an int or a tuple of ints, got {describe(axis)}") from None
    if not axes:
        raise ValueError("axis must name at least one axis to normalize over, got ()")
    try:
        return tuple(sorted(normalize_axis_tuple(axes, ndim, argname="axis")))
    except np.exceptions.AxisError:
        raise
    except OverflowError:
        raise np.exceptions.AxisError(
            f"axis: {describe(axis)} is out of bounds for array of dimension {ndim}"
        ) from None
    except ValueError:
        raise ValueError(
            f"axis must not name an axis twice, got {describe(axis)} for an array of {ndim} dimensions"
        ) from None


def check_array(name: str, value: Any) -> np.ndarray:
    """An ndarray proper of real numbers that have a float32 or float64 to be computed in."""
    if is_masked(value):
        raise TypeError(
            f"{name} is a masked array, and its mask would be ignored; fill it first, for example {name}.filled(0)"
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} must be an array of {DTYPES}, got {type(value).__name__}: {error}") from None
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8)):
        raise TypeError(f"{name} has dtype {array.dtype}; accepted are {DTYPES}")
    return array


def broadcasts(shape: tuple[int, ...], against: tuple[int, ...]) -> bool:
    """Whether NumPy broadcasts one shape to the other. (numpy.broadcast_shapes takes no more than 32 dimensions.)"""
    pairs = zip(reversed(shape), reversed(against))
    return len(shape) <= len(against) and all(a in (1, b) for a, b in pairs)


def check_parameter(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """scale or offset in the precision of x; it may be broadcast against x, but not enlarge it."""
    if value is None:
        return None
    array = check_array(name, value)
    if not broadcasts(array.shape, shape):
        raise ValueError(f"{name} of shape {array.shape} cannot be broadcast to x of shape {shape}")
    return in_precision(array, dtype)


def in_precision(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array itself, or a copy of this dtype, native and aligned."""
    if is_native(array, dtype):
        return array
    with np.errstate(all="ignore"):
        return np.require(array, dtype, "A")


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`out` as an ndarray proper: what a subclass says of itself need not be what its memory is."""
    if not isinstance(out, np.ndarray) or is_masked(out):
        raise TypeError(f"out must be a numpy.ndarray or None, got {type(out).__name__}")
    out = np.asarray(out)
    if out.dtype.kind != "f" or out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"out has dtype {out.dtype}; the result is {dtype}")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; the result has shape {shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; a writeable array is needed")
    return out


def compute_dtype(x: np.ndarray) -> np.dtype:
    """float32 and float64 in their own precision, integers and bool in float64; always native."""
    return x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.dtype(np.float64)


# --- planning ------------------------------------------------------------------------------------------------------


def is_native(array: np.ndarray, dtype: np.dtype) -> bool:
    return array.dtype == dtype and array.dtype.isnative and array.flags.aligned


def same_elements(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether every element of a is at the same place as that of b."""
    return _core.same_place(a, b) and a.strides == b.strides


def kept_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with the normalized axes kept as 1."""
    return tuple(1 if d in axes else size for d, size in enumerate(shape))


def new_result(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array like x, with its memory laid out in the same order."""
    return _core.mapped(np.empty_like(x, dtype, subok=False))


def plan_forward(
    x: Any, scale: Any, offset: Any, axis: Any, epsilon: Any, out: Any, return_stats: bool
) -> Any:
    return_stats = bool(return_stats)  # Foreign code runs before the checks, never after them.
    if any(is_foreign(a) for a in (x, scale, offset)):
        return dispatch(x, scale, offset, axis, epsilon, out, return_stats)
    epsilon = check_epsilon(epsilon)
    x = check_array("x", x)
    axes = check_axes(axis, x.ndim)
    scale, offset = (
        None if value is None else check_array(name, value)
        for name, value in (("scale", scale), ("offset", offset))
    )
    dtype = compute_dtype(x)
    scale = check_parameter("scale", scale, x.shape, dtype)
    offset = check_parameter("offset", offset, x.shape, dtype)
    result, target = out, None if out is None else check_out(out, x.shape, dtype)
    out = target if target is not None and is_native(target, dtype) else new_result(x, dtype)
    if target is None:
        result = out
    mean = rstd = None
    if return_stats:
        mean, rstd = (np.full(kept_shape(x.shape, axes), np.nan) for _ in range(2))
        result = result, mean, rstd
    if x.size:
        if scale is not None and np.may_share_memory(scale, out):
            scale = scale.copy()
        if offset is not None and np.may_share_memory(offset, out):
            offset = offset.copy()
        # What the kernels cannot read, NumPy copies (and casts) to where the result goes; then it is done in place.
        copied = not is_native(x, dtype) or (np.may_share_memory(x, out) and not same_elements(x, out))
        order = [d for d in range(x.ndim) if d not in axes] + list(axes)
        # All that needs memory has it now: nothing below fails after out is written.
        _core.forward(x, scale, offset, out, mean, rstd, order, len(axes), epsilon, copied)
    if target is not None and target is not out:
        target[...] = out
    return result


def plan_backward(
    dy: Any, x: Any, scale: Any, axis: Any, epsilon: Any, mean: Any, rstd: Any, param_grads: bool, out: Any
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    for name, value in (("dy", dy), ("x", x), ("scale", scale)):
        if is_foreign(value):
            raise TypeError(
                f"{name} is a {type(value).__name__}, and layer_norm_backward takes NumPy arrays only; "
                f"convert it first, or apply layer_norm_backward to each of its blocks"
            )
    param_grads = bool(
        param_grads
    )  # Foreign code runs before the checks of shapes and dtypes, never after them.
    epsilon = check_epsilon(epsilon)
    x = check_array("x", x)
    axes = check_axes(axis, x.ndim)
    dy = check_array("dy", dy)
    mean, rstd = (
        None if value is None else check_array(name, value)
        for name, value in (("mean", mean), ("rstd", rstd))
    )
    if scale is not None:
        scale = check_array("scale", scale)
    dtype = compute_dtype(x)
    scale = check_parameter("scale", scale, x.shape, dtype)
    if dy.shape != x.shape:
        raise ValueError(f"dy has shape {dy.shape}; it must have the shape of x, {x.shape}")
    if (mean is None) != (rstd is None):
        missing, given = ("mean", "rstd") if mean is None else ("rstd", "mean")
        raise ValueError(
            f"{given} was given without {missing}; give both, as layer_norm returned them, or neither"
        )
    kept = kept_shape(x.shape, axes)
    if mean is not None:
        for name, array in (("mean", mean), ("rstd", rstd)):
            if array.shape != kept:
                raise ValueError(
                    f"{name} has shape {array.shape}; for x of shape {x.shape} and axis={axis!r} it is {kept}"
                )
    x, dy = in_precision(x, dtype), in_precision(dy, dtype)
    target = None if out is None else check_out(out, x.shape, dtype)
    dx = target if target is not None and is_native(target, dtype) else new_result(x, dtype)
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
    grads: list[np.ndarray | None] = [None, None]
    copies = []
    if param_grads:
        dscale, doffset = (np.zeros([full[d] for d in order], dtype) for _ in range(2))
        back = tuple(order.index(d) for d in range(x.ndim))
        for i, a in enumerate((dscale.transpose(back), doffset.transpose(back))):
            # In C order and of the shape of scale: a copy where the axes change places, filled below.
            grad = np.ascontiguousarray(a)
            grads[i] = grad.reshape(shape)
            if not np.may_share_memory(grad, a):
                copies.append((grad.reshape(a.shape), a))
    result = dx if target is None else out, grads[0], grads[1]
    if x.size:
        if mean is not None:
            mean, rstd = (np.ascontiguousarray(a.transpose(order), np.float64) for a in (mean, rstd))
        inner = np.empty([full[d] for d in axes], np.int8)  # for its strides: bytes here are elements there
        strides = [0] * (len(varying) + len(shared)) + [
            s if n > 1 else 0 for s, n in zip(inner.strides, inner.shape)
        ]
        _core.backward(
            dy,
            x,
            scale,
            dx,
            mean,
            rstd,
            dscale,
            doffset,
            strides,
            math.prod(x.shape[d] for d in varying),
            inner.size,
            order,
            len(axes),
            epsilon,
        )
    if copies:  # an iterator needs memory too
        for grad, a in copies:
            np.copyto(grad, a)
    if target is not None and dx is not target:
        target[...] = dx
    return result


# --- foreign arrays ------------------------------------------------------------------------------------------------


def is_foreign(value: Any) -> bool:
    """An array type with its own __array_ufunc__, such as dask's."""
    own = getattr(type(value), "__array_ufunc__", np.ndarray.__array_ufunc__)
    return own is not np.ndarray.__array_ufunc__ and not (isinstance(value, np.generic) or is_masked(value))


def dispatch(x: Any, scale: Any, offset: Any, axis: Any, epsilon: Any, out: Any, return_stats: bool) -> Any:
    """Hand the call to the array type itself, by NumPy's protocol, as a generalized ufunc over the last axis."""
    epsilon = check_epsilon(epsilon)
    ufunc = _core.layer_norm_stats if return_stats else _core.layer_norm_ufunc
    kwargs = {} if out is None else {"out": out}
    shape = getattr(x, "shape", None)
    if shape is None:
        return ufunc(x, 1.0 if scale is None else scale, 0.0 if offset is None else offset, epsilon, **kwargs)
    if not (isinstance(shape, tuple) and hasattr(x, "dtype")):
        raise TypeError(f"x is a {type(x).__name__}, which has an __array_ufunc__ but is no array")
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
        elif not all(hasattr(value, part) for part in ("shape", "ndim", "astype", "reshape")):
            raise TypeError(
                f"{name} is a {type(value).__name__}, which has an __array_ufunc__ but is no array"
            )
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
