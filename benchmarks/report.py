"""Tables: what a run found, as Markdown, and what changed from one run to another."""

import numpy as np

from .implementations import NAMES
from .measure import ratios

# A smaller change is none. Between two equal runs on a busy machine, 3 of 70 ratios differed by more than their rounds
# did, by 6 to 8 %; with one process each instead of three, 9, by up to 14 %.
SMALLEST_CHANGE = 0.10


def table(header, rows):
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def quartiles(values):
    return np.percentile(values, [25, 50, 75])


def middle(entry, name, reference="copy"):
    return float(np.median(ratios(entry, name, reference)))


def verdict(entry, name):
    """lnorm against `name`: "win" or "loss" if half of the rounds agree that it is one, "even" if they do not."""
    low, _, high = quartiles(ratios(entry, "lnorm", name))
    return "win" if high < 1 else "loss" if low > 1 else "even"


def peers_of(entry):
    return [name for name in NAMES if name in entry["seconds"] and name not in ("copy", "lnorm")]


def figure(value):
    """Three digits, no exponent."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def configurations(result):
    """(instruction set, threads) in the order of measurement."""
    return list(dict.fromkeys((entry["isa"], entry["threads"]) for entry in result["entries"]))


def duration(seconds):
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def markdown(result):
    parts = ["# lnorm beside a plain copy and its peers", described(result), balance(result), losses(result)]
    for isa, threads in configurations(result):
        parts.append(f"## {isa}, {threads} thread{'s' * (threads > 1)}")
        entries = [e for e in result["entries"] if (e["isa"], e["threads"]) == (isa, threads)]
        for group in dict.fromkeys(entry["group"] for entry in entries):
            parts.append(group_table(group, [entry for entry in entries if entry["group"] == group]))
    if result.get("accuracy"):
        parts.append("## accuracy\n\n" + accuracy(result["accuracy"]))
    return "\n\n".join(parts) + "\n"


def described(result):
    lines = [f"- {key}: {value}" for key, value in result["machine"].items()]
    lines.append("- " + ", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    lines += [f"- {name}: not measured ({reason})" for name, reason in result["missing"].items()]
    busy = [e["CPUs busy with others"] for e in result["entries"] if e["CPUs busy with others"] is not None]
    if busy:
        lines.append(
            f"- other processes kept {np.mean(busy):.1f} CPUs busy meanwhile, {max(busy):.1f} at worst"
        )
    if any(entry["disturbed"] for entry in result["entries"]):
        lines.append(
            "- **disturbed**: other processes left too few CPUs for the threads; such a row counts nowhere else"
        )
    if result["quick"]:
        lines.append("- **a quick run**: fewer cases, few and short rounds; its ratios are rough")
    lines.append(
        "- figures are times in units of a plain copy of the same array (`np.copyto(out, x)`, or `x.copy()` where "
        "the call allocates its result), medians over rounds in which all took turns; the fastest of a row is bold; "
        "– is not measured, and the lines under the table say why. PyTorch allocates its results throughout"
    )
    return "\n".join(lines)


def comparisons(result):
    """(entry, peer, verdict) of all that lnorm was measured beside."""
    return [
        (entry, peer, verdict(entry, peer))
        for entry in result["entries"]
        if "lnorm" in entry["seconds"] and not entry["disturbed"]
        for peer in peers_of(entry)
    ]


def balance(result):
    found = comparisons(result)
    rows = []
    for name in [name for name in NAMES if any(peer == name for _, peer, _ in found)]:
        verdicts = [v for _, peer, v in found if peer == name]
        times = [1 / middle(entry, "lnorm", name) for entry, peer, _ in found if peer == name]
        low, mid, high = min(times), float(np.median(times)), max(times)
        counts = [str(verdicts.count(kind)) for kind in ("win", "even", "loss")]
        rows.append([name, *counts, figure(low), figure(mid), figure(high)])
    header = ["lnorm beside", "faster", "even", "slower", "least time ratio", "median", "greatest"]
    return (
        "## Wins and losses\n\n"
        + table(header, rows)
        + "\n\nThe time ratio is that of the other to lnorm: above 1, lnorm is faster. Even: the middle half of the "
        "rounds contains 1."
    )


def losses(result):
    found = [(entry, peer) for entry, peer, v in comparisons(result) if v == "loss"]
    if not found:
        return "## Where lnorm is slower\n\nNowhere in this run."
    found.sort(key=lambda pair: -middle(pair[0], "lnorm", pair[1]))
    rows = [
        [
            f"{entry['group']}: {entry['case']}",
            entry["isa"],
            str(entry["threads"]),
            peer,
            figure(middle(entry, "lnorm")),
            figure(middle(entry, peer)),
            figure(middle(entry, "lnorm", peer)),
        ]
        for entry, peer in found
    ]
    header = ["case", "instruction set", "threads", "faster is", "lnorm / copy", "its / copy", "lnorm / it"]
    return "## Where lnorm is slower\n\n" + table(header, rows)


def group_table(group, entries):
    names = [name for name in NAMES if any(name in entry["seconds"] for entry in entries)]
    rows = []
    for entry in entries:
        values = {name: middle(entry, name) for name in names if name in entry["seconds"] and name != "copy"}
        best = min(values.values(), default=None)
        case = entry["case"] + " **disturbed**" * entry["disturbed"]
        row = [case, duration(float(np.median(entry["seconds"]["copy"])))]
        for name in names:
            if name != "copy":
                text = figure(values[name]) if name in values else "–"
                row.append(f"**{text}**" if values.get(name) == best else text)
        rows.append(row)
    text = f"### {group}\n\n" + table(["case", "copy", *names[1:]], rows)
    reasons = {}
    for entry in entries:
        for name, reason in entry["not measured"].items():
            reasons.setdefault((name, reason), []).append(entry["case"])
    lines = [
        f"- {name} {reason if reason.startswith(('has', 'takes', 'can', 'its')) else f'({reason})'}"
        + ("" if len(cases) == len(entries) else f": {', '.join(cases)}")
        for (name, reason), cases in reasons.items()
    ]
    return text + ("\n\nNot measured:\n\n" + "\n".join(lines) if lines else "")


def accuracy(found):
    """Tables of errors in epsilon: {"offsets": [...], "errors": {shape: {name: [...]}}, "not measured": {...}}."""
    header = ["N(0, 1) about", *(f"{offset:,}".replace(",", " ") for offset in found["offsets"])]
    parts = ["Worst error of float32 rows in ε, relative to the row's largest |x̂|; lnorm promises 4."]
    for shape, errors in found["errors"].items():
        rows = [
            [name, *(figure(error) if error < 1000 else f"{error:.0e}" for error in row)]
            for name, row in errors.items()
        ]
        parts.append(table([f"{shape}: {header[0]}", *header[1:]], rows))
    parts += [f"{name}: not measured ({reason})" for name, reason in found["not measured"].items()]
    return "\n\n".join(parts)


# --- two runs ------------------------------------------------------------------------------------------------------


def by_key(result):
    undisturbed = [entry for entry in result["entries"] if not entry["disturbed"]]
    return {(e["isa"], e["threads"], e["group"], e["case"]): e for e in undisturbed}


def changes(old, new):
    """What changed beyond the noise: (key, name, old ratio, new ratio) for key = (isa, threads, group, case).

    The noise is that of the rounds. Ratios changed if the middle halves of the two runs' rounds (first to third
    quartile) do not overlap, which neither a few disturbed rounds nor a wide spread can bring about, and if their
    medians differ by more than 10 %. A run takes its rounds from several processes, so that what differs from process
    to process is part of their spread; a quick run has only one, and its small changes mean little.
    """

    before, after = by_key(old), by_key(new)
    found = []
    for key in before.keys() & after.keys():
        for name in before[key]["seconds"].keys() & after[key]["seconds"].keys() - {"copy"}:
            (low0, mid0, high0), (low1, mid1, high1) = (
                quartiles(ratios(run[key], name)) for run in (before, after)
            )
            apart = low1 > high0 or high1 < low0
            if apart and abs(np.log(mid1 / mid0)) > np.log1p(SMALLEST_CHANGE):
                found.append((key, name, float(mid0), float(mid1)))
    order = list(after)
    return sorted(found, key=lambda change: (NAMES.index(change[1]), order.index(change[0])))


def compare(old, new):
    """(text, whether lnorm became slower anywhere)"""
    found = changes(old, new)
    keys = [by_key(run).keys() for run in (old, new)]
    parts = []
    for key in ("processor", "compiler"):
        if old["machine"].get(key) != new["machine"].get(key):
            parts.append(f"The {key} differs: {old['machine'].get(key)}; {new['machine'].get(key)}.")
    if found:
        rows = [
            [name, group, case, isa, str(threads), figure(a), figure(b), f"{100 * (b / a - 1):+.0f} %"]
            for (isa, threads, group, case), name, a, b in found
        ]
        header = ["", "group", "case", "instruction set", "threads", "old / copy", "new / copy", "change"]
        parts.append(table(header, rows))
    parts.append(
        f"{len(found)} ratios changed beyond the noise, in {len(keys[0] & keys[1])} cases of both runs "
        f"({len(keys[0] - keys[1])} only in the old one, {len(keys[1] - keys[0])} only in the new one)."
    )
    return "\n\n".join(parts), any(name == "lnorm" and b > a for _, name, a, b in found)
