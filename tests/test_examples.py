"""The examples run to the end, learn what they promise, and write their pictures."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def extra():
    for module in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(module, reason="needs the extra `examples`")


def run(name, picture, *options):
    """Its test accuracies in percent, and what it wrote to stderr."""
    command = [sys.executable, EXAMPLES / name, "--output", picture, *options]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    return [float(percent) for percent in re.findall(r"test accuracy.*: (.+) %", done.stdout)], done.stderr


def test_digits_need_layer_normalization_at_this_learn_rate(tmp_path):
    (without, with_layer), progress = run("digits.py", tmp_path / "digits.png")
    assert without < 50
    assert with_layer > 95
    assert "100%" in progress


def test_convnet_learns(tmp_path):
    (accuracy,), progress = run("convnet.py", tmp_path / "convnet.png", "--epochs", "4")
    assert accuracy > 90
    assert "100%" in progress
