"""A convolutional network on the UCI digits: convolution, layer normalization, ReLU and pooling, twice, then softmax.

NumPy does the convolutions, by a view of all windows; lnorm normalizes images (`BSSC`) with 16 and with 32 channels.
Needs the extra `examples`.

    python examples/convnet.py --output convnet.png
"""

import time

import numpy as np
from digits import Dense, Network, ReLU, arguments, load, plt, train
from numpy.lib.stride_tricks import sliding_window_view

import lnorm


class Convolution:
    """3 x 3, the size of the images kept. There is no bias: layer normalization has the offset."""

    def __init__(self, inputs, outputs, rng):
        weights = rng.normal(0, np.sqrt(2 / (9 * inputs)), (inputs, 3, 3, outputs)).astype(np.float32)
        self.learnables = (lnorm.Learnable(weights, "weights"),)

    @staticmethod
    def windows(x):
        """(B, S, S, C) to (B, S, S, C, 3, 3), a view of the padded images."""
        return sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), axis=(1, 2))

    def forward(self, x):
        self.x = x
        return np.tensordot(self.windows(x), self.learnables[0].value, axes=3)

    def backward(self, dy):
        weights = self.learnables[0]
        weights.gradient = np.tensordot(self.windows(self.x), dy, axes=((0, 1, 2), (0, 1, 2)))
        turned = weights.value[:, ::-1, ::-1].transpose(3, 1, 2, 0)
        return np.tensordot(self.windows(dy), turned, axes=3)


class MaxPooling:
    """2 x 2."""

    learnables = ()

    def forward(self, x):
        b, rows, columns, c = x.shape
        blocks = x.reshape(b, rows // 2, 2, columns // 2, 2, c)
        largest = blocks.max(axis=(2, 4), keepdims=True)
        self.chosen = blocks == largest
        self.chosen = self.chosen / self.chosen.sum(axis=(2, 4), keepdims=True, dtype=x.dtype)  # Ties share.
        return largest.reshape(b, rows // 2, columns // 2, c)

    def backward(self, dy):
        b, rows, columns, c = dy.shape
        return (self.chosen * dy[:, :, None, :, None]).reshape(b, 2 * rows, 2 * columns, c)


class Flatten:
    learnables = ()

    def forward(self, x):
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy):
        return dy.reshape(self.shape)


def make_network(rng):
    layers = []
    for inputs, outputs in ((1, 16), (16, 32)):
        normalization = lnorm.LayerNormalizationLayer(num_channels=outputs, data_format="BSSC")
        layers += [Convolution(inputs, outputs, rng), normalization, ReLU(), MaxPooling()]
    return Network([*layers, Flatten(), Dense(2 * 2 * 32, 10, rng)])


def mosaic(channels):
    """(8, 8, 16) to (35, 35): 4 x 4 tiles, and between them lines of NaN, which are not drawn."""
    tiles = channels.transpose(2, 0, 1).reshape(4, 4, 8, 8)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    return tiles.transpose(0, 2, 1, 3).reshape(36, 36)[:-1, :-1]


def draw(losses, accuracies, image, before, after, path):
    figure = plt.figure(figsize=(10, 6.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    left, right = top.subplots(1, 2)
    epochs = np.arange(1, len(accuracies) + 1)
    left.plot(
        np.arange(1, len(losses) + 1) * len(epochs) / len(losses), losses, linewidth=1, label="each step"
    )
    left.plot(epochs - 0.5, losses.reshape(len(epochs), -1).mean(axis=1), label="mean of epoch")
    left.set(xlabel="epochs", ylabel="training loss (nats)", yscale="log", title="Loss")
    left.legend()
    right.plot(epochs, 100 * accuracies, "o-", label=f"last: {100 * accuracies[-1]:.1f} %")
    right.set(xlabel="epochs", ylabel="test accuracy (%)", title="Accuracy")
    right.legend(loc="lower right")
    pictures = bottom.subplots(1, 3)
    shown = pictures[0].imshow(image, cmap="gray")
    pictures[0].set_title("A test image")
    bottom.colorbar(shown, ax=pictures[0], label="pixel")
    for ax, channels, title in zip(pictures[1:], (before, after), ("before", "after"), strict=True):
        limit = np.abs(channels).max()  # Symmetric, so that 0 is white.
        shown = ax.imshow(mosaic(channels), cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set(title=f"Its 16 channels {title} normalization", facecolor="black")
        bottom.colorbar(shown, ax=ax, label="activation")
    for ax in pictures:
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def main():
    options = arguments(__doc__, "convnet.png", epochs=10)
    started = time.perf_counter()
    x, test_x, *labels = load()
    data = x[..., np.newaxis], test_x[..., np.newaxis], *labels
    network = make_network(np.random.default_rng(1))
    losses, accuracies = train(network, lnorm.Adam(learn_rate=0.005), data, options.epochs, "training")
    print(f"test accuracy: {100 * accuracies[-1]:.1f} %")
    image = data[1][:1]
    before = network.layers[0].forward(image)
    after = network.layers[1].predict(before)
    draw(losses, accuracies, image[0, ..., 0], before[0], after[0], options.output)
    print(f"picture: {options.output}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
