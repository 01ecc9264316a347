"""What the docstrings and the README show is what happens."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import lnorm

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
MODULES = [
    "lnorm",
    *(m.name for m in pkgutil.walk_packages(lnorm.__path__, "lnorm.") if not m.name.endswith("__main__")),
]
README = Path(__file__).parents[1] / "README.md"


def run(test):
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    output = []
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
    return runner.tries


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_every_module_run(name):
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        run(test)


@pytest.mark.parametrize("name", [n for n in lnorm.__all__ if callable(getattr(lnorm, n))])
def test_every_public_name_is_documented_by_examples_that_run(name):
    public = getattr(lnorm, name)
    tests = doctest.DocTestFinder().find(public, name, module=False, globs={"lnorm": lnorm})
    assert sum(map(run, tests)) > 0, f"lnorm.{name} shows no example"


@pytest.mark.parametrize("name", ["layer_norm", "layer_norm_backward"])
def test_the_docstring_names_every_parameter_and_the_paper(name):
    text = getattr(lnorm, name).__doc__
    for word in ("axis", "epsilon", "scale", "dtype", "Parameters", "Returns", "Raises", "1607.06450"):
        assert word in text, f"{name} does not mention {word}"


def readme_blocks(language):
    blocks = re.findall(
        rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert blocks
    return blocks


def test_the_readme_shows_the_display_of_the_layer():
    layer = lnorm.LayerNormalizationLayer(name="layernorm").initialize(16)
    assert readme_blocks("text") == [f"{layer}\n"]


def test_the_recipes_of_the_readme_read_scale_and_offset(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra `judges`")
    onnx = pytest.importorskip("onnx", reason="needs the extra `judges`")
    monkeypatch.chdir(tmp_path)
    scale, offset = np.random.default_rng(0).standard_normal((2, 6), np.float32)
    prefix = "encoder.layer.0.output.LayerNorm"
    safetensors.save_file({f"{prefix}.weight": scale, f"{prefix}.bias": offset}, "model.safetensors")
    node = onnx.helper.make_node("LayerNormalization", ["x", "w", "b"], ["y"], name="norm", epsilon=1e-3)
    arrays = [onnx.numpy_helper.from_array(a, name) for name, a in (("w", scale), ("b", offset))]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "graph", [], [], arrays)), "model.onnx")
    from_safetensors, from_onnx = readme_blocks("py")
    names = {"lnorm": lnorm}
    exec(from_safetensors, names)
    layers = [(names["layer"], 1e-5)]
    exec(from_onnx, names)
    layers.append((names["layers"]["norm"], 1e-3))
    for layer, epsilon in layers:
        np.testing.assert_array_equal(layer.scale, scale)
        np.testing.assert_array_equal(layer.offset, offset)
        assert np.isclose(layer.epsilon, epsilon, rtol=1e-6) and layer.operation_dimension == "channel-only"


def test_the_python_blocks_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = readme_blocks("python")
    names = {}
    for block in blocks:
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, names, "README", str(README), 0)
            runner = doctest.DocTestRunner(optionflags=FLAGS)
            output = []
            runner.run(test, out=output.append, clear_globs=False)
            assert runner.failures == 0, "".join(output)
            names = test.globs
        else:
            exec(compile(block, str(README), "exec"), names)
