"""Promise: no undefined behaviour, and no byte read or written outside of what was allocated.

Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer into a directory of its own
(LNORM_SANITIZE, see setup.py), with gcc or the CC of the environment, and runs the test suite on it with every
instruction set that runs here, then the trial of freed arrays, with Python's own allocator off so
that each allocation has its red zones.

    python tests/trials/sanitizers.py [--quick] [--build DIR] [pytest arguments]

Left out, with the reason:
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

LEFT_OUT = {
    "tests/test_memory.py": "measures the process's own peak, which shadow memory and quarantine are part of",
    "tests/test_judges.py": "PyTorch's own allocations and threads are not the matter, and take most of the time",
    "tests/test_benchmarks.py": "times and counts instructions of a build that is not the one shipped",
    "tests/test_examples.py": "plots and models of other libraries around calls that other tests make",
}
DESELECTED = {"address_space": "limits the address space, of which shadow memory takes terabytes"}
QUICK = [
    "tests/test_accuracy.py",
    "tests/test_backward.py",
    "tests/test_layouts.py",
    "tests/test_arguments.py",
]
__doc__ += "".join(f"\n    {name}: {why}" for name, why in {**LEFT_OUT, **DESELECTED}.items())


def build(folder):
    """The package with an instrumented extension below the folder, and where it is."""
    env = {**os.environ, "LNORM_SANITIZE": "address,undefined"}
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", folder]
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    return next(Path(folder).glob("lib.*"))


def runtime():
    """The sanitizers' libraries, which have to be in the process before anything else, and the C++ library, which the
    first of them wants to intercept the exceptions of."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    ask = lambda *args: subprocess.run([compiler, *args], capture_output=True, text=True).stdout.strip()  # noqa: E731
    if "clang" in compiler:
        names = [f"libclang_rt.asan-{os.uname().machine}.so", "libstdc++.so.6"]
    else:
        names = ["libasan.so", "libubsan.so", "libstdc++.so.6"]
    return " ".join(ask(f"-print-file-name={name}") for name in names)


def environment(library):
    return {
        **os.environ,
        "PYTHONPATH": str(library),
        "PYTHONMALLOC": "malloc",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_PRELOAD": runtime(),
        # Python itself leaves memory at its end on purpose; leaks.py looks for ours.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="four test modules, best instruction set only")
    parser.add_argument("--build", help="where to build, or where a build is to be found again")
    args, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as away:
        library = build(args.build or away)
        env = environment(library)
        probe = "import lnorm; print(lnorm.__file__, *lnorm.show_config(mode='dicts')['instruction sets']['runnable'])"
        said = subprocess.run(
            [sys.executable, "-c", probe], env=env, cwd=away, capture_output=True, text=True
        )
        assert said.returncode == 0, said.stderr
        place, *isas = said.stdout.split()
        assert Path(place).is_relative_to(library), place
        pytest = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            ROOT / "pyproject.toml",
            *rest,
        ]
        short = [*pytest, *(ROOT / name for name in QUICK)]
        whole = [*pytest, ROOT / "tests", "-k", " and ".join(f"not {name}" for name in DESELECTED)]
        whole += [f"--ignore={ROOT / name}" for name in LEFT_OUT]
        freed = [
            sys.executable,
            Path(__file__).with_name("freed_arrays.py"),
            "--seconds",
            "1" if args.quick else "5",
        ]
        if args.quick:
            runs = [(isas[0], short), (isas[0], freed)]
        else:
            runs = [(isas[0], whole), *((isa, short) for isa in isas[1:]), (isas[0], freed)]
        failed = []
        for isa, command in runs:
            print(f"== {isa}: {' '.join(map(str, command[1:]))}", flush=True)
            if subprocess.run(command, env={**env, "LNORM_ISA": isa}, cwd=away).returncode:
                failed.append((isa, command))
        print("no report of a sanitizer" if not failed else f"failed: {failed}")
        sys.exit(bool(failed))
