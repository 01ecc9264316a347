"""Instructions per element, counted by callgrind: a guard against regressions that does not depend on time.

A whole Python call is counted, from the door of the extension to its return, and nothing of the interpreter's start.
The instruction set is x86-64-v3, the best that valgrind knows. Counts repeat to the last digit, but they are those of
one compiler: the budget says which.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .cases import Case, image

BUDGET = Path(__file__).with_name("instructions.json")
ISA = "x86-64-v3"

# Another release of the compiler, or of Python, moves the counts by a few per cent; one more pass over a row, or a loop
# that is no longer in vectors, by 20 % and more.
MARGIN = 0.10

# So that what the first call does once does not count.
CALLS = 20

CASES = {
    str(case): case
    for case in (
        Case((1, 768)),  # what a call costs besides the arithmetic
        Case((128, 768)),
        Case((1024, 64)),  # short rows
        image((2, 96, 14, 14), None),  # channels first
        Case((128, 768), backward=True),
    )
}


def calls(name):
    """What runs under callgrind."""
    import lnorm

    lnorm.set_num_threads(1)
    case = CASES[name]
    data = case.data()[0]
    for _ in range(CALLS):
        if case.backward:
            statistics = {"mean": data.mean, "rstd": data.rstd}
            lnorm.layer_norm_backward(data.dy, data.x, data.scale, out=data.out, **statistics)
        else:
            lnorm.layer_norm(data.x, data.scale, data.offset, axis=case.axis, out=data.out)


def per_element(name):
    case = CASES[name]
    # Cython's name of the public function in _core; collection is on inside it.
    function = "__pyx_pw_*layer_norm_backward" if case.backward else "__pyx_pw_*layer_norm"
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "callgrind.out"
        command = [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={counts}",
            "--collect-atstart=no",
            f"--toggle-collect={function}",
            sys.executable,
            "-c",
            f"from benchmarks.instructions import calls; calls({name!r})",
        ]
        run = subprocess.run(
            command,
            env={**os.environ, "LNORM_ISA": ISA, "PYTHONHASHSEED": "0"},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        if run.returncode:
            sys.exit(f"callgrind failed on {name}:\n{run.stderr}")
        totals = [
            line for line in counts.read_text().splitlines() if line.startswith(("totals:", "summary:"))
        ]
    total = int(totals[-1].split()[1])
    if not total:
        sys.exit(f"callgrind saw no call of {function}: is the extension stripped of its symbols?")
    return total / CALLS / (case.n * case.observations)


def main(record):
    """Exit status."""
    import lnorm

    if shutil.which("valgrind") is None:
        sys.exit(
            "valgrind was not found; it counts the instructions (apt install valgrind, dnf install valgrind, …)"
        )
    config = lnorm.show_config(mode="dicts")
    if ISA not in config["instruction sets"]["runnable"]:
        sys.exit(f"the instruction set {ISA} does not run here, and the budget is for it alone")
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {"instructions per element": {}}
    if not record and budget.get("compiler") != config["compiler"]:
        print(f"the budget was recorded with {budget.get('compiler')}; this is {config['compiler']}")
    counted, over = {}, []
    print(f"{'instructions per element':36} {'counted':>8} {'budget':>8}")
    for name in CASES:
        counted[name] = round(per_element(name), 3)
        allowed = budget["instructions per element"].get(name)
        print(
            f"{name:36} {counted[name]:8.3f} {'–' if allowed is None else format(allowed, '8.3f'):>8}", end=""
        )
        if not record and (allowed is None or counted[name] > allowed * (1 + MARGIN)):
            over.append(name)
            print(
                "  not in the budget" if allowed is None else f"  {counted[name] / allowed - 1:+.0%}", end=""
            )
        print(flush=True)
    if record:
        recorded = {
            "compiler": config["compiler"],
            "instruction set": ISA,
            "instructions per element": counted,
        }
        BUDGET.write_text(json.dumps(recorded, indent=2) + "\n")
        return 0
    if over:
        print(f"over the budget by more than {MARGIN:.0%}: {', '.join(over)}")
    return 1 if over else 0
