"""What the trials of processes share: every case runs in a process of its own, which must end in time and well."""

import argparse
import faulthandler
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np

LIMIT = 120  # seconds: a hang, not a slow machine
CASES = {}


def case(function):
    """A case of the trial; what it needs and misses it tells by returning the reason."""
    CASES[function.__name__] = function
    return function


def run(name, settings):
    """What went wrong, or None; and what the case said."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "LNORM_NUM"))}
    env |= {k: v for k, v in settings.items() if v is not None}
    command = [sys.executable, sys.argv[0], "--case", name]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=LIMIT)
            wrong = None if process.returncode == 0 else f"exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)  # faulthandler tells where each process hangs
            wrong, said = f"hangs for more than {LIMIT} s", process.communicate()[0]
    for _ in range(20 * LIMIT):  # multiprocessing's own helpers end after their parent
        try:
            os.killpg(process.pid, 0 if wrong is None else signal.SIGKILL)
        except ProcessLookupError:
            return wrong, said
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    return "leaves a process behind", said


def main(doc, settings, **special):
    """Each case under each of the settings (dicts of environment variables), again until the time is over.

    `special` has what a case has instead: a function of the number of the round."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0, help="repeat the whole for so long")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        faulthandler.enable()  # not dump_traceback_later: in a forked child its thread is missed at the end
        reason = CASES[arguments.case]()
        if reason:
            print("not tried:", reason)
        return 0
    end, tried, failed, skipped = time.monotonic() + 60 * arguments.minutes, 0, [], {}
    for again in itertools.count():
        round_ = [(name, s) for name in arguments.only for s in special.get(name, lambda _: settings)(again)]
        for name, setting in round_:
            if again and time.monotonic() > end:
                break
            wrong, said = run(name, setting)
            if wrong:
                failed.append(name)
                print(f"FAILED {name} with {setting}: {wrong}\n{said}", flush=True)
            elif "not tried:" in said:
                skipped[name] = said.partition("not tried:")[2].strip()
            else:
                tried += 1
        if time.monotonic() > end:
            break
    for name, reason in skipped.items():
        print(f"not tried: {name}: {reason}")
    print(f"{len(arguments.only)} cases, {tried} runs passed, {len(failed)} failed")
    return 1 if failed else 0


# --- work for a case -----------------------------------------------------------------------------------------------

x = np.linspace(-1, 1, 1000 * 768, dtype=np.float32).reshape(1000, 768) ** 3
scale = np.linspace(1, 2, 768, dtype=np.float32)


def work():
    """Bytes of a result of every kind that threads share: rows, columns, one long row, gradients of each."""
    import lnorm

    images = x.reshape(10, 768, 100)
    arrays = [
        lnorm.layer_norm(x, scale),
        lnorm.layer_norm(images, scale[:, None], axis=1),
        lnorm.layer_norm(x.reshape(1, -1)),
        *lnorm.layer_norm_backward(x, x, scale),
        *lnorm.layer_norm_backward(images, images, scale[:, None], axis=1),
        *lnorm.layer_norm_backward(x.reshape(2, -1), x.reshape(2, -1)),
    ]
    return b"".join(array.tobytes() for array in arrays)


def forked(job):
    """Run the job in a forked child, which ends as a script ends; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if job() is not False else 2
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
