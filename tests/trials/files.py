"""Files: `python -m lnorm normalize` and a disk, a file or a process that fails.

Promise: OUT is the old one or the new one, whole, whatever happens; a run that fails says so in one line, without a
traceback, with status 2, and leaves no file behind (but for SIGKILL, which leaves its temporary file).

Trials, each against an old OUT and with IN as OUT:
- killed: at 50 random moments, and at every system call that touches a file (strace, where it is installed);
- every such system call failing in turn with ENOSPC, EIO... (strace's fault injection);
- a full disk: a tmpfs of every size around that of OUT (where mounting is allowed);
- headers and files with flipped, inserted, deleted bytes and cut short at every length, and a list of wicked headers.

    python tests/trials/files.py [--quick] [--seed S]
"""

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import lnorm  # noqa: E402
from lnorm import cli  # noqa: E402

# The command line with chunks so small that a small file takes many of them.
CHILD = "import sys, lnorm.cli as cli; cli.CHUNK_BYTES = 4096; sys.exit(cli.main(sys.argv[1:]))"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
faults = 0


def fault(what: str) -> None:
    global faults
    faults += 1
    print(f"  {what}", flush=True)


class Folder:
    """IN, an old OUT, and what the new one has to be."""

    def __init__(self, path: Path, rows: int = 400) -> None:
        self.path, rng = path, np.random.default_rng(0)
        path.mkdir(exist_ok=True)
        self.x = rng.normal(3, 2, (rows, 40)).astype(np.float32)
        np.save(path / "in.npy", self.x)
        np.save(path / "out.npy", np.arange(1000.0))
        self.input, self.old = (path / "in.npy").read_bytes(), (path / "out.npy").read_bytes()
        np.save(path / "new.npy", lnorm.layer_norm(self.x))
        self.new = (path / "new.npy").read_bytes()
        (path / "new.npy").unlink()

    def restore(self) -> None:
        for name in os.listdir(self.path):
            (self.path / name).unlink()
        (self.path / "in.npy").write_bytes(self.input)
        (self.path / "out.npy").write_bytes(self.old)

    def command(self, output: str) -> list[str]:
        return [sys.executable, "-c", CHILD, "normalize", "in.npy", output]

    def check(self, output: str, status: int, told: str, what: str) -> str:
        """ "old" or "new"; a fault is reported."""
        old = self.input if output == "in.npy" else self.old
        got = (self.path / output).read_bytes() if (self.path / output).exists() else None
        state = "old" if got == old else "new" if got == self.new else "lost"
        left = sorted(set(os.listdir(self.path)) - {"in.npy", "out.npy"})
        killed = status in (-signal.SIGKILL, 128 + signal.SIGKILL)
        if state == "lost":
            fault(f"{what}: OUT is neither the old nor the new one")
        if output != "in.npy" and (self.path / "in.npy").read_bytes() != self.input:
            fault(f"{what}: IN has changed")
        if left and not (killed and len(left) == 1 and re.fullmatch(r"lnorm-[0-9a-f]{32}\.tmp", left[0])):
            fault(f"{what}: left behind {left}")
        if status == 0 and state != "new":
            fault(f"{what}: status 0, and OUT is {state}")
        if "Traceback" in told or (status == 2 and (told.count("\n") != 1 or "lnorm: error: " not in told)):
            fault(f"{what}: status {status}, {told[-300:]!r}")
        if status not in (0, 2, 130, 143) and not killed:
            fault(f"{what}: status {status}, {told[-300:]!r}")
        return state


def killed(folder: Folder, times: int, rng: random.Random) -> None:
    seen = {"old": 0, "new": 0, "lost": 0}
    start = time.monotonic()
    subprocess.run(folder.command("out.npy"), cwd=folder.path, env=ENVIRONMENT, check=True)
    whole = time.monotonic() - start
    for i in range(times):
        output, how = ("out.npy", "in.npy")[i % 2], (signal.SIGKILL, signal.SIGTERM)[i % 4 // 3]
        folder.restore()
        moment = rng.uniform(0.3, 1.1) * whole
        with subprocess.Popen(
            folder.command(output), cwd=folder.path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        ) as child:
            time.sleep(moment)
            child.send_signal(how)
            told = child.communicate()[1]
        if child.returncode == -signal.SIGTERM:
            continue  # before Python was up
        seen[folder.check(output, child.returncode, told, f"killed after {moment:.3f} s by {how.name}")] += 1
    print(f"killed at {times} random moments: {seen}")


# What is done to the files of the folder; and how each of these calls fails in turn.
CALLS = {
    "openat": ("EACCES", "EMFILE", "ENOSPC", "EROFS"),
    "read": ("EIO",),
    "write": ("ENOSPC", "EIO", "EDQUOT"),
    "lseek": ("EIO",),
    "ftruncate": ("ENOSPC", "EFBIG"),
    "fsync": ("EIO", "ENOSPC"),
    "chmod": ("EPERM", "EROFS"),
    "rename": ("EACCES", "EIO"),
    "close": ("EIO",),
}


def every_call(folder: Folder, rng: random.Random, at_most: int) -> None:
    """Kill the program at, or fail, each of its system calls on the files of the folder."""
    if not shutil.which("strace"):
        print("every system call: not run, there is no strace here")
        return
    log = folder.path.parent / "strace.log"

    def traced(output: str, inject: list[str]) -> tuple[int, str, str]:
        folder.restore()
        command = ["strace", "-qq", "-y", "-o", str(log), "-e", f"trace={','.join(CALLS)}", *inject]
        done = subprocess.run(
            [*command, *folder.command(output)],
            cwd=folder.path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stderr, log.read_text()

    status, told, text = traced("out.npy", [])
    if status:
        fault(f"strace: {told[-300:]}")
        return
    # The calls are counted by kind; those before the first one on a file of the folder are Python's start.
    counts: dict[str, int] = {}
    points = []
    for line in text.splitlines():
        kind = line.partition("(")[0]
        if kind in CALLS:
            counts[kind] = counts.get(kind, 0) + 1
            if str(folder.path) in (line := re.sub("AT_FDCWD<[^>]*>", "", line)) and re.search(
                r"\.npy|\.tmp", line
            ):
                points.append((kind, counts[kind]))
    trials = [(kind, n, how) for kind, n in points for how in ("SIGKILL", *CALLS[kind])]
    chosen = rng.sample(trials, min(at_most, len(trials)))
    seen = {"old": 0, "new": 0, "lost": 0}
    for kind, n, how in chosen:
        effect = f"signal={how}" if how.startswith("SIG") else f"error={how}"
        output = rng.choice(("out.npy", "in.npy"))
        status, told, _ = traced(output, ["-e", f"inject={kind}:{effect}:when={n}"])
        seen[folder.check(output, status, told, f"{kind} number {n}: {how}")] += 1
    print(f"killed at or failed {len(chosen)} of {len(trials)} system calls on files: {seen}")


def full_disk(folder: Path) -> None:
    tried = seen = 0
    disk = folder / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True
    )
    if mount.returncode:
        print(f"full disk: not run, mounting is not allowed here: {mount.stderr.strip()}")
        return
    try:
        made = Folder(disk / "files")
        for kib in range(80, 204, 4):  # IN and the old OUT take 76 KiB, the new one 64 KiB.
            made.restore()
            subprocess.run(["mount", "-o", f"remount,size={kib}k", disk], check=True)
            for output in ("out.npy", "in.npy"):
                done = subprocess.run(
                    made.command(output), cwd=made.path, env=ENVIRONMENT, capture_output=True, text=True
                )
                tried += 1
                seen += done.returncode == 2 and "No space left" in done.stderr
                made.check(output, done.returncode, done.stderr, f"disk of {kib} KiB")
                subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
                made.restore()
                subprocess.run(["mount", "-o", f"remount,size={kib}k", disk], check=True)
    finally:
        subprocess.run(["umount", disk], check=True)
    if not seen:
        fault("no disk was full")
    print(f"full disk: {tried} runs, {seen} of them without space")


def npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + header + data


def wicked() -> dict[str, bytes]:
    def header(descr: str, shape: str, order: str = "False") -> bytes:
        return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}".encode()

    data = bytes(96)
    files = {
        f"{descr} {shape}": npy(header(descr, shape), data)
        for descr in ("'<f4'", "'>f8'", "'|b1'", "'<i8'")
        for shape in (
            "()", "(0,)", "(0, 5)", "(5, 0)", "(-1, -4)", "(True, 3)", "(2, 3.0)", "(2, '3')", "(24)", "[4, 6]", "None",
            "(0, 10**9)", "(0, 1000000000000000000000000000000)", "(1000000000000000000000000000000, 0)",
            "(9223372036854775807, 9223372036854775807)", "(4294967296, 4294967296)", f"({'9' * 4000}, {'9' * 4000})",
            f"(0, {'9' * 4000})", f"({'9' * 4400},)", f"({'1, ' * 64})", f"({'1, ' * 65})", f"({'1, ' * 1000})",
            f"({'0, ' * 1000})", "(2, 3, 4, 5, 0, 18446744073709551616)",
        )
    }  # fmt: skip
    files |= {
        f"descr {descr}": npy(header(descr, "(2, 3)"), data * 9)
        for descr in (
            "'(2,3)f4'", "('<f4', (2,))", "('<f4', (1,))", "'|O'", "'|V0'",
            "'|S0'", "'<U0'", "'|V4'", "'<f2'", "'<f16'", "'<c8'", "'<m8[s]'",
            "'<M8'", "[('a', '<f4')]", "[('a', '|O')]", "[]", "{}", "None", "1", "'f4,f4'", "'x'", "''", "'('",
            "b'<f4'", "'T'",
            "'<f4\\x00'", "'<f4, '", "('<f4', {'shape': 2})", "'=f4'", "'f4'", "'float32'", "'<i1'",
        )
    }  # fmt: skip
    deep = {
        "parentheses": "(" * 9000,
        "brackets": "[" * 90 + "]" * 90,
        "minus": "-" * 9000 + "1",
        "attributes": "a" + ".a" * 4000,
        "not": "not " * 2000 + "1",
        "power": "9**9**9",
        "lambda": "lambda: 1",
        "f-string": "f'{1}'",
        "call": "exit()",
        "NUL": "\0",
        "nothing": "",
        "spaces": " " * 9999,
        "unhashable": "{[]: 1}",
        "list": "[1, 2]",
        "mixed keys": "{1: 2, 'descr': '<f4', 'shape': ()}",
        "not closed": "{'descr': '<f4'",
        "long ints of Python 2": "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L)}",
        "order": "{'descr': '<f4', 'fortran_order': 2, 'shape': (2, 3)}",
        "order of text": "{'descr': '<f4', 'fortran_order': 'no', 'shape': (2, 3)}",
    }
    files |= {f"header {name}": npy(text.encode(), data) for name, text in deep.items()}
    del deep["long ints of Python 2"]
    files |= {f"v3 {name}": npy(text.encode(), data, b"\x03\x00") for name, text in deep.items()}
    files |= {
        "header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        "header of 64 KiB": b"\x93NUMPY\x01\x00\xff\xff{",
        "version 0": npy(header("'<f4'", "(2, 3)"), data, b"\x00\x00"),
        "version 9": npy(header("'<f4'", "(2, 3)"), data, b"\x09\x00"),
        "not UTF-8": npy(b"{'descr': '\xff\xfe'}", data, b"\x03\x00"),
        "pickle": b"\x80\x04\x95",
    }
    return files


def run_inside(folder: Folder, arguments: list[str]) -> tuple[int, str]:
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of headers of Python 2
            return cli.main(["normalize", *arguments]), told.getvalue()
    except BaseException as error:
        return -1, f"Traceback: {type(error).__name__}: {error}"


def corrupt(folder: Folder, times: int, rng: random.Random) -> None:
    """As IN, as scale and as offset, with the axis last and first."""
    os.chdir(folder.path)
    good = folder.input
    start = good.index(b"\n") + 1
    files = wicked() | {f"cut to {n}": good[:n] for n in [*range(start + 9), len(good) - 1]}
    for i in range(times):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at, what = rng.randrange(start), rng.randrange(3)
            if what == 0:
                data[at] = rng.choice([rng.randrange(256), *b"0123456789()'{}:,<>fui \x00\x01\x02\x03"])
            elif what == 1:
                data[at:at] = bytes([rng.choice(b"0123456789()',-")])
            else:
                del data[at]
        files[f"mutant {i}"] = bytes(data)
    runs = statuses = 0
    for name, data in files.items():
        for how in (
            ["bad.npy", "out.npy", "--axis", "0"],
            ["bad.npy", "out.npy"],
            ["in.npy", "out.npy", "--scale", "bad.npy"],
        ):
            (folder.path / "bad.npy").write_bytes(data)
            (folder.path / "out.npy").write_bytes(folder.old)
            signal.alarm(30)
            status, told = run_inside(folder, how)
            signal.alarm(0)
            runs += 1
            statuses += status == 2
            out = (folder.path / "out.npy").read_bytes()
            what = f"{name[:80]!r} as {how}"
            if status == 2:
                if out != folder.old:
                    fault(f"{what}: OUT has changed")
                if told.count("\n") != 1 or not told.startswith("lnorm: error: "):
                    fault(f"{what}: {told[:300]!r}")
            elif status == 0:
                try:
                    warnings.simplefilter("ignore")
                    y, x = np.load("out.npy"), np.load(how[0])
                    more = dict(scale=np.load("bad.npy")) if "--scale" in how else {}
                    expected = lnorm.layer_norm(x, axis=0 if "--axis" in how else -1, **more)
                    if (y.dtype, y.shape, y.tobytes()) != (
                        expected.dtype,
                        expected.shape,
                        expected.tobytes(),
                    ):
                        fault(f"{what}: another result")
                except Exception as error:
                    fault(f"{what}: status 0, but {type(error).__name__}: {str(error)[:200]}")
            else:
                fault(f"{what}: {told[:300]!r}")
            left = set(os.listdir()) - {"in.npy", "out.npy", "bad.npy"}
            if left:
                fault(f"{what}: left behind {left}")
                for file in left:
                    os.unlink(file)
    print(f"wicked, cut and mutated files: {len(files)} in {runs} runs, {statuses} refused")
    os.unlink("bad.npy")


def vanishing(folder: Folder) -> None:
    """IN, OUT or their directory removed, replaced or made read-only meanwhile; links; files that are no files."""
    path = folder.path
    wicked_child = CHILD.replace("sys.exit", "exec(sys.argv.pop(1)); sys.exit")

    def as_nobody(arguments: list[str]) -> subprocess.CompletedProcess:
        """In a fork, because the interpreter may lie where nobody has access."""
        with tempfile.TemporaryFile("w+") as told:
            child = os.fork()
            if not child:
                os.setgid(65534)
                os.setuid(65534)
                os.dup2(told.fileno(), 2)
                os._exit(cli.main(["normalize", *arguments]))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            told.seek(0)
            return subprocess.CompletedProcess([], status, "", told.read())

    def run(
        meanwhile: str, *arguments: str, told: str | None, output: str = "out.npy", nobody: bool = False
    ) -> None:
        hook = (
            "import os, lnorm\nnorm, calls = lnorm.layer_norm, []\ndef hooked(x, **k):\n"
            f"    calls.append(x)\n    if len(calls) == 4:\n        {meanwhile or 'pass'}\n    return norm(x, **k)\n"
            "lnorm.layer_norm = hooked"
        )
        command = [sys.executable, "-c", wicked_child, hook, "normalize", *arguments]
        if nobody:
            done = as_nobody([*arguments])
        else:
            done = subprocess.run(
                command, cwd=path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
            )
        what = f"{meanwhile or arguments}"
        if told is None:
            if done.returncode or (path / output).read_bytes() != folder.new:
                fault(f"{what}: status {done.returncode}, {done.stderr[-300:]!r}")
        elif done.returncode != 2 or told not in done.stderr or done.stderr.count("\n") != 1:
            fault(f"{what}: status {done.returncode}, {done.stderr[-300:]!r}")
        # A directory that was moved away keeps the file: nobody knows where it is.
        if list(path.glob("**/*.tmp")) and "rename('d'" not in meanwhile:
            fault(f"{what}: left behind {list(path.glob('**/*.tmp'))}")

    cases = 0

    def case(meanwhile: str, *arguments: str, **more: object) -> None:
        nonlocal cases
        cases += 1
        for name in os.listdir(path):
            if (path / name).is_dir() and not (path / name).is_symlink():
                shutil.rmtree(path / name)
        folder.restore()
        if before := more.pop("before", None):
            before()
        run(meanwhile, *arguments, **more)

    os.chdir(path)
    plain = ("in.npy", "out.npy")
    case("os.unlink('in.npy')", *plain, told=None)
    case("os.replace('out.npy', 'in.npy')", *plain, told=None)
    case("os.unlink('out.npy')", *plain, told=None)
    case("os.unlink('out.npy'); os.mkdir('out.npy')", *plain, told="directory")
    case("os.truncate('in.npy', 9999)", *plain, told="cut short while it was read")
    case("open('in.npy', 'r+b').truncate(0)", *plain, told="cut short while it was read")
    case("[os.unlink(f) for f in os.listdir() if f.endswith('.tmp')]", *plain, told="No such file")
    case(
        "import shutil; shutil.rmtree('d')",
        "in.npy",
        "d/out.npy",
        before=lambda: os.mkdir("d"),
        told="No such file",
    )
    case("os.rename('d', 'e')", "in.npy", "d/out.npy", before=lambda: os.mkdir("d"), told="No such file")
    shutil.rmtree(path / "e", ignore_errors=True)
    case("", "in.npy", "loop", before=lambda: os.symlink("loop", "loop"), told="")
    case("", "loop", "out.npy", before=lambda: os.symlink("loop", "loop"), told="")
    case("", "in.npy", "link", before=lambda: os.symlink("new.npy", "link"), told=None, output="new.npy")
    case("", "link", "in.npy", before=lambda: os.symlink("in.npy", "link"), told=None, output="in.npy")
    case("", "in.npy", "link", before=lambda: os.symlink("in.npy", "link"), told=None, output="in.npy")
    case("", "in.npy", "hard", before=lambda: os.link("in.npy", "hard"), told=None, output="hard")
    if (path / "in.npy").read_bytes() != folder.input:
        fault("a hard link of IN as OUT has changed IN")
    case("", "in.npy", "fifo", before=lambda: os.mkfifo("fifo"), told="no regular file")
    case("", "/dev/zero", "out.npy", told="not a .npy file")
    case("", "/dev/null", "out.npy", told="not a .npy file")
    case("", "in.npy", "/dev/full", told="no regular file")
    case("", "/proc/self/mem", "out.npy", told="")
    case("", "", "out.npy", told="")
    case("", "in.npy", "", told="")
    case("", "in.npy", "x" * 300, told="")
    case("", "in.npy", ".", told="no regular file")
    if os.geteuid() == 0:
        # As somebody to whom permissions mean something; the folder is theirs, the files are read-only.
        def of_nobody(out: int = 0o644) -> None:
            for name in (".", *plain):
                os.chown(name, 65534, 65534)
            os.chmod("in.npy", 0o444)
            os.chmod("out.npy", out)

        os.chmod(path.parent, 0o755)
        case("", *plain, before=lambda: of_nobody(0o444), told="out.npy: ", nobody=True)
        if (path / "out.npy").read_bytes() != folder.old:
            fault("a read-only OUT was replaced")
        case("", *plain, before=lambda: (of_nobody(), os.chmod("in.npy", 0)), told="in.npy: ", nobody=True)
        case("", *plain, before=lambda: (of_nobody(), os.chmod(".", 0o500)), told="out.npy: ", nobody=True)
    os.chmod(path, 0o755)
    os.chdir("/")
    print(f"vanishing, linked, read-only and other files: {cases}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the cases")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, share = random.Random(arguments.seed), 10 if arguments.quick else 1
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        corrupt(Folder(root / "corrupt", 20), 3000 // share, rng)
        vanishing(Folder(root / "vanishing"))
        full_disk(root)
        killed(Folder(root / "killed"), 50 // share, rng)
        every_call(Folder(root / "calls", 200), rng, 400 // share)
        os.chdir("/")
    print(f"found: {faults}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
