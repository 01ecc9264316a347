"""What does the layer cost over the function? Bar: less than 1 µs per call on (1, 768)."""

import timeit

import numpy as np

import lnorm


def best(call, number=50_000, repeat=9):
    """Microseconds per call, of the quietest repeat."""
    return 1e6 * min(timeit.repeat(call, number=number, repeat=repeat)) / number


def main():
    x, scale, offset = np.random.default_rng(0).standard_normal((3, 768)).astype(np.float32)
    x = x[np.newaxis]
    out = np.empty_like(x)
    layer = lnorm.LayerNormalizationLayer(scale=scale, offset=offset)
    function = best(lambda: lnorm.layer_norm(x, scale, offset, out=out))
    predict = best(lambda: layer.predict(x, out=out))
    print(f"layer_norm(x, scale, offset, out=out)  {function:.3f} µs")
    print(f"layer.predict(x, out=out)              {predict:.3f} µs")
    print(f"overhead                               {predict - function:.3f} µs")


if __name__ == "__main__":
    main()
