"""The compiled driver. The two functions and the thread settings are public as names of `lnorm`."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

@overload
def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    *,
    axis: int | tuple[int, ...] = -1,
    epsilon: float = 1e-5,
    out: NDArray[Any] | None = None,
    return_stats: Literal[False] = False,
) -> NDArray[Any]: ...
@overload
def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    *,
    axis: int | tuple[int, ...] = -1,
    epsilon: float = 1e-5,
    out: NDArray[Any] | None = None,
    return_stats: Literal[True],
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]: ...
def layer_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    axis: int | tuple[int, ...] = -1,
    epsilon: float = 1e-5,
    mean: ArrayLike | None = None,
    rstd: ArrayLike | None = None,
    param_grads: bool = True,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int | None) -> None: ...
def decided_by() -> str: ...
def limit_threads(n: int) -> None: ...
def forbid_threads() -> None: ...
def instruction_sets() -> tuple[list[str], list[str], str]: ...
def use_instruction_set(wanted: str | None) -> None: ...
def write_in_turn(wanted: bool | None) -> bool: ...
def compiler() -> str: ...
def openmp() -> int: ...
def mapped(result: NDArray[Any]) -> NDArray[Any]: ...
def same_place(a: NDArray[Any], b: NDArray[Any]) -> bool: ...
def set_planning(forward: Callable[..., Any], backward: Callable[..., Any]) -> None: ...
def forward(
    x: NDArray[Any],
    scale: NDArray[Any] | None,
    offset: NDArray[Any] | None,
    y: NDArray[Any],
    mean: NDArray[np.float64] | None,
    rstd: NDArray[np.float64] | None,
    order: list[int],
    core: int,
    epsilon: float,
    copied: bool,
) -> None: ...
def backward(
    dy: NDArray[Any],
    x: NDArray[Any],
    scale: NDArray[Any] | None,
    dx: NDArray[Any],
    mean: NDArray[np.float64] | None,
    rstd: NDArray[np.float64] | None,
    dscale: NDArray[Any] | None,
    doffset: NDArray[Any] | None,
    grad_strides: Sequence[int],
    groups: int,
    grad_size: int,
    order: list[int],
    core: int,
    epsilon: float,
) -> None: ...

layer_norm_ufunc: np.ufunc
layer_norm_stats: np.ufunc
