"""No byte outside the arrays is read or written: a selection of trials/guard_pages.py, in its own process."""

import sys

import guard_pages
import pytest

import lnorm


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect through the C library")
def test_nothing_outside_the_arrays_is_touched():
    isa = lnorm.show_config(mode="dicts")["instruction sets"]["in use"]
    assert guard_pages.trial(isa, threads=2, quick=True) > 700
