"""Promise: whatever the numbers and the shape, the kernels keep their bounds and touch nothing outside.

Coverage-guided fuzzing of the table of kernels (fuzz.c) with libFuzzer, AddressSanitizer and
UndefinedBehaviorSanitizer: element type, rows or columns, in place or not, given statistics or not, sizes, epsilon and
all numbers come from the input; the results are held against the formulas in long double. What was worth keeping is in
corpus/, and each run begins with it.

    python tests/trials/fuzz.py [--minutes M] [--all] [--keep] [--build DIR]

Needs clang. With --all, every instruction set that runs here, which takes some minutes to compile; without, the one of
one lane, whose bits are those of all. With --keep, the corpus is reduced afterwards to what covers the code.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "lnorm" / "kernels"
CORPUS = HERE / "corpus"
SANITIZERS = "address"


# The kernels as for a processor without vectors: system headers first, which have to know better.
ONE_LANE = """
#include <math.h>
#include <stdint.h>
#include <string.h>
#undef __x86_64__
#undef __aarch64__
#include "kernels.c"
"""


def build(folder, every):
    """The fuzzer's program, of kernels.c as it is."""
    program = Path(folder, "fuzz")
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        kernels = KERNELS / "kernels.c"
        if not every:
            kernels = Path(folder, "one_lane.c")
            kernels.write_text(ONE_LANE)
        flags = [
            "-std=gnu11",
            "-O1",
            "-g1",
            "-ffp-contract=off",
            "-fno-math-errno",
            "-fno-sanitize-recover=all",
        ]
        flags += [f"-fsanitize=fuzzer,{SANITIZERS}", f"-I{KERNELS}"]
        subprocess.run(["clang", *flags, HERE / "fuzz.c", kernels, "-lm", "-o", program], check=True)
    return program


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--all", action="store_true", help="every instruction set that runs here")
    parser.add_argument("--build", help="where the program is, or is to be, built")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as away:
        program = build(args.build or away, args.all)
        grown = Path(away, "corpus")
        grown.mkdir()
        limits = [
            "-max_len=4096",
            "-timeout=60",
            "-rss_limit_mb=4096",
            f"-max_total_time={round(args.minutes * 60)}",
        ]
        folders = [str(grown), *[str(CORPUS)] * CORPUS.is_dir()]
        command = [
            str(program),
            *limits,
            "-print_final_stats=1",
            f"-artifact_prefix={os.getcwd()}/",
            *folders,
        ]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if args.keep and done.returncode == 0:
            least = Path(away, "least")
            least.mkdir()
            merge = [str(program), "-set_cover_merge=1", "-use_counters=0", str(least), *folders]
            subprocess.run(merge, check=True, stderr=subprocess.DEVNULL)
            CORPUS.mkdir(exist_ok=True)
            for path in CORPUS.iterdir():
                if not path.name.startswith("found"):  # what once broke a bound stays
                    path.unlink()
            for path in least.iterdir():
                (CORPUS / path.name[:12]).write_bytes(path.read_bytes())
    if done.returncode:
        sys.exit(f"found, and written beside where you are:\n{done.stderr[-4000:]}")
    stats = dict(re.findall(r"stat::(\w+): +(\d+)", done.stderr))
    edges = re.findall(r"cov: (\d+)", done.stderr)[-1]
    print(
        f"{stats['number_of_executed_units']} inputs in {args.minutes:g} minutes, {edges} edges: nothing found"
    )
