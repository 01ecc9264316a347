"""A network with two hidden layers on the UCI digits, with and without layer normalization, at one learning rate.

NumPy does the matrix products; lnorm the normalization and the solver. Needs the extra `examples`.

    python examples/digits.py --output digits.png
"""

import argparse
import time

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import lnorm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEARN_RATE = 0.2  # Where the network without normalization fails.


class Dense:
    def __init__(self, inputs, outputs, rng):
        weights = rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)
        bias = np.zeros(outputs, np.float32)
        self.learnables = lnorm.Learnable(weights, "weights"), lnorm.Learnable(bias, "bias", l2_factor=0)

    def forward(self, x):
        self.x = x
        weights, bias = self.learnables
        return x @ weights.value + bias.value

    def backward(self, dy):
        weights, bias = self.learnables
        weights.gradient, bias.gradient = self.x.T @ dy, dy.sum(axis=0)
        return dy @ weights.value.T


class ReLU:
    learnables = ()

    def forward(self, x):
        self.positive = x > 0
        return x * self.positive

    def backward(self, dy):
        return dy * self.positive


class Network:
    """A chain of layers; lnorm.LayerNormalizationLayer is one of them as it is."""

    def __init__(self, layers):
        self.layers = layers

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy):
        for layer in reversed(self.layers):
            dy = layer.backward(dy)

    def accuracy(self, x, labels):
        return float(np.mean(self.forward(x).argmax(axis=1) == labels))


def cross_entropy(scores, labels):
    """The mean loss of a softmax classifier, and its gradient with respect to the scores."""
    scores = scores - scores.max(axis=1, keepdims=True)
    log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    gradient = np.exp(log_probabilities)
    gradient[rows, labels] -= 1
    return -log_probabilities[rows, labels].mean(), gradient / len(labels)


def train(network, solver, data, epochs, description, batch=64, seed=0):
    """Returns the loss of every step, and the test accuracy of every epoch."""
    x, test_x, labels, test_labels = data
    rng = np.random.default_rng(seed)
    losses, accuracies = [], []
    with tqdm(range(epochs), desc=description, unit="epoch") as bar:
        for _ in bar:
            for chosen in np.array_split(rng.permutation(len(x)), len(x) // batch):
                loss, gradient = cross_entropy(network.forward(x[chosen]), labels[chosen])
                network.backward(gradient)
                solver.step(*network.layers)
                losses.append(loss)
            accuracies.append(network.accuracy(test_x, test_labels))
            bar.set_postfix(loss=f"{losses[-1]:.3f}", accuracy=f"{accuracies[-1]:.3f}")
    return np.array(losses), np.array(accuracies)


def load():
    """Training and test images (n, 8, 8), raw pixels of 0 to 16, then training and test labels."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8).astype(np.float32)
    return train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)


def arguments(description, output, epochs):
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--output", default=output, help="path of the picture (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=epochs, help="default: %(default)s")
    return parser.parse_args()


def make_network(normalized, rng):
    layers = []
    for inputs, outputs in ((64, 128), (128, 128)):
        layers += [Dense(inputs, outputs, rng)]
        layers += [lnorm.LayerNormalizationLayer()] * normalized
        layers += [ReLU()]
    return Network([*layers, Dense(128, 10, rng)])


def draw(losses, steps_per_epoch, before, after, path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, values in losses.items():
        epochs = np.arange(1, len(values) + 1) / steps_per_epoch
        left.plot(epochs, values, label=f"{name} layer normalization", linewidth=1)
    left.axhline(np.log(10), color="gray", linestyle=":", label="guessing, ln 10")
    left.set(
        xlabel="epochs", ylabel="training loss (nats)", yscale="log", title=f"Loss at learn rate {LEARN_RATE}"
    )
    left.legend()
    edges = np.linspace(*np.percentile(before, (0.1, 99.9)), 80)
    for name, values in {"before": before, "after": after}.items():
        right.hist(values.ravel(), edges, density=True, alpha=0.6, label=f"{name}: σ = {values.std():.2f}")
    right.set(
        xlabel="activation", ylabel="density", title="Second hidden layer before and after normalization"
    )
    right.legend()
    figure.savefig(path, dpi=100)


def main():
    options = arguments(__doc__, "digits.png", epochs=30)
    started = time.perf_counter()
    x, test_x, *labels = load()
    data = x.reshape(len(x), 64), test_x.reshape(len(test_x), 64), *labels
    losses = {}
    for normalized in (False, True):
        name = "with" if normalized else "without"
        network = make_network(normalized, np.random.default_rng(1))
        # Without normalization, numbers are expected to overflow.
        with np.errstate(all="ignore"):
            losses[name], accuracies = train(
                network, lnorm.SGDM(learn_rate=LEARN_RATE), data, options.epochs, name
            )
        print(f"test accuracy {name} layer normalization: {100 * accuracies[-1]:.1f} %")
    normalization = network.layers[4]
    before = Network(network.layers[:4]).forward(data[1])
    steps_per_epoch = len(losses[name]) / options.epochs
    draw(losses, steps_per_epoch, before, normalization.predict(before), options.output)
    print(f"picture: {options.output}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
