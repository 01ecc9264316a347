"""What the docstrings and the README show is what happens."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

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


def test_the_python_blocks_of_the_readme_run():
    blocks = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert blocks
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
