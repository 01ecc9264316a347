"""Promise: no processor meets an instruction that it does not have, and nobody's bits depend on a fused multiply-add.

The trial, in two parts:

disassembly   Every instruction of every function of the extension belongs to the instruction set that the function's
              name says, by the table of CPUID features of iced-x86; what has no such name is plain x86-64.
emulation     The package is imported and computes the self-test's bits (but for its largest arrays) under qemu, as
              processors that have no AVX, AVX without AVX2, and AVX2 without FMA and BMI. First a control: what each of
              them lacks is fatal there.

Needs gcc, qemu-user, and from PyPI iced-x86 and pyelftools.

    python tests/trials/no_wrong_instruction.py [disassembly|emulation]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import lnorm
from lnorm import _core

# x86-64 as it began, and hints that older processors take for no operation.
PLAIN = {
    "INTEL8086",
    "INTEL186",
    "INTEL286",
    "INTEL386",
    "INTEL486",
    "X64",
    "CMOV",
    "SSE",
    "SSE2",
    "FPU",
    "FPU387",
}
PLAIN |= {"MULTIBYTENOP", "CET_IBT", "PAUSE", "CPUID", "PREFETCHW"}
AVX2 = PLAIN | {"AVX", "AVX2"}
ALLOWED = {"v3": AVX2, "v4": AVX2 | {f"AVX512{part}" for part in ("F", "BW", "CD", "DQ", "VL")}}
# The compiler's library asks which registers the system saves, after CPUID has said that one may.
LIBRARY = {name: PLAIN | {"XSAVE"} for name in ("__cpu_indicator_init", "get_available_features")}


def disassembly():
    from elftools.elf.elffile import ELFFile
    from iced_x86 import CpuidFeature, Decoder, Formatter, FormatterSyntax

    feature_names = {
        value: name for name, value in vars(CpuidFeature).items() if isinstance(value, int) and name.isupper()
    }
    formatter = Formatter(FormatterSyntax.NASM)
    found, used, wrong = Counter(), defaultdict(set), []
    with open(_core.__file__, "rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".symtab")
        if symbols is None:
            raise SystemExit(f"{_core.__file__} is stripped of the names that this trial goes by")
        text = elf.get_section_by_name(".text")
        start, code = text["sh_addr"], text.data()
        functions = {
            (symbol["st_value"], symbol["st_size"]): symbol.name
            for symbol in symbols.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_size"]
        }
    for (address, size), name in functions.items():
        if not start <= address < start + len(code):
            continue
        variant = re.search(r"_(v4|v3|v128|one)_(float|double)\b", name)
        isa = variant[1] if variant else "driver"
        allowed = ALLOWED.get(isa) or LIBRARY.get(name.split(".")[0], PLAIN)
        found[isa, "functions"] += 1
        for instruction in Decoder(64, code[address - start : address - start + size], ip=address):
            features = {feature_names[feature] for feature in instruction.cpuid_features()}
            used[isa] |= features
            found[isa, "instructions"] += 1
            shown = formatter.format(instruction)
            if not features <= allowed or re.match(r"vfn?m(add|sub)", shown) or "(bad)" in shown:
                wrong.append(
                    f"{name}+{instruction.ip - address:#x}: {shown}  {features - allowed or 'fused'}"
                )
    print(f"disassembly of {Path(_core.__file__).name}, built by {_core.compiler()}")
    for isa in sorted(used):
        of_isa = sorted(used[isa] - PLAIN) or ["plain x86-64"]
        print(
            f"  {isa:7} {found[isa, 'functions']:5} functions {found[isa, 'instructions']:7} instructions: {of_isa}"
        )
    for line in wrong[:20]:
        print("  wrong:", line)
    total = sum(count for (_, what), count in found.items() if what == "instructions")
    print(f"  {total} instructions, {len(wrong)} of them wrong")
    # A name that no longer tells the instruction set would let everything pass as missing.
    return not wrong and {"v3", "v4", "v128", "one", "driver"} <= set(used)


# Name: what qemu is told, what is fatal there, what lnorm finds.
PROCESSORS = {
    "no AVX": ("Nehalem", "vxorps %ymm0, %ymm0, %ymm0", ["x86-64", "generic"]),
    "AVX without AVX2": ("SandyBridge", "vpxor %ymm0, %ymm0, %ymm0", ["x86-64", "generic"]),
    "AVX2 alone": (
        "Haswell,-fma,-bmi1,-bmi2,-movbe",
        "vfmadd231ps %ymm0, %ymm0, %ymm0",
        ["x86-64-v3", "x86-64", "generic"],
    ),
}
CHILD = """
import sys, lnorm
from lnorm import selftest
found = lnorm.show_config("dicts")["instruction sets"]
expected = sys.argv[1:]
assert found["runnable"] == expected and found["in use"] == expected[0], found
differences = list(selftest.differences(largest=20_000))
cases = len(list(selftest.cases(largest=20_000)))
print(*differences, f"  {cases} cases in {', '.join(expected)}: {len(differences)} differ", sep="\\n")
sys.exit(bool(differences))
"""


def emulation():
    right = True
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(Path(lnorm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
        "OPENBLAS_NUM_THREADS": "1",
    }
    environment.pop("LNORM_ISA", None)
    environment.pop(
        "OPENBLAS_CORETYPE", None
    )  # makes NumPy's import run what the emulated processor does not have

    def run(processor, *command, **more):
        command = ["qemu-x86_64", "-cpu", processor, *command]
        return subprocess.run(
            command, env=environment | more, cwd="/", capture_output=True, text=True, timeout=3600
        )

    with tempfile.TemporaryDirectory() as folder:
        for name, (processor, lacking, expected) in PROCESSORS.items():
            print(f"{name} ({processor})", flush=True)
            source, program = Path(folder, "control.c"), Path(folder, "control")
            source.write_text(f'int main(void) {{ __asm__("{lacking.replace("%", "%%")}" :); }}')
            subprocess.run(["gcc", source, "-o", program], check=True)
            died = run(processor, program).returncode
            done = run(processor, sys.executable, "-c", CHILD, *expected)
            print(done.stdout, end="", flush=True)
            forced = run(processor, sys.executable, "-c", "import lnorm", LNORM_ISA="x86-64-v4")
            refused = forced.returncode == 1 and "cannot run on this CPU" in forced.stderr
            print(
                f"  control: {lacking.split()[0]} ends with signal {-died}; LNORM_ISA=x86-64-v4 refused: {refused}"
            )
            if done.returncode:
                print(f"  exit status {done.returncode}\n{done.stderr}")
            right = right and died == -4 and done.returncode == 0 and refused
    return right


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="*", default=["disassembly", "emulation"])
    parts = {"disassembly": disassembly, "emulation": emulation}
    passed = [parts[part]() for part in parser.parse_args().part]
    sys.exit(not all(passed))
