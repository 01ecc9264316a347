"""PyTorch, eager: `torch.native_layer_norm` and its backward, on tensors that share the arrays' memory.

Both allocate their results. `native_layer_norm.out`, which writes into given ones, is the same call and a copy after it
(1238 µs against 619 µs for (2048, 768)), so the call that allocates stands for PyTorch in every case. Without autograd.
"""

import torch

from ..cases import EPSILON
from ..implementations import NotMeasured


def prepare(case, data, threads):
    if case.into == "in place":
        raise NotMeasured("cannot work in place")
    if case.backward and not case.last:
        raise NotMeasured("its backward normalizes the last axes only")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    x, scale, offset = (torch.from_numpy(a) for a in (data.x, data.scale, data.offset))
    native_layer_norm = torch.native_layer_norm
    row = [case.shape[axis] for axis in case.axes]

    if case.backward:
        dy = torch.from_numpy(data.dy)
        # In the shape and precision in which its own forward pass returns them.
        mean, rstd = (torch.from_numpy(a).to(x.dtype) for a in (data.mean, data.rstd))
        native_backward, mask = torch.ops.aten.native_layer_norm_backward, [True, True, True]
        return (
            lambda: native_backward(dy, x, row, mean, rstd, scale, offset, mask),
            lambda gradients: [g.numpy() for g in gradients],
        )
    if case.axes == (1,):  # it normalizes the last axes only, so the channels go there and back as a view
        to_last = (0, *range(2, x.ndim), 1)
        back = (0, x.ndim - 1, *range(1, x.ndim - 1))
        scale, offset = scale.ravel(), offset.ravel()
        return (
            lambda: native_layer_norm(x.permute(to_last), row, scale, offset, EPSILON)[0].permute(back),
            lambda y: (y.numpy(),),
        )
    if scale.ndim > 1 and case.axis == -1:
        addcmul, y_out = torch.addcmul, torch.from_numpy(data.out)
        return (
            lambda: addcmul(offset, native_layer_norm(x, row, None, None, EPSILON)[0], scale, out=y_out),
            lambda y: (y.numpy(),),
        )
    if case.layer:
        layer = torch.nn.LayerNorm(row, eps=EPSILON)
        layer.load_state_dict({"weight": scale, "bias": offset})
        return lambda: layer(x), lambda y: (y.numpy(),)
    # It takes parameters of the row's shape only.
    scale, offset = (p.expand(row).contiguous() for p in (scale, offset))
    return lambda: native_layer_norm(x, row, scale, offset, EPSILON), lambda results: (results[0].numpy(),)
