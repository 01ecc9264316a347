"""What was built and what is in use, in the habit of numpy.show_config."""

from __future__ import annotations

from typing import Any

from . import _core
from .properties import describe

__version__ = "0.1.0"


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show how lnorm was built and what it uses here.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print it, or return it as a dict of plain Python values.

    Returns
    -------
    dict or None
        With ``mode="dicts"``: ``"version"``; ``"compiler"``; ``"openmp"`` (``"found"``, ``"version"``: the date of its
        specification); ``"threads"`` (``"in use"`` by a call from this thread and ``"decided by"`` what);
        ``"instruction sets"`` (``"compiled"``, ``"runnable"`` here, ``"in use"``).

    Raises
    ------
    ValueError
        If `mode` is neither of the two.

    Examples
    --------
    >>> import lnorm
    >>> lnorm.show_config(mode="dicts")["instruction sets"]["compiled"][-1]
    'generic'
    """
    if not (isinstance(mode, str) and mode in ("stdout", "dicts")):
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {describe(mode)}")
    compiled, runnable, in_use = _core.instruction_sets()
    config = {
        "version": __version__,
        "compiler": _core.compiler(),
        "openmp": {"found": bool(_core.openmp()), "version": _core.openmp()},
        "threads": {"in use": _core.get_num_threads(), "decided by": _core.decided_by()},
        "instruction sets": {"compiled": compiled, "runnable": runnable, "in use": in_use},
    }
    if mode == "dicts":
        return config
    for key, value in config.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, item in value.items():
                print(f"  {name}: {', '.join(item) if isinstance(item, list) else item}")
        else:
            print(f"{key}: {value}")
    return None
