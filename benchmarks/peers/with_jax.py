"""JAX on the CPU: `jax.nn.standardize` and its gradient, compiled. It is the fastest formula of those tried; it
takes the variance as mean(x²) - mean(x)², as Flax does by default.

JAX has no way to write into a given output, so it is compared where lnorm allocates as well. The gradient is that of
`jax.vjp`, with what the forward pass left behind given to it: faster than a call that does both.

The number of threads is read from NPROC when XLA starts (`environment` in measure.py): XLA_FLAGS alone left it on 1.2
to 1.9 CPUs. Calls are dispatched by the calling thread: 10 µs against 90 µs for (1, 768).
"""

import os

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_enable_async_dispatch", False)

from ..cases import EPSILON  # noqa: E402
from ..implementations import NotMeasured  # noqa: E402


def prepare(case, data, threads):
    if case.into != "new":
        raise NotMeasured("cannot write into a given output")
    if os.environ.get("NPROC") != str(threads):
        raise NotMeasured("settles its number of threads when it starts")
    axes = case.axes

    def layer_norm(x, scale, offset):
        return jax.nn.standardize(x, axis=axes, epsilon=EPSILON) * scale + offset

    x, scale, offset = (jax.device_put(a) for a in (data.x, data.scale, data.offset))
    if case.backward:
        pullback = jax.jit(lambda *operands: jax.vjp(layer_norm, *operands)[1])(x, scale, offset)
        gradient = jax.jit(lambda pullback, dy: pullback(dy))
        dy, wait = jax.device_put(data.dy), jax.block_until_ready
        return lambda: wait(gradient(pullback, dy)), lambda gradients: gradients
    forward = jax.jit(layer_norm)
    return lambda: forward(x, scale, offset).block_until_ready(), lambda y: (y,)
