"""Pools of images whose embeddings are drawn: folders of embeddings with known clusters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinotxt_jax.config import CurationConfig, DataConfig
from dinotxt_jax.curation.embeddings import EMBEDDINGS_FORMAT, write_shard
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.sources import open_source


def blobs(sizes: Sequence[int], width: int = 8, spread: float = 0.05, seed: int = 0) -> np.ndarray:
    """Returns unit vectors, float16 [n width], in blobs of these sizes around random directions."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(sizes), width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = np.repeat(centres, sizes, axis=0) + spread * rng.normal(size=(sum(sizes), width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float16)


def pool_config(examples: int, **settings: Any) -> CurationConfig:
    """Returns settings for a pool of scenes."""
    return CurationConfig(data=DataConfig(num_scenes=examples), **settings)


def write_embeddings(
    folder: Path, rows: np.ndarray, bad: Sequence[int] = (), shard_rows: int = 1024
) -> None:
    """Writes rows as the embeddings of a pool of as many scenes."""
    data = DataConfig(num_scenes=len(rows))
    description = {
        "format": EMBEDDINGS_FORMAT,
        "pool": data_identity(open_source(data), 0),
        "backbone": "0" * 64,
        "dtype": "float32",
        "width": rows.shape[1],
        "shard_rows": shard_rows,
        "image_size": 224,
        "resize": 256,
    }
    folder.mkdir(parents=True)
    (folder / "embeddings.json").write_text(json.dumps(description))
    for shard, start in enumerate(range(0, len(rows), shard_rows)):
        block = rows[start : start + shard_rows]
        inside = [row - start for row in bad if 0 <= row - start < len(block)]
        write_shard(folder, shard, block, inside)
