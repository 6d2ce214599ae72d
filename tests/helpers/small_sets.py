"""Data sets with a few tiny images, in the formats that sources read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.examples import Example


def png(value: int) -> bytes:
    """Writes a dark red image file, 4 wide and 3 high; `value` is the red level."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_index(folder: Path, *lines: object) -> Path:
    """Writes a JSONL index; texts are written unchanged, everything else as JSON."""
    path = folder / "captions.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def examples(count: int) -> list[Example]:
    return [Example(png(i), (f"text {i}", "again"), f"key {i}") for i in range(count)]


def prepare_tfds(
    folder: Path, called: str, features: dict[str, Any], examples: Iterable[dict[str, Any]]
) -> str:
    """Prepares a TFDS data set with a split "train", through TFDS, in the array_record format.

    Args:
        folder: receives the data set, next to other data sets.
        called: the data set's name, in snake_case.
        features: features by name.
        examples: feature values; TFDS shuffles them.

    Returns:
        The folder, as `data_dir`.
    """
    import tensorflow_datasets as tfds

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        __module__ = "small"  # otherwise TFDS looks for the code inside the tests, as in a package

        name = called
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": enumerate(examples)}

        def _generate_examples(self):
            raise NotImplementedError  # abstract in TFDS, and never called

    Prepared(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder)


def jsonl(folder: Path, broken: int, total: int = 60) -> DataConfig:
    """Writes noise photos, some of which do not decode."""
    lines = []
    for number in range(total):
        file = folder / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(file)
        if number < broken:
            file.write_bytes(file.read_bytes()[:40])
        lines.append(json.dumps({"image": file.name, "captions": [f"noise number {number}"]}))
    (folder / "index.jsonl").write_text("\n".join(lines))
    return DataConfig(
        source="jsonl", path=str(folder / "index.jsonl"), image_size=56, max_bad_fraction=0.05
    )
