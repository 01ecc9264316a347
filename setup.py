"""The compiler, nothing else: every other fact about the package stands in pyproject.toml."""

import glob
import os
import sys
import tempfile

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = "lnorm/kernels"

# The same bits from every compiler: no contraction to FMA, no reassociation. sqrt without errno is one instruction.
# Debug information of all the variants of the kernels would take a quarter of the build.
UNIX_FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-g0"]


class BuildExt(build_ext):
    """Flags for the compiler at hand, and OpenMP where it links (LNORM_OPENMP=0 leaves it out).

    LNORM_SANITIZE=address,undefined builds with those sanitizers, for tests/trials/sanitizers.py.
    """

    def build_extensions(self):
        flags, link = (
            (["/O2", "/fp:precise"], []) if self.compiler.compiler_type == "msvc" else (UNIX_FLAGS, [])
        )
        if os.environ.get("LNORM_WERROR", "0") != "0":
            flags = [*flags, "-Wall", "-Wextra", "-Werror"]
        if sanitize := os.environ.get("LNORM_SANITIZE"):
            sanitizers = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
            flags = [*flags, *sanitizers, "-O1", "-g1", "-fno-omit-frame-pointer"]
            link = [*link, *sanitizers]
        for compile_flags, link_flags in self.openmp_flags():
            if self.links(compile_flags, link_flags):
                flags, link = flags + compile_flags, link + link_flags
                break
        else:
            print("lnorm: building without OpenMP, every call will use one thread", file=sys.stderr)
        for extension in self.extensions:
            extension.extra_compile_args += flags
            extension.extra_link_args += link
        super().build_extensions()

    def openmp_flags(self):
        if os.environ.get("LNORM_OPENMP", "1") == "0":
            return []
        if self.compiler.compiler_type == "msvc":
            return [(["/openmp"], [])]
        return [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])]

    def links(self, compile_flags, link_flags):
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "openmp.c")
            with open(source, "w") as file:
                file.write("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([source], output_dir=folder, extra_postargs=compile_flags)
                self.compiler.link_executable(
                    objects, os.path.join(folder, "openmp"), extra_postargs=link_flags
                )
            except Exception:
                return False
        return True


extension = Extension(
    "lnorm._core",
    ["lnorm/_core.pyx", f"{KERNELS}/kernels.c", f"{KERNELS}/gradient.c"],
    depends=glob.glob(f"{KERNELS}/*.h"),
    include_dirs=["lnorm", numpy.get_include()],
    define_macros=[
        ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
        ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"),
    ],
)


setup(ext_modules=cythonize([extension], build_dir="build"), cmdclass={"build_ext": BuildExt})
