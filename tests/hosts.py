"""Hosts that have set the floating-point unit in a way of their own: its control register, through the C library."""

import ctypes
import platform
import struct
from contextlib import contextmanager

import pytest

# Where the C library's fenv_t has the register and its flags (here in one word), and what a host may add to it.
X86 = {
    "flush to zero": 0x8040,
    "upward": 0x4000,
    "downward": 0x2000,
    "toward zero": 0x6000,
    "all traps but for inexact": -0xF80,
}
ARM = {"flush to zero": 1 << 24, "upward": 1 << 22, "downward": 2 << 22, "toward zero": 3 << 22}
CONTROL, FLAGS, FLAG_BITS, MODES = {
    ("Linux", "x86_64"): (28, 28, 0x3F, X86),
    ("Linux", "aarch64"): (0, 4, 0x1F, ARM),
}.get((platform.system(), platform.machine()), (0, 0, 0, {}))

needs_modes = pytest.mark.skipif(not MODES, reason="the layout of fenv_t is not known here")


def fenv():
    buffer = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).fegetenv(buffer)
    return buffer


def word(buffer, offset):
    return struct.unpack_from("=I", buffer, offset)[0]


def read_control():
    return word(fenv(), CONTROL) & ~(FLAG_BITS if CONTROL == FLAGS else 0)


def read_flags():
    """Which exceptions the results since `clear_flags` have raised."""
    return word(fenv(), FLAGS) & FLAG_BITS


def clear_flags():
    buffer = fenv()
    struct.pack_into("=I", buffer, FLAGS, word(buffer, FLAGS) & ~FLAG_BITS)
    ctypes.CDLL(None).fesetenv(buffer)


@contextmanager
def host_mode(name):
    """This thread's floating-point unit in one of MODES, or as it is."""
    clear_flags()
    before = fenv()
    changed = ctypes.create_string_buffer(before.raw)
    struct.pack_into("=I", changed, CONTROL, word(before, CONTROL) + MODES.get(name, 0))
    ctypes.CDLL(None).fesetenv(changed)
    try:
        yield
    finally:
        ctypes.CDLL(None).fesetenv(before)
