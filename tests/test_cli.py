"""The command line: what it promises about results, files, exit statuses and messages."""

import itertools
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import lnorm
from lnorm import cli, selftest

POSIX = sys.platform != "win32"
# Few enough bytes that the small arrays here are cut into many chunks.
SMALL_CHUNK = 256

# The command line in a child that stops within its third chunk, says so, and waits to be killed.
STALL = f"""
import sys, lnorm, lnorm.cli
lnorm.cli.CHUNK_BYTES = {SMALL_CHUNK}
layer_norm, chunks = lnorm.layer_norm, []
def stall(x, **kwargs):
    if x.size:
        chunks.append(x.shape)
    if len(chunks) == 3:
        print("stalled", flush=True)
        sys.stdin.read()
    return layer_norm(x, **kwargs)
lnorm.layer_norm = stall
sys.exit(lnorm.cli.main(sys.argv[1:]))
"""


def child_environment(**more):
    """The environment of a child that finds lnorm where this process found it."""
    path = [str(Path(lnorm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))} | more


def run(*arguments, cwd, env=None, **options):
    return subprocess.run(
        [sys.executable, "-m", "lnorm", *arguments],
        cwd=cwd,
        env=env or child_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(cli, "CHUNK_BYTES", SMALL_CHUNK)


@pytest.fixture
def quick(monkeypatch):
    """A report whose times mean nothing."""
    monkeypatch.setattr(cli, "SLICE_SECONDS", 0)
    monkeypatch.setattr(cli, "ROUNDS", 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with in.npy, an older out.npy, and what one may want to hand in by mistake."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("in.npy", rng.normal(3, 2, (40, 24)).astype(np.float32))
    np.save("out.npy", np.arange(3.0))
    np.save("scale.npy", rng.normal(1, 0.1, 24).astype(np.float32))
    np.save("scale7.npy", np.ones(7, np.float32))
    np.save("half.npy", np.ones((3, 4), np.float16))
    np.save("object.npy", np.array([print, "a"], dtype=object), allow_pickle=True)
    np.savez("many.npz", a=np.ones(3))
    Path("text.npy").write_text("1, 2, 3\n")
    Path("nothing.npy").write_bytes(b"")
    Path("short.npy").write_bytes(Path("in.npy").read_bytes()[:-1])
    Path("unclosed.npy").write_bytes(b"\x93NUMPY\x01\x00\x0a\x00{'descr':(" + b" " * 8)
    Path("directory").mkdir()
    return tmp_path


# ---- the report


def accuracy_table(report):
    """Per line of the table of errors: what was normalized, lnorm's error, NumPy's error."""
    lines = report.split("\n\n")[1].splitlines()[2:]
    return {" ".join(words[:-2]): (float(words[-2]), float(words[-1])) for words in map(str.split, lines)}


def test_report_shows_that_the_accuracy_promise_is_kept(tmp_path):
    done = run(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    isa = lnorm.show_config(mode="dicts")["instruction sets"]["in use"]
    assert done.stdout.startswith(f"lnorm {lnorm.__version__}, {isa}, {lnorm.get_num_threads()} thread")
    assert "68 tokens x 384 channels, float32" in done.stdout
    errors = accuracy_table(done.stdout)
    assert len(errors) == 3
    assert all(ours <= 4 for ours, _ in errors.values())
    assert errors["the sample, moved to 10^6 +- 1"][1] > 100
    assert done.stdout.splitlines()[-1] == "accuracy promise: kept"


def round_the_mean(x, y):
    return cli.numpy_expression(x, y, *(cli._sample()[name] for name in ("scale", "offset", "epsilon")))


def spoil_one_value_of_the_sample(x, y):
    if len(x) == 68 and x.mean() < 1:
        y[-1, 5] += 1e-4


def spoil_one_value_of_the_batch(x, y):
    if len(x) > 68:
        y[-1, 5] += 1e-4


def forget_one_value(x, y):
    y[-1, 5] = np.nan


@pytest.mark.parametrize(
    "spoil", [round_the_mean, spoil_one_value_of_the_sample, spoil_one_value_of_the_batch, forget_one_value]
)
def test_report_fails_when_the_accuracy_promise_is_broken(spoil, quick, monkeypatch, capsys):
    def layer_norm(x, scale, offset, *, epsilon, out):
        cli.numpy_expression(x.astype(float), out, scale, offset, epsilon)
        spoil(x, out)

    monkeypatch.setattr(lnorm, "layer_norm", layer_norm)
    assert cli.main([]) == 1
    assert "BROKEN" in capsys.readouterr().out.splitlines()[-1]


def test_report_measures_in_units_of_the_promise():
    x = np.array([[-1, -1, -1, -1, 4], [-1, -1, 4, -1, -1]], np.float32)
    parameters = dict(scale=np.float32(-2), offset=np.float32(1), epsilon=0.0)
    y = np.array([[2, 2, 2, 2, -3], [2, 2, -3, 2, 2]], np.float32)
    assert cli.worst_error(y, x, **parameters) == 0
    y[1, 2] += 10 * np.finfo(np.float32).eps
    assert cli.worst_error(y, x, **parameters) == 10 / (2 * 2 + 1)


def test_report_compares_with_a_right_numpy_expression():
    sample = cli._sample()
    x, scale, offset, epsilon = (sample[name] for name in ("x", "scale", "offset", "epsilon"))
    y = cli.numpy_expression(x, np.empty_like(x), scale, offset, float(epsilon))
    assert cli.worst_error(y, x, scale, offset, float(epsilon)) < 16


def test_report_times_its_calls_in_turn(quick, monkeypatch):
    monkeypatch.setattr(cli, "ROUNDS", 3)
    order = []
    times = cli.times_in_turn([lambda: order.append("a"), lambda: order.append("b")])
    assert times.shape == (3, 2)
    assert "".join(order).endswith("ababab")


def test_sample_is_what_its_readme_says():
    sample = cli._sample()
    assert set(sample) == {"x", "scale", "offset", "epsilon", "tokens"}
    assert {sample[name].dtype for name in ("x", "scale", "offset")} == {np.dtype(np.float32)}
    assert sample["x"].shape == (68, 384) and sample["scale"].shape == sample["offset"].shape == (384,)
    assert sample["tokens"].shape == (68,) and sample["tokens"][0] == "[CLS]"
    assert sample["epsilon"] == 1e-12
    folder = Path(cli.__file__).parent / "sample"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 200_000
    assert {"README.md", "LICENSE-Apache-2.0.txt"} <= {file.name for file in folder.iterdir()}


# ---- info, version, help


def test_info_is_show_config(tmp_path, capsys):
    lnorm.show_config()
    shown = capsys.readouterr().out
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out == shown
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(lnorm.show_config(mode="dicts")))
    assert run("info", cwd=tmp_path).returncode == 0


def test_version(tmp_path):
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"lnorm {lnorm.__version__}", "")


@pytest.mark.parametrize(
    "arguments, told",
    [([], ["normalize", "info", "selftest", "status 1"]), (["normalize"], ["--axis", "--scale"])],
)
def test_help(arguments, told, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and all(word in text for word in told)


# ---- selftest


def test_selftest_finds_the_bits_of_the_table_in_every_instruction_set(capsys):
    assert cli.main(["selftest"]) == 0
    said = capsys.readouterr().out
    assert all(isa in said for isa in lnorm.show_config(mode="dicts")["instruction sets"]["runnable"])
    assert said.endswith("the same bits as on every other machine\n")


def test_selftest_makes_its_own_table(capsys):
    assert cli.main(["selftest", "--table"]) == 0
    assert capsys.readouterr().out == (Path(cli.__file__).parent / "selftest.txt").read_text()


def test_selftest_says_what_differs(monkeypatch, capsys):
    wanted = selftest.expected()
    wanted["float64, rows of 17"][3] = "00000000"
    monkeypatch.setattr(selftest, "expected", lambda: wanted)
    before = lnorm.show_config(mode="dicts")["instruction sets"]
    assert cli.main(["selftest"]) == 1
    *differences, conclusion = capsys.readouterr().out.splitlines()
    assert differences == [f"differs: {isa}: float64, rows of 17: gradients" for isa in before["runnable"]]
    assert "NOT" in conclusion and "python -m lnorm info" in conclusion
    assert lnorm.show_config(mode="dicts")["instruction sets"] == before


def test_selftest_draws_from_splitmix64():
    numbers = selftest.Numbers(np.dtype(np.float32), "")
    # The first numbers from the seed 0, as in the Java library's and Vigna's own implementations.
    assert numbers.integers((3,), 64).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    for dtype in selftest.FORMATS:
        numbers = selftest.Numbers(dtype, "")
        subnormal, finite = numbers.subnormal((999,)), numbers.of_any_exponent((999,))
        assert (subnormal < np.finfo(dtype).smallest_normal).all() and np.isfinite(finite).all()
        assert np.abs(finite).max() > np.finfo(dtype).max / 1e3 and np.ptp(numbers.around_zero((999,))) > 1.9


# ---- normalize: the result

SHAPES_AND_AXES = [
    ((50,), "-1"),
    ((40, 24), "-1"),
    ((40, 24), "0"),
    ((24, 1), "1"),
    ((40, 24), "0,1"),
    ((9, 10, 11), "2"),
    ((9, 10, 11), "1"),
    ((9, 10, 11), "0"),
    ((9, 10, 11), "-2,-1"),
    ((9, 10, 11), "0,2"),
    ((9, 10, 11), "-3,-2"),
    ((3, 5, 7, 11), "1,3"),
    ((3, 5, 7, 11), "3,1,2"),
    ((3, 5, 7, 11), "0,2"),
    ((2, 600), "-1"),
]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape, axis", SHAPES_AND_AXES)
def test_normalize_gives_the_bits_of_layer_norm(shape, axis, order, folder, small_chunks):
    x = np.random.default_rng(1).normal(5, 3, shape).astype(np.float32, order=order)
    np.save("x.npy", x)
    assert cli.main(["normalize", "x.npy", "y.npy", "--axis", axis]) == 0
    y = np.load("y.npy")
    assert same_bits(y, lnorm.layer_norm(x, axis=tuple(map(int, axis.split(",")))))
    assert y.flags.c_contiguous == x.flags.c_contiguous and y.flags.f_contiguous == x.flags.f_contiguous


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<i2", ">i4", "<u8", "|i1", "|b1"])
def test_normalize_takes_the_dtypes_of_layer_norm(dtype, order, folder, small_chunks):
    x = np.asarray(np.random.default_rng(1).integers(0, 100, (30, 4, 7)) % 7, dtype=dtype, order=order)
    np.save("x.npy", x)
    for axis in (-1, 0, 1):
        assert cli.main(["normalize", "x.npy", "y.npy", f"--axis={axis}"]) == 0
        assert same_bits(np.load("y.npy"), lnorm.layer_norm(x, axis=axis))


@pytest.mark.parametrize("parameter_order", ["C", "F"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", ["-1", "1", "0,2"])
@pytest.mark.parametrize(
    "scale_shape, offset_shape",
    [((12,), (12,)), ((), (1,)), ((10, 1), (9, 1, 12)), ((9, 10, 12), (10, 12)), ((9, 1, 1), (1, 10, 1))],
)
def test_normalize_broadcasts_scale_and_offset(
    scale_shape, offset_shape, axis, order, parameter_order, folder, small_chunks
):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(9, 10, 12)).astype(np.float32, order=order)
    scale = np.asarray(rng.normal(size=scale_shape), np.float32, order=parameter_order)
    offset = np.asarray(rng.normal(size=offset_shape), np.float64, order=parameter_order)
    np.save("x.npy", x), np.save("s.npy", scale), np.save("o.npy", offset)
    arguments = ["--axis", axis, "--scale", "s.npy", "--offset", "o.npy", "--epsilon", "0.5"]
    assert cli.main(["normalize", "x.npy", "y.npy", *arguments]) == 0
    y = lnorm.layer_norm(x, scale, offset, axis=tuple(map(int, axis.split(","))), epsilon=0.5)
    assert same_bits(np.load("y.npy"), y)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,)])
def test_normalize_takes_empty_arrays(shape, folder):
    np.save("x.npy", np.empty(shape, np.float32))
    assert cli.main(["normalize", "x.npy", "y.npy"]) == 0
    assert same_bits(np.load("y.npy"), np.empty(shape, np.float32))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_normalize_reads_every_version_of_the_format(version, folder):
    x = np.load("in.npy")
    with open("x.npy", "wb") as file:
        np.lib.format.write_array(file, x, version=version)
        file.write(b"what follows the array is not read, as by numpy.load")
    assert cli.main(["normalize", "x.npy", "y.npy"]) == 0
    assert same_bits(np.load("y.npy"), lnorm.layer_norm(x))


@pytest.mark.parametrize("shape, axis", [((400, 24), "-1"), ((24, 400), "0"), ((20, 20, 24), "2")])
def test_normalize_holds_one_chunk_at_a_time(shape, axis, folder, small_chunks, monkeypatch):
    sizes = []
    layer_norm = lnorm.layer_norm

    def watched(x, **kwargs):
        sizes.append(x.nbytes)
        return layer_norm(x, **kwargs)

    np.save("x.npy", np.ones(shape, np.float32))
    monkeypatch.setattr(lnorm, "layer_norm", watched)
    assert cli.main(["normalize", "x.npy", "y.npy", "--axis", axis]) == 0
    assert max(sizes) <= SMALL_CHUNK and sum(sizes) == 4 * 24 * 400


@pytest.mark.parametrize("shape, axes", [((100, 24), {1}), ((9, 10, 11), {2}), ((9, 10, 11), {1, 2})])
def test_normalize_reads_and_writes_neighbours_at_once(shape, axes):
    for order in "CF":
        if order == "F":
            shape, axes = shape[::-1], {len(shape) - 1 - a for a in axes}
        for box in cli._boxes(shape, axes, order == "F", observations=15):
            chunk = np.empty([part.stop - part.start for part in box], order=order)
            assert len(list(cli._runs(chunk, box, shape, order == "F"))) == 1


def test_normalize_replaces_the_old_file_when_the_new_one_is_on_the_disk(folder, monkeypatch):
    on_disk = []
    monkeypatch.setattr(os, "fsync", lambda _: on_disk.append(next(folder.glob("*.tmp")).read_bytes()))
    replace = os.replace

    def watched(temporary, path):
        assert on_disk == [Path(temporary).read_bytes()]
        replace(temporary, path)

    monkeypatch.setattr(os, "replace", watched)
    assert cli.main(["normalize", "in.npy", "out.npy"]) == 0
    assert on_disk == [Path("out.npy").read_bytes()]


def test_normalize_writes_over_its_input(folder, small_chunks):
    x = np.load("in.npy")
    assert cli.main(["normalize", "in.npy", "in.npy"]) == 0
    assert same_bits(np.load("in.npy"), lnorm.layer_norm(x))


@pytest.mark.skipif(not POSIX, reason="symbolic links need a privilege on Windows")
def test_normalize_replaces_what_a_link_points_to(folder):
    Path("link.npy").symlink_to(Path("directory") / "real.npy")
    for _ in range(2):  # a link to nothing yet, then to the first result
        assert cli.main(["normalize", "in.npy", "link.npy"]) == 0
        assert Path("link.npy").is_symlink() and not Path("directory/real.npy").is_symlink()
    assert same_bits(np.load("directory/real.npy"), lnorm.layer_norm(np.load("in.npy")))
    assert len(os.listdir("directory")) == 1


@pytest.mark.skipif(not POSIX, reason="Windows has no such file modes")
def test_normalize_keeps_the_file_mode(folder):
    os.chmod("out.npy", 0o604)
    umask = os.umask(0o027)
    try:
        for path in ("out.npy", "new.npy"):
            assert cli.main(["normalize", "in.npy", path]) == 0
    finally:
        os.umask(umask)
    assert [os.stat(path).st_mode & 0o777 for path in ("out.npy", "new.npy")] == [0o604, 0o640]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space and shows its peak")
def test_normalize_needs_an_address_space_far_smaller_than_the_file(folder):
    resource = pytest.importorskip("resource")
    environment = child_environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", LNORM_NUM_THREADS="1")
    code = (
        "import lnorm.cli; assert lnorm.cli.main(['normalize', 'in.npy', 'out.npy']) == 0\n"
        "print(open('/proc/self/status').read().split('VmPeak:')[1].split()[0])"
    )
    peak = subprocess.check_output([sys.executable, "-c", code], env=environment)
    limit = int(peak) * 1024 + 64 * 2**20

    # Zeros that take no room on the disk, with three rows among them.
    n = 4096
    rows = 3 * limit // (4 * n) + 1
    filled = [0, rows // 3, rows - 1]
    some = np.random.default_rng(3).normal(size=(3, n)).astype(np.float32)
    with open("big.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, n)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + rows * n * 4)
        for row, values in zip(filled, some, strict=True):
            file.seek(start + row * n * 4)
            file.write(values.tobytes())
    assert os.stat("big.npy").st_size > 3 * limit

    options = dict(
        cwd=folder, env=environment, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    )
    try:
        refused = run("normalize", "big.npy", "y.npy", "--axis=0,1", **options)
        assert refused.returncode == 2
        assert refused.stderr.startswith("lnorm: error: out of memory: ") and "big.npy" in refused.stderr
        assert not Path("y.npy").exists()

        done = run("normalize", "big.npy", "big.npy", **options)
        assert (done.returncode, done.stderr) == (0, "")
        y = np.load("big.npy", mmap_mode="r")
        assert y.shape == (rows, n)
        assert same_bits(y[filled], lnorm.layer_norm(some))
        assert not any(y[a + 1 : b].any() for a, b in itertools.pairwise(filled))
    finally:
        os.unlink("big.npy")


# ---- normalize: the progress bar


def stderr_on_a_terminal(folder, environment):
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, "-m", "lnorm", "normalize", "in.npy", "out.npy"]
    child = subprocess.Popen(command, env=environment, cwd=folder, stderr=slave)
    os.close(slave)
    shown = b""
    with open(master, "rb", buffering=0) as terminal:
        try:
            while part := terminal.read(4096):
                shown += part
        except OSError:  # how Linux tells that the other end is closed
            pass
    assert child.wait(timeout=60) == 0
    return shown.decode()


def test_progress_bar_on_a_terminal(folder):
    pytest.importorskip("tqdm")
    assert "100%" in stderr_on_a_terminal(folder, child_environment())


def test_no_progress_bar_without_tqdm(folder):
    Path("hidden").mkdir()
    Path("hidden/tqdm.py").write_text("raise ImportError('hidden')")
    environment = child_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(folder / "hidden"), environment["PYTHONPATH"]])
    assert stderr_on_a_terminal(folder, environment) == ""


def test_no_progress_bar_without_a_terminal(folder):
    done = run("normalize", "in.npy", "out.npy", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- normalize: broken runs


def assert_untouched(folder, before):
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.fixture
def before(folder):
    """The files as they were, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def heed_signals():
    """Under nohup, or in the background of a script, signals are ignored from the start, and stay so."""
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        signal.signal(
            getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        )


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("output", ["out.npy", "in.npy"])
def test_killed_run_leaves_the_old_file(how, output, folder, before):
    if not POSIX:
        pytest.skip("Windows has no such signals")
    child = subprocess.Popen(
        [sys.executable, "-c", STALL, "normalize", "in.npy", output],
        preexec_fn=heed_signals,
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout.readline() == "stalled\n"
        temporary = set(os.listdir()) - set(before) - {"directory"}
        assert len(temporary) == 1 and next(iter(temporary)).endswith(".tmp")
        child.send_signal(getattr(signal, how))
        _, told = child.communicate(timeout=60)
    if how == "SIGKILL":
        assert child.returncode == -signal.SIGKILL
        os.unlink(temporary.pop())
    else:
        assert child.returncode == {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}[how]
        assert told == ("lnorm: interrupted\n" if how == "SIGINT" else "")
    assert_untouched(folder, before)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), MemoryError("too large")])
def test_broken_run_leaves_the_old_file(error, folder, before, small_chunks, monkeypatch):
    layer_norm, chunks = lnorm.layer_norm, []

    def breaks(x, **kwargs):
        chunks.append(x)
        if len(chunks) == 4:
            raise error
        return layer_norm(x, **kwargs)

    monkeypatch.setattr(lnorm, "layer_norm", breaks)
    arguments = ["normalize", "in.npy", "out.npy"]
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="a bug"):
            cli.main(arguments)
    else:
        assert cli.main(arguments) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert len(chunks) == 4
    assert_untouched(folder, before)


def test_file_that_shrinks_while_it_is_read(folder, monkeypatch, capsys):
    np.save("x.npy", np.ones((400, 1000), np.float32))
    monkeypatch.setattr(cli, "CHUNK_BYTES", 40_000)
    layer_norm = lnorm.layer_norm

    def shrink(x, **kwargs):
        if x.size:
            os.truncate("x.npy", 500_000)
        return layer_norm(x, **kwargs)

    monkeypatch.setattr(lnorm, "layer_norm", shrink)
    assert cli.main(["normalize", "x.npy", "y.npy"]) == 2
    assert capsys.readouterr().err == "lnorm: error: x.npy: cut short while it was read\n"
    assert not Path("y.npy").exists() and not list(folder.glob("*.tmp"))


@pytest.mark.skipif(not POSIX, reason="Windows has no such signals")
def test_stop_signals_are_given_back_and_stay_ignored(folder, monkeypatch):
    inside = []
    layer_norm = lnorm.layer_norm

    def watched(*args, **kwargs):
        inside.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)))
        return layer_norm(*args, **kwargs)

    monkeypatch.setattr(lnorm, "layer_norm", watched)
    old = signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(["normalize", "in.npy", "out.npy"]) == 0
        assert callable(inside[0][0]) and inside[0][1] == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, old[0]), signal.signal(signal.SIGHUP, old[1])


def test_normalize_runs_on_any_thread(folder):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(cli.main, ["normalize", "in.npy", "out.npy"]).result() == 0


def test_full_disk_leaves_the_old_file(folder, before):
    resource = pytest.importorskip("resource", reason="no limit of file sizes here")

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    done = run("normalize", "in.npy", "out.npy", cwd=folder, preexec_fn=limited)
    assert done.returncode == 2
    assert done.stderr.startswith("lnorm: error: ") and done.stderr.count("\n") == 1
    assert_untouched(folder, before)


ERRORS = {
    "no such file": (["nope.npy", "out.npy"], "nope.npy: No such file or directory"),
    "a directory": (["directory", "out.npy"], "directory: "),
    "no .npy file": (["text.npy", "out.npy"], "text.npy: not a .npy file"),
    "no file at all": (["nothing.npy", "out.npy"], "nothing.npy: not a .npy file"),
    "a header that is cut short": (["unclosed.npy", "out.npy"], "unclosed.npy: not a .npy file"),
    "an archive": (["many.npz", "out.npy"], "many.npz: not a .npy file"),
    "pickled objects": (["object.npy", "out.npy"], "object.npy: holds pickled objects"),
    "cut short": (["short.npy", "out.npy"], "short.npy: cut short: its header promises 3968 bytes"),
    "a dtype that is refused": (["half.npy", "out.npy"], "float16"),
    "an axis out of range": (["in.npy", "out.npy", "--axis", "2"], "axis 2"),
    "a repeated axis": (["in.npy", "out.npy", "--axis", "1,-1"], "axis"),
    "a negative epsilon": (["in.npy", "out.npy", "--epsilon", "-1e-5"], "epsilon"),
    "an epsilon that is no number": (["in.npy", "out.npy", "--epsilon", "nan"], "epsilon"),
    "scale of a wrong shape": (["in.npy", "out.npy", "--scale", "scale7.npy"], "(7,) (scale7.npy)"),
    "scale that enlarges x": (["scale.npy", "out.npy", "--scale", "in.npy"], "(40, 24) (in.npy)"),
    "offset that is missing": (["in.npy", "out.npy", "--offset", "nope.npy"], "nope.npy: No such file"),
    "offset of objects": (["in.npy", "out.npy", "--offset", "object.npy"], "object.npy: holds pickled"),
    "a target in no directory": (["in.npy", "nowhere/out.npy"], "nowhere/out.npy: cannot be written: No"),
    "a target in a file": (["in.npy", "text.npy/out.npy"], "text.npy/out.npy: cannot be written: "),
    "a target that is a directory": (["in.npy", "directory"], "directory: is there, but is no regular"),
    "a target that is a device": (["in.npy", os.devnull], f"{os.devnull}: is there, but is no regular"),
}


@pytest.mark.parametrize("arguments, told", ERRORS.values(), ids=ERRORS)
def test_error_is_one_line_and_leaves_the_old_file(arguments, told, folder, before, capsys):
    assert cli.main(["normalize", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("lnorm: error: ") and shown.err.count("\n") == 1
    assert told in shown.err
    assert_untouched(folder, before)
    assert os.listdir("directory") == []


def npy(
    descr="'<f4'", shape="(2, 3)", header="{'descr': %s, 'fortran_order': False, 'shape': %s}", version=1
):
    text = (header % (descr, shape) if "%" in header else header).encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


@pytest.mark.parametrize("axis", ["0", "-1"])
@pytest.mark.parametrize(
    "data",
    [
        npy(shape="(0, 10%s)" % ("0" * 30)),
        npy(shape="(10%s, 0)" % ("0" * 30)),
        npy(shape="(True, 3)"),
        npy(shape="(%s)" % ("0, " * 65)),
        npy(descr="'(2,3)f4'"),
        npy(header="a" + ".a" * 4000),
        npy(header="{[]: 1}"),
        npy(version=0),
        npy(version=9),
    ],
    ids=[
        "0 x 1e31",
        "1e31 x 0",
        "bool",
        "65 dimensions",
        "subarray",
        "deep",
        "unhashable",
        "v0",
        "v9",
    ],
)
def test_headers_of_what_is_no_array(data, axis, folder, before, capsys):
    Path("bad.npy").write_bytes(data + bytes(999))
    assert cli.main(["normalize", "bad.npy", "out.npy", "--axis", axis]) == 2
    assert capsys.readouterr().err.startswith("lnorm: error: bad.npy: not a .npy file that can be read: ")
    os.unlink("bad.npy")
    assert_untouched(folder, before)


def test_no_rows_of_a_great_length_are_done_at_once(folder):
    Path("bad.npy").write_bytes(npy(shape="(0, 1%s)" % ("0" * 17)))
    assert cli.main(["normalize", "bad.npy", "out.npy", "--axis", "0"]) == 0
    assert np.load("out.npy").shape == (0, 10**17)


def test_read_only_target_is_not_replaced(folder, before, capsys, monkeypatch):
    os.chmod("out.npy", 0o444)
    monkeypatch.setattr(
        os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o200)
    )  # root may anything
    assert cli.main(["normalize", "in.npy", "out.npy"]) == 2
    assert capsys.readouterr().err == "lnorm: error: out.npy: is read-only, and is not replaced\n"
    os.chmod("out.npy", 0o644)
    assert_untouched(folder, before)


def test_error_of_a_process_has_no_traceback(folder, before):
    done = run("normalize", "short.npy", "out.npy", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lnorm: error: short.npy: cut short") and done.stderr.count("\n") == 1
    assert_untouched(folder, before)


@pytest.mark.skipif(not POSIX or os.geteuid() == 0, reason="no directory refuses root, nor anyone on Windows")
def test_unwritable_directory(folder, before, capsys):
    os.chmod("directory", 0o500)
    assert cli.main(["normalize", "in.npy", "directory/out.npy"]) == 2
    assert "directory/out.npy: cannot be written: Permission denied" in capsys.readouterr().err
    assert_untouched(folder, before)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["normalise"], "invalid choice"),
        (["normalize", "in.npy"], "OUT.npy"),
        (["normalize", "in.npy", "out.npy", "--axis", "1,b"], "'1,b' is no int"),
        (["normalize", "in.npy", "out.npy", "--axis", ""], "'' is no int"),
        (["normalize", "in.npy", "out.npy", "--epsilon", "small"], "small"),
    ],
)
def test_wrong_usage_is_status_2(arguments, told, folder, before, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and told in capsys.readouterr().err
    assert_untouched(folder, before)
