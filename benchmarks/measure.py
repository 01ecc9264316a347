"""How it is measured: results are checked, then the contestants take turns.

Times on a shared machine mean nothing alone. In every round each contestant has one slice of some 20 ms, one after the
other (A B C A B C …), and what is reported is the ratio of two slices of the same round: the median over the rounds.
The rounds come from several processes, because each has its own luck with the placement of its memory: between two
equal runs of one process each, a tenth of the ratios differed by more than their rounds did, by up to 14 %.
"""

import gc
import os
import platform
import time

import numpy as np

from .cases import expected
from .implementations import PEERS, NotMeasured, prepare

SLICE, QUICK_SLICE = 0.02, 0.005  # seconds
ROUNDS = 5  # in each process
PROCESSES = 3

# All agree with a float64 reference to within this, relative to 1 + the largest element, on N(0, 1) data. Most stay far
# below it; some peers sum millions of elements in float32 and lose 1e-4.
TOLERANCE = {"float32": 5e-4, "float64": 1e-10}

# Seconds. Worker threads look for more work before they sleep, those of OpenMP for some 8 ms and those of ONNX Runtime
# for 30 ms (measured: CPU time after the call). They would do so in the slice of the next contestant.
SETTLE = 0.06

# CPUs: what the system itself may take before a measurement counts as disturbed.
DISTURBANCE = 0.2
ATTEMPTS = 3


def environment(isa, threads):
    """What has to be set before anything is imported."""
    changes = {"NPROC": str(threads)}  # of XLA's own thread pools
    if isa:
        changes["LNORM_ISA"] = isa
    return {**os.environ, **changes}


def check(name, case, data, call, outputs, reference):
    """Run the call once. A wrong result of ours is an AssertionError; that of a peer is a reason not to time it."""
    # Whatever an earlier contestant left there must not pass for the result of this one.
    np.copyto(data.out, data.x if case.into == "in place" else np.nan)
    for got, exact in zip(outputs(call()), reference, strict=True):
        got = np.asarray(got).reshape(exact.shape)
        error = np.abs(got - exact).max(initial=0) / (1 + np.abs(exact).max(initial=0))
        if not (error <= TOLERANCE[case.dtype] and got.dtype == case.dtype):
            if name in PEERS:
                raise NotMeasured(f"the result is wrong: off by {error:.2g}")
            raise AssertionError(f"{name}, {case}: off by {error:.2g}, {got.dtype}")


def contestants(case, names, threads):
    """The checked calls of each implementation, one for each set of arrays; and why others have none."""
    calls, reasons = {name: [] for name in names}, {}
    for data in case.data():
        reference = expected(case, data)
        for name in names:
            if name in reasons:
                continue
            try:
                call, outputs = prepare(name, case, data, threads)
                check(name, case, data, call, outputs, (data.x,) if name == "copy" else reference)
                calls[name].append(call)
            except NotMeasured as reason:
                reasons[name] = str(reason)
                del calls[name]
    return calls, reasons


def seconds_per_call(calls, passes):
    start = time.perf_counter()
    for _ in range(passes):
        for call in calls:
            call()
    return (time.perf_counter() - start) / (passes * len(calls))


def passes_that_fill(calls, seconds):
    passes = 1
    while (elapsed := seconds_per_call(calls, passes) * passes * len(calls)) < seconds / 4:
        passes *= 2
    return max(1, round(passes * seconds / elapsed))


def in_turn(calls, rounds, slice_seconds, threads=1):
    """Seconds per call of each contestant in each round: name -> list."""
    seconds = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        passes = {name: passes_that_fill(own, slice_seconds) for name, own in calls.items()}
        for _ in range(rounds):
            for name, own in calls.items():
                if threads > 1:
                    time.sleep(SETTLE)
                if passes[name] > 1:
                    seconds_per_call(own, 1)  # brings back the caches and the threads
                seconds[name].append(seconds_per_call(own, passes[name]))
    finally:
        gc.enable()
    return seconds


def busy_seconds():
    """CPU time that the whole machine has spent, or None where that cannot be read."""
    try:
        with open("/proc/stat") as lines:
            user, nice, system, _idle, _iowait, irq, softirq = map(int, lines.readline().split()[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def clocks():
    """Wall, this process's CPU time, everyone's CPU time."""
    return time.perf_counter(), time.process_time(), busy_seconds()


def others_busy(before, after):
    """CPUs that other processes kept busy between two readings of the clocks, or None."""
    if before[2] is None or after[2] is None:
        return None
    wall, own, everyone = np.subtract(after, before)
    return round(max(0.0, float((everyone - own) / wall)), 2)


def measure(case, names, threads=1, quick=False):
    """One entry of the JSON file. It keeps the seconds of every round, from which every ratio follows.

    Where others leave too few CPUs for our threads, these wait for each other for a scheduler's time slice, and what is
    measured is that. It is then measured again, and marked if it was never undisturbed.
    """
    calls, reasons = contestants(case, names, threads)
    for _ in range(ATTEMPTS):
        before = clocks()
        seconds = in_turn(calls, ROUNDS, QUICK_SLICE if quick else SLICE, threads)
        busy = others_busy(before, clocks())
        disturbed = busy is not None and threads + busy > os.cpu_count() + DISTURBANCE
        if not disturbed:
            break
    return {
        "group": case.group,
        "case": str(case),
        "n": case.n,
        "observations": case.observations,
        "nbytes": case.nbytes,
        "threads": threads,
        "seconds": seconds,
        "CPUs busy with others": busy,
        "disturbed": disturbed,
        "not measured": reasons,
    }


def joined(entry, other):
    """Of the entries of one case from two processes: all their rounds, or those of the one that was not disturbed."""
    if entry["disturbed"] != other["disturbed"]:
        return other if entry["disturbed"] else entry
    seconds = {name: rounds + other["seconds"][name] for name, rounds in entry["seconds"].items()}
    busy = [e["CPUs busy with others"] for e in (entry, other)]
    return {**entry, "seconds": seconds, "CPUs busy with others": None if None in busy else max(busy)}


def ratios(entry, name, reference="copy"):
    """One for each round."""
    return np.divide(entry["seconds"][name], entry["seconds"][reference])


def machine():
    """A description of what this ran on."""
    import lnorm

    config = lnorm.show_config(mode="dicts")
    description = {
        "processor": platform.processor() or platform.machine(),
        "CPUs": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "compiler": config["compiler"],
        "instruction set": config["instruction sets"]["in use"],
    }
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        description["processor"] = fields.get("model name", description["processor"])
        if {"cpu family", "model"} <= fields.keys():
            description["processor"] += f" (family {fields['cpu family']}, model {fields['model']})"
    caches = []
    for level in range(5):
        path = f"/sys/devices/system/cpu/cpu0/cache/index{level}/"
        if os.path.exists(path + "size"):
            with open(path + "level") as a, open(path + "type") as b, open(path + "size") as c:
                caches.append((a.read().strip(), b.read().strip(), c.read().strip()))
    description["caches"] = ", ".join(f"L{a} {c}" for a, b, c in caches if b != "Instruction")
    return description
