"""The command: `python -m benchmarks`, from the root of the repository. See README.md in this folder."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

# Nothing here may import lnorm before LNORM_ISA is set, so each command imports what it needs.
from .cases import GROUPS

ROOT = Path(__file__).parents[1]


def run(options):
    """Measure in children, some for each instruction set and number of threads: these are settled when one starts."""
    from . import report
    from .measure import PROCESSES, environment, joined

    start = time.monotonic()
    result, entries = None, {}
    for isa, threads, _ in product(
        options.isa or [os.environ.get("LNORM_ISA", "")],
        options.threads,
        range(1 if options.quick else PROCESSES),
    ):
        groups = options.groups if threads == options.threads[0] else ["threads"]
        if not set(groups) <= set(options.groups):
            continue
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "answer.json"
            job = {"groups": groups, "peers": options.peers, "threads": threads, "quick": options.quick}
            job |= {"accuracy": result is None and not options.no_accuracy, "answer": str(answer)}
            command = [sys.executable, "-m", "benchmarks", "child", json.dumps(job)]
            status = subprocess.run(command, cwd=ROOT, env=environment(isa, threads)).returncode
            if status:
                return status
            part = json.loads(answer.read_text())
        result = result or part
        for entry in part["entries"]:
            key = (entry["isa"], entry["threads"], entry["group"], entry["case"])
            entries[key] = joined(entries[key], entry) if key in entries else entry
    result["entries"] = list(entries.values())
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    text = report.markdown(result)
    (options.output / "results.md").write_text(text)
    print(report.balance(result), report.losses(result), sep="\n\n")
    written = ["results.json", "results.md", *draw(result, options.output)]
    print(f"\n{', '.join(written)} are in {options.output} ({time.monotonic() - start:.0f} s)")


def child(options):
    """One process of a run: see `run`."""
    from tqdm import tqdm

    from . import accuracy, implementations
    from .measure import machine, measure

    job = json.loads(options.job)
    unknown = [name for name in implementations.PEERS if name not in job["peers"]]
    names = [name for name in implementations.NAMES if name not in unknown]
    result = {
        "machine": machine(),
        "versions": implementations.versions(),
        "missing": {**implementations.missing(job["peers"]), **dict.fromkeys(unknown, "not asked for")},
        "quick": job["quick"],
        "entries": [],
    }
    cases = [case for group in job["groups"] for case in GROUPS[group] if case.quick or not job["quick"]]
    bar = tqdm(cases, disable=None, desc=f"{job['threads']} thread(s)", unit="case")
    for case in bar:
        bar.set_postfix_str(f"{case.group} {case}")
        entry = measure(case, names, job["threads"], job["quick"])
        result["entries"].append({"isa": result["machine"]["instruction set"], **entry})
    if job["accuracy"]:
        result["accuracy"] = accuracy.errors(names)
    Path(job["answer"]).write_text(json.dumps(result))


def draw(result, folder):
    try:
        from . import pictures
    except ImportError as error:
        print(f"no pictures: {error}")
        return []
    return pictures.draw_all(result, folder)


def compare(options):
    from . import report

    old, new = (json.loads(Path(path).read_text()) for path in (options.old, options.new))
    text, slower = report.compare(old, new)
    print(text)
    return int(slower)


def accuracy(options):
    if options.isa:
        os.environ["LNORM_ISA"] = options.isa
    os.environ["NPROC"] = "1"
    from . import accuracy, report
    from .implementations import versions

    found = accuracy.errors()
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print("\n" + report.accuracy(found))
    options.output.mkdir(parents=True, exist_ok=True)
    draw({"accuracy": found, "entries": []}, options.output)


def bars(options):
    if options.isa:
        os.environ["LNORM_ISA"] = options.isa
    from . import bars

    bars.main()


def two_threads(options):
    from . import threads

    return int(threads.main() > 0)


def instructions(options):
    from . import instructions

    return instructions.main(options.record)


def arguments(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="lnorm beside a plain copy, the NumPy expression and its peers. Without a command: run.",
    )
    commands = parser.add_subparsers(required=True)

    def command(function, name, text):
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(function=function)
        return added

    peers = ["numba", "ONNX Runtime", "PyTorch", "JAX"]
    short = {name.split()[0].lower(): name for name in peers}
    it = command(run, "run", "measure, and write results.json, results.md and pictures")
    it.add_argument("--quick", action="store_true", help="fewer cases and rounds; under two minutes")
    it.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), metavar="GROUP",
                    help="of " + ", ".join(f'"{group}"' for group in GROUPS))  # fmt: skip
    it.add_argument("--peers", nargs="*", choices=list(short), default=list(short), help="default: all")
    it.add_argument("--isa", nargs="+", default=[], help="instruction sets (names: python -m lnorm info)")
    it.add_argument("--threads", nargs="+", type=int, default=[1, 2],
                    help="the first is for all groups, the others for the group threads (default: 1 2)")  # fmt: skip
    it.add_argument("--no-accuracy", action="store_true", help="times only")
    it.add_argument(
        "--output", type=Path, default=Path("benchmark-results"), help="a folder (default: %(default)s)"
    )

    it = command(compare, "compare", "what changed beyond the noise; exit status 1 if lnorm became slower")
    it.add_argument("old", help="results.json of a run")
    it.add_argument("new", help="results.json of a later one")

    it = command(accuracy, "accuracy", "errors in ε against the offset of the data, and accuracy.png")
    it.add_argument("--isa", help="an instruction set")
    it.add_argument(
        "--output", type=Path, default=Path("benchmark-results"), help="a folder (default: %(default)s)"
    )

    it = command(bars, "bars", "the ratios to a plain copy that are promised: met or not")
    it.add_argument("--isa", help="an instruction set")

    command(
        two_threads, "threads", "two threads beside one, by size; exit status 1 if they are slower somewhere"
    )

    it = command(
        instructions, "instructions", "instructions per element against the budget; exit status 1 if over"
    )
    it.add_argument("--record", action="store_true", help="write the budget instead")

    if argv[:1] == ["child"]:
        return argparse.Namespace(function=child, job=argv[1])
    names = [*commands.choices, "-h", "--help"]
    options = parser.parse_args(argv if argv and argv[0] in names else ["run", *argv])
    if options.function is run:
        options.peers = [short[name] for name in options.peers]
    return options


def main():
    options = arguments(sys.argv[1:])
    return options.function(options)


if __name__ == "__main__":
    sys.exit(main())
