"""Layer normalization for NumPy arrays on CPUs, exact at every offset, the same bits on every machine."""

from . import _cpus, functional  # _cpus first: it looks around before the driver is loaded
from ._core import get_num_threads, layer_norm, layer_norm_backward, set_num_threads
from .config import __version__, show_config
from .layer import LayerNormalizationLayer
from .properties import Learnable
from .solvers import SGDM, Adam, RMSProp, Solver

__all__ = [
    "SGDM",
    "Adam",
    "LayerNormalizationLayer",
    "Learnable",
    "RMSProp",
    "Solver",
    "__version__",
    "get_num_threads",
    "layer_norm",
    "layer_norm_backward",
    "set_num_threads",
    "show_config",
]
