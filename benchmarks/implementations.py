"""Who is measured: the plain copy, lnorm, the NumPy expression, and each peer that is installed (`peers/`).

An implementation is a function of a case, its data and the number of threads. It does whatever can be done once, and
returns the call to be timed together with a function from what the call returned to the arrays of the result. What it
cannot do it says by `NotMeasured`, so that the report can.
"""

import importlib
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

import lnorm

from .cases import EPSILON, sum_to


class NotMeasured(Exception):
    """The reason, for the report."""


def given_output(case, data):
    """Where the implementation has to write, or None if it allocates; in place, this is also its input."""
    return None if case.into == "new" else data.out


def source(case, data):
    return data.out if case.into == "in place" else data.x


def copy(case, data, threads):
    x, out = data.x, data.out
    if case.into == "new":
        return lambda: x.copy(), lambda y: (y,)
    return lambda: np.copyto(out, x), lambda _: (out,)


def ours(case, data, threads):
    lnorm.set_num_threads(threads)
    x, scale, offset, dy = source(case, data), data.scale, data.offset, data.dy
    axis, out, mean, rstd = case.axis, given_output(case, data), data.mean, data.rstd
    layer_norm, layer_norm_backward = lnorm.layer_norm, lnorm.layer_norm_backward
    if case.backward:
        return (
            lambda: layer_norm_backward(dy, x, scale, axis=axis, mean=mean, rstd=rstd, out=out),
            lambda gradients: gradients,
        )
    if case.layer:
        predict = lnorm.LayerNormalizationLayer(scale=scale, offset=offset).predict
        return lambda: predict(x, out=out), lambda y: (y,)
    if axis == -1:  # as one would write it
        if out is None:
            return lambda: layer_norm(x, scale, offset), lambda y: (y,)
        return lambda: layer_norm(x, scale, offset, out=out), lambda y: (y,)
    return lambda: layer_norm(x, scale, offset, axis=axis, out=out), lambda y: (y,)


def numpy_expression(case, data, threads):
    if threads > 1:
        raise NotMeasured("has one thread")
    if case.layer:
        raise NotMeasured("has no layer")
    x, scale, offset, dy, axes = source(case, data), data.scale, data.offset, data.dy, case.axes
    out, epsilon = given_output(case, data), np.dtype(case.dtype).type(EPSILON)

    def forward():
        y = np.subtract(x, x.mean(axes, keepdims=True), out=out)
        y /= np.sqrt(np.square(y).mean(axes, keepdims=True) + epsilon)
        y *= scale
        y += offset
        return y

    if not case.backward:
        return forward, lambda y: (y,)
    mean, rstd = data.mean.astype(case.dtype), data.rstd.astype(case.dtype)

    def backward():
        xhat = x - mean
        xhat *= rstd
        dscale, doffset = sum_to(dy * xhat, scale.shape), sum_to(dy, scale.shape)
        dx = np.multiply(dy, scale, out=out)
        xhat *= (dx * xhat).mean(axes, keepdims=True)
        dx -= dx.mean(axes, keepdims=True)
        dx -= xhat
        dx *= rstd
        return dx, dscale, doffset

    return backward, lambda gradients: gradients


# name in the reports -> the module it needs, and its room in peers/
PEERS = {"numba": "numba", "ONNX Runtime": "onnxruntime", "PyTorch": "torch", "JAX": "jax"}
OWN = {"copy": copy, "lnorm": ours, "NumPy": numpy_expression}
NAMES = [*OWN, *PEERS]


def peer(name):
    """The peer's `prepare`, or why there is none."""
    module = PEERS[name]
    if find_spec(module) is None or (module == "onnxruntime" and find_spec("onnx") is None):
        raise NotMeasured("not installed")
    return importlib.import_module(f".peers.with_{module}", __package__).prepare


def prepare(name, case, data, threads):
    """(call, arrays of the result from what the call returned)"""
    return (OWN[name] if name in OWN else peer(name))(case, data, threads)


def missing(names):
    """Those of the peers that cannot be measured here at all: name -> why."""
    found = {}
    for name in names:
        try:
            peer(name)
        except NotMeasured as reason:
            found[name] = str(reason)
    return found


def versions():
    packages = {"NumPy": "numpy", **{name: module for name, module in PEERS.items() if find_spec(module)}}
    return {"lnorm": lnorm.__version__, **{name: version(package) for name, package in packages.items()}}
