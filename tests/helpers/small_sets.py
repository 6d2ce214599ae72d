"""Data sets with a few tiny images, in the formats that sources read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

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
