"""Layer normalization for NumPy arrays on CPUs, exact at every offset, the same bits on every machine."""

from . import _core, _cpus, functional
from ._core import get_num_threads, layer_norm, layer_norm_backward, set_num_threads
from .config import __version__, show_config

__all__ = [
    "__version__",
    "get_num_threads",
    "layer_norm",
    "layer_norm_backward",
    "set_num_threads",
    "show_config",
]
