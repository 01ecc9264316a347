"""Promise: what is released is what stands in the commit, and needs no compiler where it is installed.

The trial: tools/release.py, without a network where the system can take it away, makes an sdist, and from it a wheel
with its OpenMP library. It does so twice, with another folder, umask, time zone, language and hash seed: the same
bytes. The sdist holds every file of the package and the tests that the commit holds, and nothing compiled. The wheel is
installed beside the oldest NumPy that is allowed and beside the newest, where PATH has no compiler: the libraries that
it loads are its own, `python -m lnorm` and the self-test pass, and so do the tests.

Needs git, gcc, pip, and what tools/release.py asks for.

    python tests/trials/supply.py [--once] [--wheel-to FOLDER]

--once leaves out the second build, the oldest NumPy and most of the tests; --wheel-to keeps the wheel and the sdist.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ["test_arguments.py", "test_accuracy.py", "test_layouts.py", "test_oracle.py"]
LOADED = """
import shutil, lnorm
assert not any(map(shutil.which, ["cc", "gcc", "clang", "c++", "ld", "as"]))
assert lnorm.show_config("dicts")["openmp"]["found"]
paths = {line.split()[-1] for line in open("/proc/self/maps") if "lnorm" in line or "gomp" in line}
assert len(paths) == 2 and all("site-packages/lnorm" in path for path in paths), paths
"""


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def release(target, **options):
    offline = ["unshare", "-rn"]
    if subprocess.run([*offline, "true"], stderr=subprocess.DEVNULL).returncode:
        offline = []
    run(*offline, sys.executable, ROOT / "tools/release.py", target, **options)
    print(f"released without a network: {bool(offline)}")
    return {file.name: file.read_bytes() for file in sorted(target.iterdir())}


def holds_the_commit(sdist):
    """The sdist's files of the package and the tests are those of the commit."""
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1]: archive.extractfile(name).read() for name in archive.getnames()}
    committed = run(
        "git", "-C", ROOT, "ls-files", "lnorm", "tests", stdout=subprocess.PIPE, text=True
    ).stdout.split()
    different = []
    for name in committed:
        content = run("git", "-C", ROOT, "show", f"HEAD:{name}", stdout=subprocess.PIPE).stdout
        if packed.get(name) != content:
            different.append(name)
    compiled = [name for name in packed if name.endswith((".so", ".o", ".a", ".pyc", ".dll"))]
    print(
        f"sdist: {len(committed)} files of the commit; missing or different: {different}; compiled: {compiled}"
    )
    return not (different or compiled)


def passes_without_a_compiler(wheel, folder, numpy, tests):
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv/bin/python"
    test = ["pytest", "hypothesis", "dask[array]", "threadpoolctl"]
    run(python, "-m", "pip", "install", "-q", "--only-binary=:all:", wheel, numpy, *test)
    shutil.copytree(ROOT / "tests", folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)
    bare = {"PATH": str(folder / "venv/bin"), "HOME": str(folder)}
    tests = [f"tests/{name}" for name in tests]
    for command in (
        ["-c", LOADED],
        ["-m", "lnorm"],
        ["-m", "lnorm", "selftest"],
        ["-m", "pytest", "-q", *tests],
    ):
        if subprocess.run([python, *command], cwd=folder, env=bare).returncode:
            print(f"beside {numpy}: failed: {command}")
            return False
    return True


def main(once, wheel_to):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        first = release(folder / "first")
        right = True
        if not once:
            (folder / "elsewhere").mkdir()
            other = {
                "TMPDIR": str(folder / "elsewhere"),
                "TZ": "Asia/Tokyo",
                "LC_ALL": "C",
                "PYTHONHASHSEED": "7",
            }
            second = release(folder / "second", env=os.environ | other, umask=0o077)
            different = [name for name in first | second if first.get(name) != second.get(name)]
            print(f"two builds: {len(first)} files, different: {different}")
            right = not different
        (sdist,) = (folder / "first").glob("*.tar.gz")
        (wheel,) = (folder / "first").glob("*.whl")
        right = holds_the_commit(sdist) and right
        for numpy in ["numpy"] if once else ["numpy", "numpy==2.0.*"]:
            (folder / numpy).mkdir()
            tests = TESTS[:1] if once else TESTS
            right = passes_without_a_compiler(wheel, folder / numpy, numpy, tests) and right
        if wheel_to:
            shutil.copytree(folder / "first", wheel_to, dirs_exist_ok=True)
    print("supply: right" if right else "supply: WRONG")
    return 0 if right else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--wheel-to", metavar="FOLDER")
    sys.exit(main(**vars(parser.parse_args())))
