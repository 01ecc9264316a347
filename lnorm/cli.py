"""The command line, ``python -m lnorm``: check on a sample, normalize a file, show the configuration, check the bits.

Every message is plain ASCII, because a console may know nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import importlib.resources
import itertools
import json
import math
import os
import signal
import stat
import sys
import threading
import time
import tokenize
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np

import lnorm

from . import _core, selftest

# Large enough that reading and computing outweigh Python's part, small beside any machine's memory.
CHUNK_BYTES = 16 * 2**20

Box = tuple[slice, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        0: done. 1: the promise of accuracy, or of the same bits, is broken. 2: an argument or a file is
        refused, as stderr says. 130: interrupted.
    """
    arguments = _parser().parse_args(_attach_negative_values(sys.argv[1:] if argv is None else argv))
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("lnorm: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"lnorm: error: {place}{error.strerror or error}", file=sys.stderr)
    except (ValueError, TypeError, MemoryError) as error:
        print(f"lnorm: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lnorm",
        allow_abbrev=False,
        description="Layer normalization for NumPy arrays. Without a command: normalize the sample that "
        "ships with lnorm, hold the result against an extended-precision reference, and time it beside the "
        "plain NumPy expression and a plain copy. Exit status 1 when the accuracy promise is broken.",
    )
    parser.add_argument("--version", action="version", version=f"lnorm {lnorm.__version__}")
    parser.set_defaults(run=_run_report)
    commands = parser.add_subparsers(title="commands", metavar="{normalize,info,selftest}")

    normalize = commands.add_parser(
        "normalize",
        allow_abbrev=False,
        help="normalize a .npy file of any size",
        description="Normalize a .npy file of any size, a chunk of observations (an index of the axes that "
        "are not normalized) at a time; one observation has to fit in memory. OUT.npy is replaced at the "
        "very end, so a run that breaks off leaves it as it was; it may be IN.npy itself. float32 and "
        "float64 keep their precision, integers become float64.",
    )
    normalize.add_argument("input", metavar="IN.npy", help="the array to normalize")
    normalize.add_argument("output", metavar="OUT.npy", help="where the result goes; same shape")
    normalize.add_argument(
        "--axis",
        type=_axis,
        default=-1,
        metavar="A",
        help="the normalized axis, or several with commas: -1 or 1,2,3 (default: %(default)s)",
    )
    normalize.add_argument("--scale", metavar="S.npy", help="gamma, broadcast against IN (default: 1)")
    normalize.add_argument("--offset", metavar="O.npy", help="beta, broadcast against IN (default: 0)")
    normalize.add_argument(
        "--epsilon",
        type=float,
        default=1e-5,
        metavar="E",
        help="added to the variance (default: %(default)s)",
    )
    normalize.set_defaults(run=_run_normalize)

    info = commands.add_parser("info", help="show version, compiler, threads and instruction sets")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_run_info)

    check = commands.add_parser(
        "selftest",
        help="check that this machine computes the bits that every other one does",
        description="Compute many small problems in every instruction set that runs here, and compare with "
        "the hashes that ship with lnorm. Exit status 1 when a bit differs.",
    )
    check.add_argument("--table", action="store_true", help="print the hashes that are computed here instead")
    check.set_defaults(run=_run_selftest)
    return parser


def _attach_negative_values(argv: Sequence[str]) -> list[str]:
    """Write ``--axis -2,-1`` as ``--axis=-2,-1``: argparse takes such a value for an option."""
    attached: list[str] = []
    for argument in argv:
        negative = argument[:1] == "-" and argument[1:2].isdigit()
        if negative and attached and attached[-1] in ("--axis", "--epsilon"):
            attached[-1] += "=" + argument
        else:
            attached.append(argument)
    return attached


def _axis(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(axis) for axis in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no int, nor ints with commas like 1,2,3") from None


# ---- python -m lnorm info


def _run_info(arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps(lnorm.show_config(mode="dicts"), indent=2))
    else:
        lnorm.show_config()
    return 0


# ---- python -m lnorm selftest


def _run_selftest(arguments: argparse.Namespace) -> int:
    if arguments.table:
        print(selftest.table(), end="")
        return 0
    differences = list(selftest.differences())
    for difference in differences:
        print(f"differs: {difference}")
    _, runnable, _ = _core.instruction_sets()
    print(f"{len(selftest.expected())} cases in {', '.join(runnable)}: ", end="")
    if differences:
        print("NOT the bits of other machines. Please report this, and what python -m lnorm info says.")
    else:
        print("the same bits as on every other machine")
    return 1 if differences else 0


# ---- python -m lnorm normalize


def _run_normalize(arguments: argparse.Namespace) -> int:
    with _stop_signals_unwind():
        normalize_file(
            arguments.input,
            arguments.output,
            axis=arguments.axis,
            scale=arguments.scale,
            offset=arguments.offset,
            epsilon=arguments.epsilon,
        )
    return 0


def normalize_file(
    source: str,
    target: str,
    *,
    axis: int | tuple[int, ...] = -1,
    scale: str | None = None,
    offset: str | None = None,
    epsilon: float = 1e-5,
) -> None:
    """Normalize a .npy file of any size, a chunk of observations at a time.

    The files are read and written, not mapped: a map of a file larger than the address space fails, and a
    full disk kills a process that writes through a map, while a plain write raises an error.

    Parameters
    ----------
    source, target : str
        The .npy files to read and to write, in the same order (C or Fortran). `target` is replaced at the
        very end, in one step; it may be `source`.
    axis, epsilon
        As in `lnorm.layer_norm`.
    scale, offset : str, optional
        .npy files of the parameters.

    Raises
    ------
    OSError
        A file is missing or cannot be read or written.
    ValueError, TypeError
        A file is no .npy file, is cut short or holds what cannot be normalized, or an argument is refused by
        `lnorm.layer_norm`.
    MemoryError
        One observation does not fit in memory.
    """
    with contextlib.ExitStack() as stack:
        # First, to be left last: Windows replaces no file that is open, and `source` may be `target`.
        y = stack.enter_context(_Replacement(target))
        x = stack.enter_context(_NpyReader(source))
        parameters = {
            name: stack.enter_context(_NpyReader(path))
            for name, path in (("scale", scale), ("offset", offset))
            if path is not None
        }
        for name, parameter in parameters.items():
            if not lnorm.functional.broadcasts(parameter.shape, x.shape):
                raise ValueError(
                    f"{name} of shape {parameter.shape} ({parameter.path}) does not broadcast against "
                    f"x of shape {x.shape} ({x.path})"
                )
        layer_norm = functools.partial(lnorm.layer_norm, axis=axis, epsilon=epsilon)
        # No element, but the checks of axis, epsilon and dtype, and the dtype of the result.
        dtype = layer_norm(np.empty((0,) * len(x.shape), x.dtype)).dtype

        axes = {a % len(x.shape) for a in ((axis,) if isinstance(axis, int) else axis)}
        row_bytes = math.prod(x.shape[a] for a in axes) * max(x.dtype.itemsize, dtype.itemsize)
        try:
            np.lib.format.write_array_header_1_0(
                y, {"descr": dtype.str, "fortran_order": x.fortran_order, "shape": x.shape}
            )
            start = y.tell()
            y.truncate(start + math.prod(x.shape) * dtype.itemsize)
            with _progress(math.prod(x.shape) * x.dtype.itemsize) as advance:
                for box in _boxes(x.shape, axes, x.fortran_order, max(1, CHUNK_BYTES // max(1, row_bytes))):
                    chunk = x.read(box)
                    out = chunk if chunk.dtype == dtype else np.empty(chunk.shape, dtype, x.order)
                    parts = {name: p.read(p.broadcast(box)) for name, p in parameters.items()}
                    layer_norm(chunk, **parts, out=out)
                    for position, run in _runs(out, box, x.shape, x.fortran_order):
                        y.seek(start + position * dtype.itemsize)
                        y.write(run.data)
                    advance(chunk.nbytes)
        except MemoryError:
            raise MemoryError(
                f"out of memory: an observation of {x.path} takes {row_bytes} bytes, and has to fit in memory"
            ) from None


class _NpyReader:
    """A .npy file of which boxes can be read; never unpickled, and no more in memory than the box."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open(path, "rb")
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> None:
        file = self._file
        try:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise ValueError(f"its format has version {version}")
            # Version 3 differs from 2 in field names only, and arrays of records are refused below.
            read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            self.shape, self.fortran_order, self.dtype = read_header(file)
            # NumPy's own limits, which hold for empty arrays too.
            count = math.prod(max(1, n) for n in self.shape)
            if (
                any(isinstance(n, bool) or n < 0 for n in self.shape)
                or len(self.shape) > 64
                or count * max(1, self.dtype.itemsize, 8) > sys.maxsize
            ):
                raise ValueError(f"no array has the shape {lnorm.properties.describe(self.shape)}")
            if self.dtype.shape:
                raise ValueError(f"its elements are arrays, of dtype {self.dtype}")
        except (ValueError, TypeError, SyntaxError, RecursionError, tokenize.TokenError) as error:
            raise ValueError(f"{self.path}: not a .npy file that can be read: {error}") from None
        if self.dtype.hasobject:
            raise ValueError(f"{self.path}: holds pickled objects, which are never loaded; save numbers")
        self.order: Literal["C", "F"] = "F" if self.fortran_order else "C"
        self._start = file.tell()
        promised = self._start + math.prod(self.shape) * self.dtype.itemsize
        size = os.fstat(file.fileno()).st_size
        if size < promised:
            raise ValueError(f"{self.path}: cut short: its header promises {promised} bytes, it has {size}")

    def __enter__(self) -> _NpyReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def broadcast(self, box: Box) -> Box:
        """The part of this array that broadcasts against `box` of a larger one."""
        inner = box[len(box) - len(self.shape) :]
        return tuple(slice(0, 1) if n == 1 else part for n, part in zip(self.shape, inner, strict=True))

    def read(self, box: Box) -> np.ndarray:
        """Read one box, in the order of the file."""
        chunk = np.empty(tuple(part.stop - part.start for part in box), self.dtype, self.order)
        for position, run in _runs(chunk, box, self.shape, self.fortran_order):
            self._file.seek(self._start + position * self.dtype.itemsize)
            if self._file.readinto(run.data) != run.nbytes:
                raise ValueError(f"{self.path}: cut short while it was read")
        return chunk


class _Replacement:
    """A file that takes the place of `path` when all is well, in one step, and is removed when it is not."""

    def __init__(self, path: str) -> None:
        self._named = path
        # A symbolic link stays, what it points to is replaced.
        self._target = os.path.realpath(path)
        if os.path.exists(self._target) and not os.path.isfile(self._target):
            raise ValueError(f"{path}: is there, but is no regular file, and is not replaced")
        if os.path.exists(self._target) and not os.access(self._target, os.W_OK):
            raise PermissionError(errno.EACCES, "is read-only, and is not replaced", path)
        # The same directory, because a rename does not cross file systems.
        self._path = os.path.join(os.path.dirname(self._target), f"lnorm-{uuid.uuid4().hex}.tmp")

    def __enter__(self) -> BinaryIO:
        try:
            self._file = open(self._path, "xb")
        except OSError as error:
            raise OSError(error.errno, f"cannot be written: {error.strerror}", self._named) from None
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._file as file:
                if kind is None:
                    file.flush()
                    os.fsync(file.fileno())
            if kind is None:
                with contextlib.suppress(FileNotFoundError):
                    os.chmod(self._path, stat.S_IMODE(os.stat(self._target).st_mode))
                os.replace(self._path, self._target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


def _boxes(shape: tuple[int, ...], axes: set[int], fortran_order: bool, observations: int) -> Iterator[Box]:
    """Cut an array into boxes of at most so many whole observations.

    The axes whose neighbours are nearest in the file come first, which makes the runs of a box the longest.
    """
    if 0 in shape:
        return
    sides = list(shape)
    for a in range(len(shape)) if fortran_order else reversed(range(len(shape))):
        if a not in axes:
            sides[a] = min(shape[a], observations)
            observations = max(1, observations // max(1, sides[a]))
    starts = (range(0, n, max(1, side)) for n, side in zip(shape, sides, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(i, min(i + side, n)) for i, side, n in zip(corner, sides, shape, strict=True))


def _runs(
    chunk: np.ndarray, box: Box, shape: tuple[int, ...], fortran_order: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Cut the chunk of a box into runs of neighbours in the file: position in elements, view of the bytes.

    `chunk` has the order of the file.
    """
    if fortran_order:
        chunk, box, shape = chunk.T, box[::-1], shape[::-1]
    if not shape:
        chunk, box, shape = chunk.reshape(1), (slice(0, 1),), (1,)
    outer = len(shape) - 1
    while outer and chunk.shape[outer] == shape[outer]:
        outer -= 1
    steps = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
    first = sum(part.start * step for part, step in zip(box, steps, strict=True))
    for index in np.ndindex(*chunk.shape[:outer]):
        run = chunk[index].reshape(-1).view(np.uint8)
        yield first + sum(i * step for i, step in zip(index, steps[:outer], strict=True)), run


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """A bar of bytes on a terminal, if tqdm is installed (the extra `cli`); nothing otherwise."""
    if sys.stderr is not None and sys.stderr.isatty():
        try:
            from tqdm import tqdm  # type: ignore[import]
        except ImportError:
            pass
        else:
            with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="normalize") as bar:
                yield bar.update
            return
    yield lambda _: None


@contextlib.contextmanager
def _stop_signals_unwind() -> Iterator[None]:
    """Make the signals that end a process raise SystemExit, so that the temporary file is removed."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before: dict[int, Any] = {}
    # Python lets no other thread set a handler; and a signal that is ignored (nohup) stays ignored.
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in names):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- python -m lnorm

# API promise 1, in units of the precision's epsilon.
ACCURACY_BAR = 4
BATCH_ROWS = 4096
SLICE_SECONDS = 0.02
ROUNDS = 12


def _run_report(_: argparse.Namespace) -> int:
    sample = _sample()
    x, scale, offset, epsilon = (sample[name] for name in ("x", "scale", "offset", "epsilon"))
    parameters: dict[str, Any] = dict(scale=scale, offset=offset, epsilon=float(epsilon))
    rows = np.random.default_rng(0).integers(len(x), size=BATCH_ROWS)
    data = {
        "the sample": x,
        f"{BATCH_ROWS} rows drawn from it": x[rows],
        "the sample, moved to 10^6 +- 1": (x / x.std(axis=-1, keepdims=True) + 1e6).astype(x.dtype),
    }
    contenders: dict[str, Callable[..., Any]] = {
        "copy": lambda x, out, **_: np.copyto(out, x),
        "lnorm": lnorm.layer_norm,
        "NumPy": numpy_expression,
    }

    config = lnorm.show_config(mode="dicts")
    assert config is not None
    threads = lnorm.get_num_threads()
    n, channels = x.shape
    print(
        f"lnorm {lnorm.__version__}, {config['instruction sets']['in use']}, "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )
    print(f"sample: {n} tokens x {channels} channels, {x.dtype}, entering a layer norm of all-MiniLM-L6-v2")
    print()

    print(f"worst error, in units of eps * (|scale| * max|x_hat| + |offset|); lnorm promises {ACCURACY_BAR}")
    print(f"{'':36}{'lnorm':>12}{'NumPy':>12}")
    kept = True
    for name, values in data.items():
        errors = []
        for contender in ("lnorm", "NumPy"):
            y = np.empty_like(values)
            contenders[contender](values, out=y, **parameters)
            errors.append(worst_error(y, values, **parameters))
        # Written so that a NaN breaks the promise.
        kept = kept and errors[0] <= ACCURACY_BAR
        print(f"  {name:34}{errors[0]:12.3g}{errors[1]:12.3g}")
    print()

    print(f"time of a call, median of {ROUNDS} rounds in turn; in brackets: copies of x it costs")
    print(f"{'':36}{'copy':>12}{'lnorm':>18}{'NumPy':>18}")
    for name, values in list(data.items())[:2]:
        out = np.empty_like(values)
        calls = [functools.partial(call, values, out=out, **parameters) for call in contenders.values()]
        times = times_in_turn(calls)
        ratios = np.median(times / times[:, :1], axis=0)
        copy, *others = map(_duration, np.median(times, axis=0))
        cells = [f"{duration} ({ratio:.1f}x)" for duration, ratio in zip(others, ratios[1:], strict=True)]
        print(f"  {name:34}{copy:>12}" + "".join(f"{cell:>18}" for cell in cells))
    print()

    print("accuracy promise: kept" if kept else f"accuracy promise: BROKEN, an error is above {ACCURACY_BAR}")
    return 0 if kept else 1


def _sample() -> dict[str, np.ndarray]:
    """The arrays of sample/README.md."""
    file = importlib.resources.files("lnorm") / "sample" / "minilm_embeddings.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return dict(arrays)


def numpy_expression(
    x: np.ndarray, out: np.ndarray, scale: np.ndarray, offset: np.ndarray, epsilon: float
) -> np.ndarray:
    """What one would write without lnorm, in the precision of `x`."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = x.var(axis=-1, keepdims=True)
    return np.add(scale * (x - mean) / np.sqrt(variance + epsilon), offset, out=out)


def worst_error(y: np.ndarray, x: np.ndarray, scale: np.ndarray, offset: np.ndarray, epsilon: float) -> float:
    """The worst |y - y*| of a result, in units of eps * (|scale| * max|x_hat*| + |offset|).

    y* and x_hat* are computed in the widest precision there is. Where that is float64, it still has 29 bits
    more than the float32 of the sample.
    """
    wide = x.astype(np.longdouble)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    x_hat = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    largest = np.abs(x_hat).max(axis=-1, keepdims=True)
    unit = np.finfo(x.dtype).eps * (np.abs(scale) * largest + np.abs(offset))
    return float((np.abs(y - (scale * x_hat + offset)) / unit).max())


def times_in_turn(calls: Sequence[Callable[[], object]]) -> np.ndarray:
    """Seconds of each call, of shape (rounds, calls).

    The calls take turns in short slices, so that whatever else the machine does meets all of them alike.
    """
    clock = time.perf_counter

    def seconds(call: Callable[[], object], repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats

    repeats = []
    for call in calls:
        call()
        repeats.append(max(1, round(SLICE_SECONDS / max(seconds(call, 3), 1e-7))))
    turns = list(zip(calls, repeats, strict=True))
    return np.array([[seconds(call, n) for call, n in turns] for _ in range(ROUNDS)])


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
