"""Pictures of a run. One colour and marker for each implementation, in all of them; lnorm is the line on top."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from .cases import GROUPS
from .report import configurations, middle

# Okabe and Ito's colours, which stay apart for colour-blind readers.
STYLES = {
    "copy": {"color": "0.35", "linestyle": "--", "marker": "", "linewidth": 1.4},
    "lnorm": {"color": "#0072B2", "marker": "o", "linewidth": 2.8, "markersize": 7, "zorder": 5},
    "NumPy": {"color": "#E69F00", "marker": "s"},
    "numba": {"color": "#009E73", "marker": "^"},
    "ONNX Runtime": {"color": "#CC79A7", "marker": "D"},
    "PyTorch": {"color": "#D55E00", "marker": "v"},
    "JAX": {"color": "#56B4E9", "marker": "P"},
}
STYLES = {name: {"linewidth": 1.4, "markersize": 5.5, **style} for name, style in STYLES.items()}
WIDTH = 7.2  # inches
SETTINGS = {
    "figure.dpi": 140,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def draw_all(result, folder):
    """The names of the files written."""
    written = []
    for name, picture in PICTURES.items():
        with plt.rc_context(SETTINGS):
            figure = picture(result)
            if figure is not None:
                figure.savefig(folder / name)
                plt.close(figure)
                written.append(name)
    return written


def entries_of(result, groups, threads=None):
    """Of the first configuration, or of the first with that many threads."""
    for isa, count in configurations(result):
        if threads in (None, count):
            found = [e for e in result["entries"] if (e["isa"], e["threads"]) == (isa, count)]
            return [e for e in found if e["group"] in groups and not e["disturbed"]]
    return []


def present(entries):
    return [name for name in STYLES if any(name in entry["seconds"] for entry in entries)]


def threads_of(entries):
    count = entries[0]["threads"]
    return "one thread" if count == 1 else f"{count} threads"


def label_ends(axes, ends):
    """The name of each line at its right end, moved apart where they would overlap. ends: name -> (x, y)"""
    axes.figure.canvas.draw()  # settles the limits and the layout
    to_pixels, height = axes.transData, 11 * axes.figure.dpi / 72
    places = sorted((to_pixels.transform(end)[1], name) for name, end in ends.items())
    ys = [y for y, _ in places]
    for _ in range(200):  # push neighbours apart by halves until they have room
        for i in range(len(ys) - 1):
            lack = height - (ys[i + 1] - ys[i])
            if lack > 0:
                ys[i] -= lack / 2
                ys[i + 1] += lack / 2
    for y, (_, name) in zip(ys, places):
        x = max(x for x, _ in ends.values())
        axes.annotate(
            name,
            (x, to_pixels.inverted().transform((0, y))[1]),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            color=STYLES[name]["color"],
            fontweight="bold" if name == "lnorm" else "normal",
            fontsize=9.5,
        )


def lines(axes, entries, x_of, y_of):
    ends = {}
    for name in present(entries):
        points = [(x_of(e), y_of(e, name)) for e in entries if name in e["seconds"]]
        axes.plot(*zip(*points), label=name, **STYLES[name])
        ends[name] = points[-1]
    return ends


def seconds(entry, name):
    return float(np.median(entry["seconds"][name]))


def bandwidth(result):
    entries = entries_of(result, ["row width"])
    if len(entries) < 2:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 3.9))
    axes.set_xscale("log", base=2)
    ends = lines(axes, entries, lambda e: e["n"], lambda e, name: 2 * e["nbytes"] / seconds(e, name) / 1e9)
    axes.set_xticks([e["n"] for e in entries], [str(e["n"]) for e in entries])
    axes.set_ylim(0)
    axes.set_xlabel("n, elements in a row")
    axes.set_ylabel("GB/s, read x and written y")
    size = entries[0]["nbytes"] / 2**20
    axes.set_title(f"Bandwidth: {size:.0f} MiB of float32 in rows of n, {threads_of(entries)}")
    label_ends(axes, ends)
    return figure


def ratio_by_shape(result):
    groups = ["small calls", "forward", "backward", "layouts", "dtypes"]
    entries = entries_of(result, groups)
    groups = [group for group in groups if any(e["group"] == group for e in entries)]
    if not entries:
        return None
    counts = [sum(e["group"] == group for e in entries) for group in groups]
    figure, all_axes = plt.subplots(
        len(groups), 1, figsize=(WIDTH, 1.2 + 0.27 * sum(counts) + 0.3 * len(groups)), sharex=True,
        height_ratios=[count + 0.6 for count in counts], squeeze=False,
    )  # fmt: skip
    names = [name for name in present(entries) if name != "copy"]
    for axes, group in zip(all_axes[:, 0], groups):
        rows = [e for e in entries if e["group"] == group]
        for name in names:
            points = [(middle(e, name), -i) for i, e in enumerate(rows) if name in e["seconds"]]
            if points:
                style = {
                    k: v for k, v in STYLES[name].items() if k in ("color", "marker", "markersize", "zorder")
                }
                axes.plot(*zip(*points), linestyle="", label=name, **style)
        axes.axvline(
            1, **{k: v for k, v in STYLES["copy"].items() if k in ("color", "linestyle", "linewidth")}
        )
        labels = [e["case"].replace(" backward", "") if group == "backward" else e["case"] for e in rows]
        axes.set_yticks([-i for i in range(len(rows))], labels, fontsize=8.5)
        axes.set_ylim(-len(rows) + 0.4, 0.6)
        axes.set_xscale("log")
        axes.set_title(group, fontsize=9.5, fontweight="bold", pad=3)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"time / plain copy of the same array (dashed line), {threads_of(entries)}")
    handles = {h.get_label(): h for a in all_axes[:, 0] for h in a.get_lines() if h.get_label() in names}
    figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=6, fontsize=8.5,
                  columnspacing=1, handletextpad=0.2)  # fmt: skip
    return figure


def thread_scaling(result):
    counts = sorted({e["threads"] for e in result["entries"] if e["group"] == "threads"})
    if len(counts) < 2:
        return None
    by_count = {c: {e["case"]: e for e in entries_of(result, ["threads"], c)} for c in counts}
    cases = [case for case in by_count[counts[0]] if all(case in found for found in by_count.values())]
    if not cases:
        return None
    columns = min(3, len(cases))
    figure, all_axes = plt.subplots(
        -(-len(cases) // columns), columns, figsize=(WIDTH, 0.9 + 2.3 * -(-len(cases) // columns)),
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    handles = {}
    for axes, case in zip(all_axes.flat, cases):
        for name in present(list(by_count[counts[0]].values())):
            points = [(c, middle(found[case], name)) for c, found in by_count.items()
                      if name in found[case]["seconds"]]  # fmt: skip
            if points:
                [handles[name]] = axes.plot(*zip(*points), label=name, **STYLES[name])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(counts)
        axes.set_xlim(counts[0] - 0.25, counts[-1] + 0.25)
        axes.set_title(case, fontsize=9.5)
    for axes in all_axes.flat[len(cases) :]:
        axes.set_axis_off()
    figure.supxlabel("threads", fontsize=10)
    figure.supylabel("time / plain copy (one thread)", fontsize=10)
    figure.legend(
        handles.values(), handles, loc="outside upper center", ncols=7, fontsize=8.5, columnspacing=1
    )
    return figure


def growth(group, x_of, xlabel, title):
    def picture(result):
        entries = entries_of(result, [group])
        if len(entries) < 2:
            return None
        figure, axes = plt.subplots(figsize=(WIDTH, 3.9))
        axes.set_xscale("log")
        axes.set_yscale("log")
        ends = lines(axes, entries, x_of, lambda e, name: 1e6 * seconds(e, name))
        axes.set_xlabel(xlabel)
        axes.set_ylabel("µs per call")
        axes.set_title(f"{title}, {threads_of(entries)}")
        label_ends(axes, ends)
        return figure

    return picture


def accuracy(result):
    found = result.get("accuracy")
    if not found:
        return None
    offsets = found["offsets"]
    figure, axes = plt.subplots(figsize=(WIDTH, 3.9))
    ends = {}
    names = list(dict.fromkeys(name for errors in found["errors"].values() for name in errors))
    for name in names:
        worst = np.max([errors[name] for errors in found["errors"].values()], axis=0)
        axes.plot(range(len(offsets)), worst, label=name, **STYLES[name])
        ends[name] = (len(offsets) - 1, worst[-1])
    axes.axhline(4, color="0.4", linestyle="--", linewidth=1.2)
    axes.text(len(offsets) - 1, 5, "what lnorm promises: 4 ε", color="0.3", fontsize=9, ha="right")
    ticks = ["0" if offset == 0 else f"$10^{{{round(np.log10(offset))}}}$" for offset in offsets]
    axes.set_xticks(range(len(offsets)), ticks)
    axes.set_yscale("log")
    axes.set_xlabel("offset of the data, in standard deviations")
    axes.set_ylabel("worst error / ε")
    axes.set_title("Error against the offset of the data, float32")
    label_ends(axes, ends)
    return figure


PICTURES = {
    "bandwidth.png": bandwidth,
    "ratios.png": ratio_by_shape,
    "threads.png": thread_scaling,
    "n.png": growth(
        "scaling with n", lambda e: e["n"], "n, elements in the row", "One observation of n elements"
    ),
    "observations.png": growth(
        "scaling with observations",
        lambda e: e["observations"],
        "observations",
        f"Rows of {GROUPS['scaling with observations'][0].n} elements",
    ),
    "accuracy.png": accuracy,
}
