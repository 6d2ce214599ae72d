"""Measures how 8-bit matrix products affect a frozen backbone's features, memory and time.

    python benchmarks/quantization.py --model=models/vit_tiny --images=photos/ [--count=64]
    python benchmarks/quantization.py --preset=dinov2_vitl14_reg [--count=64]

With --model and photos: compares the class token and the mean patch token with float32. With
--preset: weights and pixels are random, so only memory and time are meaningful. Times are medians
over --repeats runs with all images in a single batch, after a warm-up run; ratios are relative to
bfloat16 in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from machine import device

import dinotxt_jax as dt
from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.data.resizing import prepare_image
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.inference.backbone import Backbone
from dinotxt_jax.inference.images import read_image
from dinotxt_jax.models.layers import DTypes, abstract_arrays, initial_arrays
from dinotxt_jax.models.presets import PRESETS
from dinotxt_jax.models.vit import VisionTransformer
from dinotxt_jax.storage.model_directory import ModelDescription, Preprocessing
from dinotxt_jax.storage.quantized_kernels import SCALE, quantized

BASE = ("bfloat16", "none")
KINDS = (
    ("float32", "none"),
    BASE,
    ("bfloat16", "int8"),
    ("bfloat16", "float8_e4m3fn"),
    ("float32", "int8"),
    ("float32", "float8_e4m3fn"),
)


def backbones(options: argparse.Namespace) -> Iterator[tuple[tuple[str, str], Backbone]]:
    """Yields the backbone for each (dtype, products) in `KINDS`."""
    for dtype, products in KINDS:
        if options.model:
            yield (dtype, products), dt.load_backbone(options.model, dtype, products)
            continue
        config = PRESETS[options.preset]
        dtypes = DTypes(dtype, dtype, products=products)
        module = drawn_backbone(config, dtypes)
        yield (dtype, products), Backbone(module, ModelDescription(config, Preprocessing(), ""))


def drawn_backbone(config: VisionConfig, dtypes: DTypes) -> VisionTransformer:
    """Returns a randomly initialised backbone, quantising the kernels as if read from a file."""
    declared = VisionTransformer(config, dtypes=dtypes)
    plain = VisionTransformer(config, dtypes=dataclasses.replace(dtypes, products="none"))
    arrays = initial_arrays(plain, abstract_arrays(lambda: plain, None), 0)

    def quantised(tree: dict, abstract: dict) -> dict:
        """Quantises the kernels for which `abstract` has a scale."""
        if SCALE in abstract:
            sizes = zip(abstract["kernel"].shape, abstract[SCALE].shape, strict=True)
            summed = tuple(axis for axis, (size, kept) in enumerate(sizes) if size != kept)
            numbers, scale = quantized(tree["kernel"], dtypes.products, summed)
            return tree | {"kernel": numbers, SCALE: scale}
        return {
            name: quantised(leaf, abstract[name]) if isinstance(leaf, dict) else leaf
            for name, leaf in tree.items()
        }

    arrays = quantised(arrays, abstract_arrays(lambda: declared, None))
    return nnx.merge(nnx.graphdef(declared), arrays)


def pixels(options: argparse.Namespace) -> np.ndarray:
    """Returns photos preprocessed for the model, or noise."""
    if not options.model:
        return np.random.default_rng(0).normal(size=(options.count, 224, 224, 3)).astype("float32")
    description = dt.load_backbone(options.model).description
    preprocessing, patch_size = description.preprocessing, description.vision.patch_size
    files = sorted(Path(options.images).iterdir())[: options.count]
    views = [prepare_image(read_image(file), preprocessing, patch_size) for file in files]
    return normalize(np.stack(views), preprocessing.mean, preprocessing.std)


def features(backbone: Backbone, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns class tokens and mean patch tokens."""
    out = backbone(images)
    return (
        np.asarray(out.class_token, np.float64),
        np.asarray(out.patch_tokens, np.float64).mean(axis=1),
    )


def compared(outputs: np.ndarray, exact: np.ndarray) -> str:
    """Returns mean relative error, and mean and worst cosine similarity."""
    lengths = np.linalg.norm(exact, axis=-1)
    error = np.linalg.norm(outputs - exact, axis=-1) / lengths
    cosine = (outputs * exact).sum(-1) / lengths / np.linalg.norm(outputs, axis=-1)
    return f"{error.mean():.4f} | {cosine.mean():.5f} | {cosine.min():.5f}"


def median_seconds(backbone: Backbone, images: np.ndarray, repeats: int) -> float:
    placed = jax.device_put(images)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(backbone(placed))
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def main() -> None:
    """Prints a table with feature errors, sizes and times by dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model directory")
    parser.add_argument("--images", help="with --model: a folder with photos")
    parser.add_argument("--preset", choices=PRESETS, default="dinov2_vitl14_reg")
    parser.add_argument("--count", type=int, default=64, help="images")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.model and not options.images:
        parser.error("--model needs --images, a folder with photos")
    images = pixels(options)
    rows: list[tuple[tuple[str, str], str, int, float]] = []
    exact: tuple[np.ndarray, np.ndarray] | None = None
    for kind, backbone in backbones(options):
        outputs = features(backbone, images)
        exact = exact or outputs
        errors = " | ".join(compared(a, b) for a, b in zip(outputs, exact, strict=True))
        seconds = median_seconds(backbone, images, options.repeats)
        rows.append((kind, errors, backbone.size_in_bytes, seconds))
    print(f"{device()}, {len(images)} images\n")
    print(
        "| dtype | products | class: error | cosine, mean | worst | patches: error | cosine, mean "
        "| worst | arrays, MB | ms per image | ratio |\n" + "|---" * 11 + "|"
    )
    base = next(seconds for kind, _, _, seconds in rows if kind == BASE)
    for (dtype, products), errors, size, seconds in rows:
        print(
            f"| {dtype} | {products} | {errors} | {size / 1e6:.1f} | "
            f"{seconds / len(images) * 1e3:.1f} | {seconds / base:.2f} |"
        )


if __name__ == "__main__":
    main()
