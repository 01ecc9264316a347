"""Error against the offset of the data, as a table and a picture.

    python benchmarks/accuracy.py --output docs/accuracy.png

Rows of 768 elements, N(0, 1) about an offset, float32; the worst error over the rows in units of the machine
epsilon, relative to the largest |x̂| of the row. Beside lnorm: the NumPy expression, and PyTorch if it is installed.
"""

import argparse

import numpy as np

import lnorm

OFFSETS = [0, *(10**k for k in range(7))]


def expression(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + np.float32(1e-5))


def implementations():
    found = {"lnorm": lnorm.layer_norm, "NumPy expression": expression}
    try:
        import torch
    except ImportError:
        print("PyTorch: not measured (not installed)")
    else:
        found["PyTorch"] = lambda x: torch.nn.functional.layer_norm(torch.from_numpy(x), x.shape[-1:]).numpy()
    return found


def worst_error(y, x):
    """In units of epsilon; the reference is exact for this purpose: float64 about a nearby integer."""
    d = x.astype(np.float64) - np.rint(x.mean(dtype=np.float64))
    d -= d.mean(-1, keepdims=True)
    exact = d / np.sqrt((d * d).mean(-1, keepdims=True) + 1e-5)
    error = abs(y - exact).max(-1) / abs(exact).max(-1)
    return error.max() / np.finfo(np.float32).eps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="accuracy.png", help="the picture (default: %(default)s)")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((256, 768))
    data = [(rows + offset).astype(np.float32) for offset in OFFSETS]
    errors = {name: [worst_error(f(x), x) for x in data] for name, f in implementations().items()}
    print(f"{'offset':>18}", *(f"{offset:>9}" for offset in OFFSETS))
    for name, values in errors.items():
        print(f"{name:>18}", *(f"{value:9.3g}" for value in values))

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    styles = {"lnorm": ("C0", "o"), "NumPy expression": ("C1", "s"), "PyTorch": ("C3", "^")}
    for name, values in errors.items():
        color, marker = styles[name]
        axes.plot(range(len(OFFSETS)), values, color=color, marker=marker, label=name)
    axes.axhline(4, color="0.4", linestyle="--", linewidth=1)
    axes.text(0, 4.6, "what lnorm promises: 4 ε", color="0.3", fontsize=9)
    axes.set_xticks(range(len(OFFSETS)), ["0", *(f"$10^{k}$" for k in range(7))])
    axes.set_yscale("log")
    axes.set_xlabel("offset of the data, in standard deviations")
    axes.set_ylabel("worst error / ε")
    axes.set_title("Layer normalization of float32 rows: error against the offset", fontsize=11)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.9))
    axes.grid(alpha=0.25)
    figure.savefig(options.output, dpi=130)


if __name__ == "__main__":
    main()
