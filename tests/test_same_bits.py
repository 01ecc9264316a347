"""Promise 2: the same bits for the same row, whatever is around it, wherever it lies, whoever computes it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oracle import FLOATS, bits, rng_for

import lnorm
from lnorm import _core

RUNNABLE = lnorm.show_config(mode="dicts")["instruction sets"]["runnable"]


@pytest.fixture(params=[False, True], ids=["one after the other", "in turn"])
def around(request):
    """Both ways of writing rows around the caches, of which a processor takes one."""
    was = _core.write_in_turn(request.param)
    yield
    _core.write_in_turn(was)


@pytest.fixture(scope="module")
def hash_of():
    """One process for each instruction set and number of threads."""
    known = {}

    def run(isa, threads):
        if (isa, threads) not in known:
            script = Path(__file__).with_name("same_bits.py")
            command = [sys.executable, str(script), str(threads)]
            env = {**os.environ, "LNORM_ISA": isa, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            done = subprocess.run(
                command, env=env, cwd=os.path.dirname(__file__), capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            used, known[isa, threads] = done.stdout.split()
            assert used == isa
        return known[isa, threads]

    return run


def test_the_instruction_set_in_use_is_runnable():
    config = lnorm.show_config(mode="dicts")["instruction sets"]
    assert config["in use"] in config["runnable"]
    assert set(config["runnable"]) <= set(config["compiled"])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", RUNNABLE)
def test_every_instruction_set_and_number_of_threads_gives_the_same_hash(isa, threads, hash_of):
    assert hash_of(isa, threads) == hash_of(RUNNABLE[0], 1)


WIDTHS = (1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 65, 127, 129, 511, 513, 768, 1025)


def unaligned(x):
    buffer = bytearray(x.nbytes + 1)
    view = np.frombuffer(buffer, x.dtype, x.size, offset=1).reshape(x.shape)
    view[...] = x
    return view


def fortran(a):
    """A copy, also of an array that is in Fortran order already."""
    return np.array(a, order="F")


def every_other(x, step=2):
    view = np.zeros([n * 2 for n in x.shape], x.dtype)[tuple(slice(None, None, step) for _ in x.shape)]
    view[...] = x
    return view


def as_fields(x):
    """Strides that are no multiple of the item size."""
    records = np.zeros(x.shape, [("tag", "u1"), ("x", x.dtype)])
    records["x"] = x
    return records["x"]


LAYOUTS = {
    "reversed rows": lambda x: x[::-1].copy()[::-1],
    "reversed elements": lambda x: x[..., ::-1].copy()[..., ::-1],
    "every other": every_other,
    "every other, backwards": lambda x: every_other(x, -2),
    "Fortran order": fortran,
    "unaligned": unaligned,
    "fields": as_fields,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "byte-swapped Fortran order": lambda x: fortran(x).astype(x.dtype.newbyteorder()),
    "inside a larger batch": lambda x: np.concatenate([x[:3] * 7, x, x[:2]])[3:-2],
    "inside wider rows": lambda x: np.concatenate([x[:, :1], x, x[:, -1:]], axis=1)[:, 1:-1],
}


@pytest.fixture(params=FLOATS, ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=WIDTHS)
def case(request, dtype):
    """x, dy, scale, offset, and what each row gives by itself."""
    n = request.param
    rng = rng_for("bits", n)
    x = (100 + rng.standard_normal((11, n))).astype(dtype)
    x[4, n // 2] = np.nan
    dy = rng.standard_normal((11, n)).astype(dtype)
    scale, offset = rng.standard_normal((2, n)).astype(dtype)
    rows = [lnorm.layer_norm(row, scale, offset, return_stats=True) for row in x]
    dx = [
        lnorm.layer_norm_backward(d, row, scale, param_grads=False)[0] for d, row in zip(dy, x, strict=True)
    ]
    alone = [np.array(part) for part in zip(*rows, strict=True)]
    return x, dy, scale, offset, alone, np.array(dx)


def test_a_row_alone_in_a_batch_and_at_another_place(case):
    x, dy, scale, offset, alone, dx = case
    assert bits(*lnorm.layer_norm(x, scale, offset, return_stats=True)) == bits(*alone)
    assert bits(lnorm.layer_norm_backward(dy, x, scale)[0]) == bits(dx)
    order = rng_for("order").permutation(11)
    moved = lnorm.layer_norm(x[order], scale, offset, return_stats=True)
    assert bits(*moved) == bits(*[part[order] for part in alone])
    assert bits(lnorm.layer_norm_backward(dy[order], x[order], scale)[0]) == bits(dx[order])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_in_any_layout(layout, case):
    x, dy, scale, offset, alone, dx = case
    lay = LAYOUTS[layout]
    laid_x, laid_dy = lay(x), lay(dy)
    np.testing.assert_array_equal(laid_x, x)
    assert bits(*lnorm.layer_norm(laid_x, scale, offset, return_stats=True)) == bits(*alone)
    assert bits(lnorm.layer_norm(laid_x, lay(np.array([scale] * 11)), lay(np.array([offset] * 11)))) == bits(
        alone[0]
    )
    plain = lnorm.layer_norm_backward(dy, x, scale)
    assert bits(plain[0]) == bits(dx)
    for pair in ((laid_dy, laid_x), (dy, laid_x), (laid_dy, x)):
        assert bits(*lnorm.layer_norm_backward(*pair, scale)) == bits(*plain)


@pytest.mark.parametrize("layout", set(LAYOUTS) - {"inside a larger batch", "inside wider rows"})
def test_an_out_in_any_layout(layout, case):
    x, _, scale, offset, alone, _ = case
    out = LAYOUTS[layout](np.zeros_like(x))
    assert lnorm.layer_norm(x, scale, offset, out=out) is out
    assert bits(out) == bits(alone[0])


def test_in_place(case):
    x, _, scale, offset, alone, _ = case
    for lay in (np.array, every_other, fortran, unaligned):
        own = lay(x)
        assert lnorm.layer_norm(own, scale, offset, out=own) is own
        assert bits(own) == bits(alone[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dx_into_an_out_in_any_layout_in_place_and_overlapping(layout, case):
    x, dy, scale, _, _, dx = case
    for target in ("new", "dy", "x"):
        own = {"x": LAYOUTS[layout](x), "dy": LAYOUTS[layout](dy), "new": LAYOUTS[layout](np.zeros_like(x))}
        out = own[target]
        got = lnorm.layer_norm_backward(own["dy"], own["x"], scale, out=out)[0]
        assert got is out
        assert bits(out) == bits(dx)
    memory = np.empty(x.size + 3, x.dtype)
    shifted = memory[:-3].reshape(x.shape)
    shifted[...] = x
    lnorm.layer_norm_backward(dy, shifted, scale, out=memory[3:].reshape(x.shape))
    assert bits(memory[3:].reshape(x.shape)) == bits(dx)


def test_axis_0_of_the_transpose(case):
    x, dy, scale, offset, alone, dx = case
    columns = np.ascontiguousarray(x.T), x.T
    for xt in columns:
        y, mean, rstd = lnorm.layer_norm(xt, scale[:, None], offset[:, None], axis=0, return_stats=True)
        assert bits(y.T, mean.T, rstd.T) == bits(*alone)
        grads = lnorm.layer_norm_backward(np.ascontiguousarray(dy.T), xt, scale[:, None], axis=0)
        assert bits(grads[0].T) == bits(dx)


def test_rows_cut_into_several_axes(case):
    x, dy, scale, offset, alone, dx = case
    n = x.shape[1]
    for first in (d for d in (1, 3, 8) if n % d == 0):
        shape = (11, first, n // first)
        folded = x.reshape(shape)
        y = lnorm.layer_norm(folded, scale.reshape(shape[1:]), offset.reshape(shape[1:]), axis=(1, 2))
        assert bits(y.reshape(x.shape)) == bits(alone[0])
        # The axes lie elsewhere, and the elements of a row keep their order.
        far = np.ascontiguousarray(folded.transpose(1, 0, 2))
        y = lnorm.layer_norm(far, scale.reshape(first, 1, -1), offset.reshape(first, 1, -1), axis=(0, 2))
        assert bits(y.transpose(1, 0, 2).reshape(x.shape)) == bits(alone[0])
        grads = lnorm.layer_norm_backward(dy.reshape(shape), folded, scale.reshape(shape[1:]), axis=(2, 1))
        assert bits(grads[0].reshape(x.shape)) == bits(dx)


def test_parameters_that_differ_per_observation(case):
    x, dy, *_ = case
    scale, offset = rng_for("per observation").standard_normal((2, *x.shape)).astype(x.dtype)
    parameters = list(zip(scale, offset, strict=True))
    rows = [lnorm.layer_norm(row, *both) for row, both in zip(x, parameters, strict=True)]
    assert bits(lnorm.layer_norm(x, scale, offset)) == bits(np.array(rows))
    assert bits(lnorm.layer_norm(x[:, None], scale[:, None], offset[:, None])[:, 0]) == bits(np.array(rows))
    dx = [
        lnorm.layer_norm_backward(d, r, s, param_grads=False)[0] for d, r, s in zip(dy, x, scale, strict=True)
    ]
    assert bits(lnorm.layer_norm_backward(dy, x, scale)[0]) == bits(np.array(dx))
    rows = [lnorm.layer_norm(row, s, o) for row, s, o in zip(x, scale[:, :1], offset[:, :1], strict=True)]
    assert bits(lnorm.layer_norm(x, scale[:, :1], offset[:, :1])) == bits(np.array(rows))


def test_scale_or_offset_alone_is_the_other_at_its_neutral_value(case):
    x, _, scale, offset, *_ = case
    one, zero = np.ones_like(scale), np.zeros_like(offset)
    # + 0.0 makes -0.0 comparable: x*1 keeps the sign of a zero and x*1 + 0 does not.
    assert bits(lnorm.layer_norm(x, scale) + 0.0) == bits(lnorm.layer_norm(x, scale, zero) + 0.0)
    assert bits(lnorm.layer_norm(x, None, offset)) == bits(lnorm.layer_norm(x, one, offset))
    assert bits(lnorm.layer_norm(x) + 0.0) == bits(lnorm.layer_norm(x, one, zero) + 0.0)


def test_a_row_broadcast_without_a_copy(case):
    x, dy, scale, offset, alone, _ = case
    y = lnorm.layer_norm(np.broadcast_to(x[2], x.shape), scale, offset)
    assert bits(y) == bits(np.array([alone[0][2]] * 11))
    single = np.broadcast_to(x[:, :1], x.shape)
    assert bits(lnorm.layer_norm(single, scale, offset)) == bits(
        lnorm.layer_norm(single.copy(), scale, offset)
    )
    repeated = np.broadcast_to(dy[1], dy.shape)
    grads = lnorm.layer_norm_backward(repeated, x, scale)
    assert bits(*grads) == bits(*lnorm.layer_norm_backward(repeated.copy(), x, scale))


def test_given_statistics_change_no_bit_of_what_does_not_need_them(case):
    x, dy, scale, *_ = case
    _, mean, rstd = lnorm.layer_norm(x, return_stats=True)
    plain = lnorm.layer_norm_backward(dy, x, scale, mean=mean, rstd=rstd)
    strided = lnorm.layer_norm_backward(dy, x, scale, mean=every_other(mean), rstd=every_other(rstd))
    assert bits(*plain) == bits(*strided)
    assert bits(plain[2]) == bits(lnorm.layer_norm_backward(dy, x, scale)[2])


@pytest.mark.parametrize(
    "shape, axis",
    [((1531, 768), -1), ((3, 70_001), -1), ((2, 67, 96, 97), 1), ((1500, 333), 0), ((2, 2100, 4096), 1)],
)
def test_rows_of_a_large_array_have_the_bits_of_the_row_alone(shape, axis, dtype):
    """Large arrays take streaming stores, threads and strips of columns."""
    x = rng_for("large", shape).standard_normal(shape, np.float32).astype(dtype)
    y = np.moveaxis(lnorm.layer_norm(x, axis=axis), axis, -1).reshape(-1, shape[axis])
    rows = np.moveaxis(x, axis, -1).reshape(-1, shape[axis])
    for i in {0, 1, 2, len(rows) // 2, len(rows) - 2, len(rows) - 1}:
        assert bits(y[i]) == bits(lnorm.layer_norm(rows[i].copy()))


@pytest.mark.parametrize("stride", [96, 1024])
@pytest.mark.parametrize("columns", [15, 16, 17, 61, 80, 1101])
@pytest.mark.parametrize("n", [3, 33, 300, 1100])
def test_columns_in_place_leave_their_neighbours_alone(n, columns, stride, dtype):
    """The last register of a strip reads some columns before it, which are already written."""
    memory = rng_for(n, columns).standard_normal((n, max(stride, columns + 10))).astype(dtype)
    memory[n // 2, 9] = np.nan
    before = memory.copy()
    x = memory[:, 5 : 5 + columns]
    expected = [lnorm.layer_norm(column.copy(), return_stats=True) for column in x.T]
    _, mean, rstd = lnorm.layer_norm(x, axis=0, out=x, return_stats=True)
    assert bits(*np.array([y for y, _, _ in expected])) == bits(*x.T)
    assert bits(mean, rstd) == bits(
        np.array([m for _, m, _ in expected]).T, np.array([r for _, _, r in expected]).T
    )
    x[:] = before[:, 5 : 5 + columns]
    assert bits(memory) == bits(before)


@pytest.mark.parametrize("stride", [2048, 2050])  # 2048: elements begin at the same place of a page
@pytest.mark.parametrize("n", [50, 97, 140, 512, 1100])
@pytest.mark.parametrize("images", [1, 12])  # in the caches, and around them
def test_columns_of_any_stride_have_the_bits_of_rows(images, n, stride, dtype):
    x = rng_for("stride", n).standard_normal((images, n, stride), np.float32).astype(dtype)
    x[0, 1, 7] = np.nan
    x[-1, 3:, stride - 5] += 1000
    scale, offset = rng_for("stride", n).standard_normal((2, n)).astype(dtype)
    dy = x[:, ::-1].copy()
    y = lnorm.layer_norm(x, scale[:, None], offset[:, None], axis=1)
    dx = lnorm.layer_norm_backward(dy, x, scale[:, None], axis=1)[0]
    columns = sorted({0, 6, 7, stride - 5, stride - 1, *range(1, stride, 119)})
    for image in {0, images - 1}:
        rows, d_rows = (np.ascontiguousarray(a[image][:, columns].T) for a in (x, dy))
        assert bits(y[image][:, columns].T) == bits(lnorm.layer_norm(rows, scale, offset))
        assert bits(dx[image][:, columns].T) == bits(lnorm.layer_norm_backward(d_rows, rows, scale)[0])


@pytest.mark.parametrize("skip", [0, 1, 4, 15])  # elements between the beginnings of a line and of y
@pytest.mark.parametrize("stride", [1104, 1101])  # 1104: each element begins at the same place of a line
@pytest.mark.parametrize("images", [1, 100])  # in the caches, and around them
def test_columns_that_begin_anywhere_in_a_line_have_the_bits_of_rows(images, stride, skip, dtype):
    n = 40
    x = rng_for("line", stride).standard_normal((images, n, stride), np.float32).astype(dtype)
    room = np.full(16 + x.size + 64, -7, dtype)
    begin = -room.ctypes.data % 64 // room.itemsize + skip
    y = room[begin : begin + x.size].reshape(x.shape)
    lnorm.layer_norm(x, axis=1, out=y)
    for image in {0, images - 1}:
        assert bits(y[image].T) == bits(lnorm.layer_norm(np.ascontiguousarray(x[image].T)))
    assert (room[:begin] == -7).all() and (room[begin + x.size :] == -7).all()


@pytest.mark.parametrize("scale", ["none", "given", "every other element"])
@pytest.mark.parametrize("columns", [15, 37, 196, 1101])  # the last: strips without special ones too
@pytest.mark.parametrize("n", [33, 300, 513, 1100, 5000])
def test_dx_of_columns_is_that_of_rows(n, columns, scale, dtype):
    rng = rng_for("dx of columns", n, columns)
    dy, x = rng.standard_normal((2, n, columns)).astype(dtype)
    x[n // 2, 3] = np.inf
    x[:, 11] *= np.finfo(dtype).max / 8
    g = rng.standard_normal(2 * n).astype(dtype)
    g = {"none": None, "given": g[:n], "every other element": g[::2]}[scale]
    rows = lnorm.layer_norm_backward(dy.T.copy(), x.T.copy(), g)
    for stats in (False, True):
        kept = lnorm.layer_norm(x, axis=0, return_stats=True)[1:] if stats else (None, None)
        dx, dscale, _ = lnorm.layer_norm_backward(
            dy, x, None if g is None else g[:, None], axis=0, mean=kept[0], rstd=kept[1]
        )
        assert np.isnan(dx[:, 3]).all() and not np.isnan(np.delete(dx, 3, axis=1)).any()
        if not stats:
            assert bits(dx.T) == bits(rows[0])
        if g is not None:
            assert np.isnan(dscale).all()  # each element has a term of the row with inf


@pytest.mark.usefixtures("around")
@pytest.mark.parametrize(
    ("n", "megabytes"),
    [
        (16, 18),
        (32, 18),
        (64, 18),
        (128, 18),
        (130, 18),
        (255, 18),
        (256, 18),
        (300, 18),
        (771, 18),
        (1025, 18),
        (5000, 18),
        (396, 30),
        (768, 30),
        (1025, 30),
        (2051, 30),
        (5008, 30),
    ],
)
@pytest.mark.parametrize("begin", [0, 1, 4, 13])
def test_what_is_written_around_the_caches_may_begin_and_end_within_a_line(n, megabytes, begin, dtype):
    """From some size on, no cache holds x either, and rows take another way."""
    rows = megabytes * 2**20 // (n * np.dtype(dtype).itemsize)
    x = rng_for("streamed", n).standard_normal((rows, n), np.float32).astype(dtype)
    scale, offset = rng_for(n).standard_normal((2, n)).astype(dtype)
    buffer = np.full(x.size + 64, 7, dtype)
    y = buffer[begin : begin + x.size].reshape(x.shape)
    lnorm.layer_norm(x, scale, offset, out=y)
    for i in range(0, rows, 97):
        assert bits(y[i : i + 97]) == bits(lnorm.layer_norm(x[i : i + 97], scale, offset))
    assert (buffer[:begin] == 7).all() and (buffer[begin + x.size :] == 7).all()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("megabytes", [0.1, 5])
@pytest.mark.parametrize("begin", [0, 4, 13])
@pytest.mark.parametrize("n", [31, 64, 300, 512, 771, 1008, 1024, 1536, 2047, 2048, 2500])
def test_rows_in_caches_are_alone_in_twos_fours_or_more_and_special_ones_among_them(
    n, begin, megabytes, in_place, dtype
):
    """How many are taken together depends on their width and on how far they are; a special one is taken alone."""
    rows = max(16, int(megabytes * 2**20 / (n * np.dtype(dtype).itemsize)) // 4 * 4) + 3
    rng = rng_for("together", n)
    buffer = np.full(rows * n + 64, 7, dtype)
    y = buffer[begin : begin + rows * n].reshape(rows, n)
    x = rng.standard_normal((rows, n), np.float32).astype(dtype)
    special = [0, 1, rows // 2, rows // 2 + 1, rows // 2 + 6, rows - 6, rows - 1]
    x[special[0], n // 2] = np.nan
    x[special[1::2]] *= np.finfo(dtype).max / 8
    x[special[2::2], n // 2 :] += 1000
    scale, offset = rng.standard_normal((2, n)).astype(dtype)
    if in_place:
        y[:] = x
    _, mean, rstd = lnorm.layer_norm(y if in_place else x, scale, offset, out=y, return_stats=True)
    for i in sorted({*special, *range(2, rows, 53), rows - 3, rows - 2}):
        alone = lnorm.layer_norm(x[i], scale, offset, return_stats=True)
        assert bits(y[i], mean[i], rstd[i]) == bits(*alone)
    assert (buffer[:begin] == 7).all() and (buffer[begin + x.size :] == 7).all()


@pytest.mark.parametrize("special", ["plain", "nan", "huge", "constant", "far"])
@pytest.mark.parametrize("n", [65_537, 400_003])
def test_threads_that_share_a_row_leave_its_bits_alone(special, n, dtype):
    x = rng_for("shared", n).standard_normal((1, n)).astype(dtype)
    if special == "nan":
        x[0, n - 2] = np.nan
    elif special == "huge":
        x *= np.finfo(dtype).max / 8
    elif special == "constant":
        x[:] = x[0, 0]
    elif special == "far":
        x[0, 32:] += 1000
    scale, offset = rng_for(n, special).standard_normal((2, n)).astype(dtype)
    results = []
    for threads in (1, 2, 5):
        lnorm.set_num_threads(threads)
        try:
            results.append(lnorm.layer_norm(x, scale, offset, return_stats=True))
            in_place = x.copy()
            lnorm.layer_norm(in_place, scale, offset, out=in_place)
        finally:
            lnorm.set_num_threads(None)
        assert bits(in_place) == bits(results[-1][0])
    assert bits(*results[0]) == bits(*results[1]) == bits(*results[2])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("begin", [0, 5])
def test_long_rows_that_are_written_in_turn_have_the_bits_of_the_row_alone(begin, threads, dtype):
    """Four at a time, and one that is left over."""
    n = 2**20 + 77
    x = rng_for("long").standard_normal((5, n), np.float32).astype(dtype)
    x[1, 100] = np.nan
    x[2] *= np.finfo(dtype).max / 8
    x[3, 64:] += 1000
    scale, offset = rng_for("long", 2).standard_normal((2, n)).astype(dtype)
    buffer = np.full(x.size + 64, 7, dtype)
    y = buffer[begin : begin + x.size].reshape(x.shape)
    lnorm.set_num_threads(threads)
    try:
        _, mean, rstd = lnorm.layer_norm(x, scale, offset, out=y, return_stats=True)
    finally:
        lnorm.set_num_threads(None)
    for i, row in enumerate(x):
        alone = lnorm.layer_norm(row, scale, offset, return_stats=True)
        assert bits(y[i]) == bits(alone[0])
        assert bits(mean[i], rstd[i]) == bits(*alone[1:])
    assert (buffer[:begin] == 7).all() and (buffer[begin + x.size :] == 7).all()


@pytest.mark.parametrize("n", [512, 771, 1025])
@pytest.mark.parametrize("begin", [0, 1, 4, 13])
def test_dx_is_the_same_wherever_it_begins(n, begin, dtype):
    """Its whole registers lie between ends that hold a part of one."""
    rng = rng_for("dx begins", n)
    dy, x = rng.standard_normal((2, 7, n)).astype(dtype)
    scale = rng.standard_normal(n).astype(dtype)
    expected = lnorm.layer_norm_backward(dy, x, scale)
    buffer = np.full(x.size + 64, 7, dtype)
    dx = buffer[begin : begin + x.size].reshape(x.shape)
    _, dscale, doffset = lnorm.layer_norm_backward(dy, x, scale, out=dx)
    assert bits(dx, dscale, doffset) == bits(*expected)
    assert (buffer[:begin] == 7).all() and (buffer[begin + x.size :] == 7).all()
    dx[:] = x
    _, dscale, doffset = lnorm.layer_norm_backward(dy, dx, scale, out=dx)
    assert bits(dx, dscale, doffset) == bits(*expected)


@pytest.mark.usefixtures("around")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("n", "megabytes"),
    [
        (16, 18),
        (64, 18),
        (128, 18),
        (141, 18),
        (240, 18),
        (255, 18),
        (260, 18),
        (784, 18),
        (396, 30),
        (784, 30),
        (2500, 30),
        (2512, 30),
    ],
)
def test_rows_that_share_a_line_with_special_rows_and_with_gaps(n, megabytes, threads, dtype):
    """Written around the caches, the end of a row waits for the beginning of the next, if that is what comes next."""
    rows = megabytes * 2**19 // (n * np.dtype(dtype).itemsize) * 2
    x = rng_for("seams", n).standard_normal((rows, n), np.float32).astype(dtype)
    x[[3, 20, 21, rows - 1], n // 2] = np.nan
    x[[5, 33]] *= np.finfo(dtype).max / 8
    scale, offset = rng_for("seams", n).standard_normal((2, n)).astype(dtype)
    width = n // 16 * 16 + 32
    gaps = np.full(rows * width + 64, 7, dtype)
    gaps = gaps[-gaps.ctypes.data % 64 // gaps.itemsize :][: rows * width].reshape(rows, -1)  # on a line
    lnorm.set_num_threads(threads)
    try:
        dense = lnorm.layer_norm(x, scale, offset)
        lnorm.layer_norm(x, scale, offset, out=gaps[:, :n])
        in_turn = lnorm.layer_norm(x.reshape(-1, 2, n), np.stack([scale] * 2), offset).reshape(x.shape)
        for i in range(0, rows, 41):
            assert bits(dense[i : i + 41]) == bits(lnorm.layer_norm(x[i : i + 41], scale, offset))
        lnorm.layer_norm(x, scale, offset, out=x)
    finally:
        lnorm.set_num_threads(None)
    assert bits(gaps[:, :n]) == bits(in_turn) == bits(dense) == bits(x)
    assert (gaps[:, n:] == 7).all()


@pytest.mark.usefixtures("around")
@pytest.mark.parametrize("begin", [0, 1, 4, 13])
@pytest.mark.parametrize("n", [32, 64, 112, 130, 250, 256, 333, 768, 1040, 3001])
def test_dx_around_the_caches_has_the_bits_of_dx_through_them(n, begin, dtype):
    """Not only dx, but the gradients of the parameters, to which the same elements of a row add in another place."""
    rows = (6 if n < 100 else 9) * 2**20 // (n * np.dtype(dtype).itemsize) + 7
    dy, x = rng_for("around", n).standard_normal((2, rows, n), np.float32).astype(dtype)
    x[[9, 70]] *= np.finfo(dtype).max / 8  # sweeps rows one by one
    scale = rng_for("around", n).standard_normal(n).astype(dtype)
    gaps = np.full((rows, 2 * n), 7, dtype)  # elements that do not stand side by side
    through = lnorm.layer_norm_backward(dy, x, scale, out=gaps[:, ::2])
    for i in range(0, rows, 41):
        assert bits(through[0][i : i + 41]) == bits(
            lnorm.layer_norm_backward(dy[i : i + 41], x[i : i + 41], scale)[0]
        )
    buffer = np.full(x.size + 64, 7, dtype)
    dx = buffer[begin : begin + x.size].reshape(x.shape)
    around = lnorm.layer_norm_backward(dy, x, scale, out=dx)
    assert bits(*around) == bits(*through)
    assert (
        (buffer[:begin] == 7).all() and (buffer[begin + x.size :] == 7).all() and (gaps[:, 1::2] == 7).all()
    )
    dx[:] = dy
    in_place = lnorm.layer_norm_backward(dx, x, scale, out=dx)
    assert bits(*in_place) == bits(*through)
    x[[2, 40, 41, rows - 1], n // 2] = np.nan  # their neighbours in a line are to stay as they are
    with_nan = lnorm.layer_norm_backward(dy, x, scale, out=dx)[0]
    assert bits(with_nan) == bits(
        lnorm.layer_norm_backward(dy, x, scale, out=gaps[:, ::2], param_grads=False)[0]
    )
    assert np.isnan(with_nan[[2, 40, 41, rows - 1]]).all()
    assert bits(np.delete(with_nan, [2, 40, 41, rows - 1], 0)) == bits(
        np.delete(through[0], [2, 40, 41, rows - 1], 0)
    )
