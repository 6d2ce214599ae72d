"""Small pools to ingest, and what an ingestion has written."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small_sets import write_index

from dinotxt_jax.config import DataConfig, IngestionConfig


def photo(size: tuple[int, int], name: str, seed: int = 0, **options: Any) -> bytes:
    """Returns a noise image file in a format."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, name, **options)
    return buffer.getvalue()


def write_pairs(folder: Path, images: list[bytes], captions: list[str] | None = None) -> DataConfig:
    """Writes image files with a JSONL index and returns the settings for it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, image in enumerate(images):
        (folder / f"{number:03d}.img").write_bytes(image)
        text = captions[number] if captions else f"text {number}"
        lines.append({"image": f"{number:03d}.img", "captions": [text, "again"]})
    index = write_index(folder, *lines)
    return DataConfig(source="jsonl", path=str(index), threads=2, max_bad_fraction=0.5)


def settings(data: DataConfig, **changes: Any) -> IngestionConfig:
    return IngestionConfig(**({"data": data, "shard_size": 7, "workers": 1} | changes))


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files of an output folder by their path in it."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def quarantine(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").open()]
