"""Promise: the same bits from every compiler, at every level of optimization, on every processor.

The trial, in two parts:

kernels   hash_kernels.c is built with the kernels by gcc and by clang, at -O1, -O2 and -O3, for x86-64 and for
          AArch64, and run, AArch64 under qemu: one hash from all of them and from every instruction set.
package   The package is built for AArch64 and imported by Debian's Python for arm64, with NumPy's wheel for AArch64,
          under qemu as a Cortex-A53 (ARMv8.0, the least that there is): `python -m lnorm selftest` finds the bits of
          the table that was made on x86-64.

Needs gcc, clang, gcc-aarch64-linux-gnu and qemu-user, and for the second part Debian's package lists, pip and Cython;
nothing is installed.

    python tests/trials/same_bits_elsewhere.py [kernels|package] [--levels 1 2 3]

A change that is meant to change bits: `python -m lnorm selftest --table > lnorm/selftest.txt`, then this trial.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
FLAGS = [
    "-std=gnu11",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    f"-I{ROOT}/lnorm",
    f"-I{ROOT}/lnorm/kernels",
]
KERNELS = [f"{ROOT}/lnorm/kernels/{name}.c" for name in ("kernels", "gradient")]
CROSS = "aarch64-linux-gnu-gcc"
CORTEX = ["qemu-aarch64", "-cpu", "cortex-a53"]
COMPILERS = {
    "gcc": (["gcc"], []),
    "clang": (["clang"], []),
    "gcc for AArch64": ([CROSS, "-static"], CORTEX),
    "clang for AArch64": (["clang", "--target=aarch64-linux-gnu", "-static"], CORTEX),
}


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def kernels(folder, levels):
    """The hashes of every build; the number of builds and instruction sets, and of different hashes."""

    def build_and_run(case):
        (name, (compiler, emulator)), level = case
        program = Path(folder, f"{name} {level}")
        sources = [Path(__file__).with_name("hash_kernels.c"), *KERNELS]
        run(*compiler, level, *FLAGS, *sources, "-o", program, "-lm")
        return [(f"{name} {level}", *line.split()) for line in run(*emulator, program).splitlines()]

    cases = [(compiler, level) for level in levels for compiler in COMPILERS.items()]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        hashes = [line for lines in pool.map(build_and_run, cases) for line in lines]
    for build, isa, value in hashes:
        print(f"{build:22} {isa:10} {value}")
    different = len({value for _, _, value in hashes})
    print(
        f"kernels: {len(cases)} builds, {len(hashes)} with their instruction sets: {different} different hashes\n"
    )
    return different == 1


def arm64_root(folder):
    """Debian's Python for arm64, unpacked; its version."""
    for name in ("state/lists/partial", "cache/archives/partial", "root"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    private = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
    }
    options = [part for name, value in private.items() for part in ("-o", f"{name}={value}")]
    run("apt-get", *options, "update")
    packages = ["python3-minimal", "libpython3-stdlib", "libpython3-dev"]
    run("apt-get", *options, "install", "-y", "--no-install-recommends", "--download-only", *packages)
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        run("dpkg-deb", "-x", package, folder / "root")
    return (folder / "root/usr/bin/python3").resolve().name.removeprefix("python")


def package(folder, levels):
    """Whether the self-test passes on AArch64."""
    folder = Path(folder)
    version = arm64_root(folder)
    root, site = folder / "root", folder / "site"
    wheel = ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={version}"]
    for platform in ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64"):
        wheel.append(f"--platform={platform}")
    run(sys.executable, "-m", "pip", "install", "-q", *wheel, "--target", site, "numpy>=2")

    (site / "lnorm").mkdir()
    for file in [*ROOT.glob("lnorm/*.py"), ROOT / "lnorm/selftest.txt"]:
        (site / "lnorm" / file.name).write_bytes(file.read_bytes())
    driver = folder / "_core.c"
    run(sys.executable, "-m", "cython", ROOT / "lnorm/_core.pyx", "-o", driver)
    # NumPy's headers from this machine: those that Cython saw.
    numpy_headers = ["-I", np.get_include(), "-DNPY_TARGET_VERSION=NPY_2_0_API_VERSION"]
    python_headers = ["-I", root / f"usr/include/python{version}", "-I", root / "usr/include"]
    output = ["-fopenmp", "-shared", "-fPIC", "-o", site / "lnorm/_core.so", "-lm"]
    run(CROSS, levels[-1], *FLAGS, *numpy_headers, *python_headers, driver, *KERNELS, *output)

    libraries = f"{site}:{Path(run(CROSS, '-print-file-name=libgomp.so.1').strip()).resolve().parent}"
    environment = {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": site, "OPENBLAS_NUM_THREADS": "1"}
    emulator = [*CORTEX, "-L", root]
    for name, value in environment.items():
        emulator += ["-E", f"{name}={value}"]
    python = [*emulator, root / f"usr/bin/python{version}"]
    say = "import platform, numpy; print(platform.machine(), platform.python_version(), numpy.__version__)"
    print("package:", run(*python, "-c", say, cwd=folder), end="", flush=True)
    done = subprocess.run([*map(str, python), "-m", "lnorm", "selftest"], cwd=folder)
    return done.returncode == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="*", default=["kernels", "package"])
    parser.add_argument(
        "--levels", nargs="+", default=["1", "2", "3"], metavar="N", help="of optimization: 1 2 3"
    )
    arguments = parser.parse_args()
    parts = {"kernels": kernels, "package": package}
    levels = [f"-O{level}" for level in arguments.levels]
    passed = []
    for part in arguments.part:
        with tempfile.TemporaryDirectory() as folder:
            passed.append(parts[part](folder, levels))
    sys.exit(not all(passed))
