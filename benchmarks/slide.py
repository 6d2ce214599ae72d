"""Measures images per second in the slide protocol, against a loop over single windows.

    python benchmarks/slide.py --model=DIR --data=data/msrc_v2 [--classes=ade20k_150] [--images=24]

Both sides run the same protocol on the same photos and masks in the same process, and print the
scores. With `--classes` the photos are classified among another data set's classes; the scores are
then meaningless, but the cost is the same as for the other data set. The loop is the obvious
implementation: for each window, encode an image, resize the map, apply softmax, add. It is compiled
before the clock starts. Both sides run `--repeats` times, alternating; the medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import dinotxt_jax as dt
from dinotxt_jax.config import DataConfig, SegmentationConfig, TaskConfig, check
from dinotxt_jax.data.masks import MaskSource
from dinotxt_jax.data.sources import open_masks
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.evaluation.jobs import Job
from dinotxt_jax.evaluation.segmentation import SegmentationKind, scores
from dinotxt_jax.inference import Model
from dinotxt_jax.inference.prompts import placed_texts
from dinotxt_jax.inference.windows import window_starts

TEMPLATE = "a photo of a {}."


@jax.jit
def cosines(patches: jax.Array, texts: jax.Array) -> jax.Array:
    patches = patches / jnp.linalg.norm(patches, axis=-1, keepdims=True)
    return patches @ texts.T


def one_window_at_a_time(
    model: Model, source: MaskSource, texts: np.ndarray, config: SegmentationConfig, count: int
) -> np.ndarray:
    """Computes the confusion matrix over the first images."""
    preprocessing = model.description.preprocessing
    patch = model.description.vision.patch_size
    confusion = np.zeros((len(texts), len(texts)), np.int64)
    side = config.window
    stretched = -(-side // patch) * patch
    for index in range(count):
        image, mask = source.load(index)
        short = min(image.size)
        width, height = (s * config.short_side // short for s in image.size)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        total = np.zeros((height, width, len(texts)), np.float32)
        visits = np.zeros((height, width, 1), np.float32)
        for top in window_starts(height, side, config.stride):
            for left in window_starts(width, side, config.stride):
                window = normalize(
                    pixels[top : top + side, left : left + side],
                    preprocessing.mean,
                    preprocessing.std,
                )
                if stretched != side:
                    window = jax.image.resize(window, (stretched, stretched, 3), "cubic")
                maps = cosines(model.encode_patches(window[None]).patch_tokens[0], texts)
                fine = jax.image.resize(maps, (side, side, len(texts)), "bilinear")
                total[top : top + side, left : left + side] += jax.nn.softmax(fine, axis=-1)
                visits[top : top + side, left : left + side] += 1
        shape = (*mask.shape, len(texts))
        fine = jax.image.resize(total / visits, shape, "bilinear", antialias=False)
        labels = np.asarray(jnp.argmax(fine, axis=-1))
        labelled = mask != 255
        pairs = mask[labelled].astype(np.int64) * len(texts) + labels[labelled]
        confusion += np.bincount(pairs, minlength=confusion.size).reshape(confusion.shape)
    return confusion


def main() -> None:
    """Prints both speeds and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="data/msrc_v2")
    parser.add_argument("--classes", default="", help="another class list (data/texts)")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model = dt.load(arguments.model)
    data = DataConfig(
        source="csv",
        path=f"{arguments.data}/index.csv",
        classes=arguments.classes or f"{arguments.data}/classes.txt",
    )
    task = TaskConfig(
        kind="segmentation", data=data, templates=TEMPLATE, max_examples=arguments.images
    )
    check(task, "task")
    source = open_masks(data)
    texts = placed_texts(model, source.class_names, (TEMPLATE,)).features
    kind = SegmentationKind()
    job = Job(model, "slide", task, kind.open_set("config.tasks.slide", task), arguments.batch_size)

    def loop() -> dict[str, float]:
        count = arguments.images
        return scores(
            one_window_at_a_time(model, source, texts, task.segmentation, count).astype(float)
        )

    sides = {"one window at a time": loop, "evaluation": lambda: dict(kind.run(job).metrics)}
    metrics_by_side = {name: side() for name, side in sides.items()}  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    classes = len(source.class_names)
    print(
        f"JAX {jax.__version__}, {jax.default_backend()}: {arguments.images} images, "
        f"{classes} classes"
    )
    print("| | images/s | mIoU | pixel accuracy |\n|---|---|---|---|")
    speed = {name: arguments.images / statistics.median(times) for name, times in seconds.items()}
    for name, metrics in metrics_by_side.items():
        figures = f"{metrics['mean_iou']:.2f} | {metrics['pixel_accuracy']:.2f}"
        print(f"| {name} | {speed[name]:.2f} | {figures} |")
    ratio = speed["evaluation"] / speed["one window at a time"]
    print(f"ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
