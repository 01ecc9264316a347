"""Other projects' own tests of layer normalization, run through lnorm: the extra `judges`."""

import warnings

import numpy as np
import pytest
from oracle import beyond_bounds, worst_backward_errors, worst_forward_error

import lnorm

WHY = "the judges are an extra: pip install lnorm[judges]"


def onnx_cases():
    """ONNX's backend tests of the node itself; others of that name expand it into other operators."""
    pytest.importorskip("onnx", reason=WHY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases("LayerNormalization")
    return {
        case.name: case
        for case in cases
        if [n.op_type for n in case.model.graph.node] == ["LayerNormalization"]
    }


def test_all_19_node_tests_of_onnx_pass():
    cases = onnx_cases()
    assert len(cases) == 19
    for name, case in cases.items():
        attributes = {a.name: a.f if a.name == "epsilon" else a.i for a in case.model.graph.node[0].attribute}
        assert attributes.keys() <= {"axis", "epsilon"}
        for (x, scale, offset), expected in case.data_sets:
            # ONNX normalizes every axis from the one it names.
            axis = tuple(range(attributes.get("axis", -1) % x.ndim, x.ndim))
            epsilon = attributes.get("epsilon", 1e-5)
            got = lnorm.layer_norm(x, scale, offset, axis=axis, epsilon=epsilon, return_stats=True)
            assert len(expected) == 3
            for ours, theirs in zip(got, expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=case.rtol, atol=case.atol, err_msg=name)


def opinfo_samples(dtype):
    torch = pytest.importorskip("torch", reason=WHY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        internal = pytest.importorskip("torch.testing._internal.common_methods_invocations", reason=WHY)
    (info,) = [op for op in internal.op_db if op.name == "nn.functional.layer_norm"]
    samples = list(info.sample_inputs("cpu", getattr(torch, dtype), requires_grad=True))
    assert len(samples) >= 6
    return torch, samples


def array(tensor):
    return None if tensor is None else tensor.detach().numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_opinfo_samples_of_pytorch_pass_with_their_gradients(dtype):
    torch, samples = opinfo_samples(dtype)
    generator = torch.Generator().manual_seed(0)
    computed = 0
    for sample in samples:
        x, (normalized_shape, *args) = sample.input, sample.args
        weight, bias = [*args, None, None][:2]
        weight, bias = sample.kwargs.get("weight", weight), sample.kwargs.get("bias", bias)
        epsilon = sample.kwargs.get("eps", 1e-5)
        axis = tuple(range(-len(normalized_shape), 0))
        if epsilon < 0:  # PyTorch computes with it, here it is refused by contract
            with pytest.raises(ValueError, match="epsilon"):
                lnorm.layer_norm(array(x), axis=axis, epsilon=epsilon)
            continue
        computed += 1
        theirs = torch.nn.functional.layer_norm(x, normalized_shape, weight, bias, epsilon)
        dy = torch.randn(theirs.shape, generator=generator, dtype=theirs.dtype)
        wanted = [t for t in (x, weight, bias) if t is not None]
        grads = torch.autograd.grad(theirs, wanted, dy)

        arrays = array(x), array(weight), array(bias)
        y = lnorm.layer_norm(*arrays, axis=axis, epsilon=epsilon)
        ours = lnorm.layer_norm_backward(array(dy), *arrays[:2], axis=axis, epsilon=epsilon)
        torch.testing.assert_close(torch.from_numpy(y), theirs.detach())
        mine = [g for g, t in zip(ours, (x, weight, bias), strict=True) if t is not None]
        for our, their in zip(mine, grads, strict=True):
            torch.testing.assert_close(torch.from_numpy(our), their)
        # And, where PyTorch's tolerance is wide, by this project's own measure.
        assert not beyond_bounds({"y": worst_forward_error(y, *arrays, axis, epsilon)})
        errors = worst_backward_errors(ours, array(dy), *arrays[:2], axis, epsilon)
        assert not beyond_bounds(errors, ignore=["dx"])
    assert computed >= 4
