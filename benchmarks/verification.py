"""Measures how much time verification adds to reading a model directory and a feature cache.

    python benchmarks/verification.py [--cache_gb=10] [--rounds=3]

The model is a ViT-L/14 backbone with random weights; the cache has bfloat16 tokens with the
shape of ViT-L/14's at 224 px. Reads with and without verification alternate in the same process;
the files are in the page cache if there is enough memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from machine import device

import dinotxt_jax as dt
from dinotxt_jax import sharding
from dinotxt_jax.config import Config, DataConfig, PrecisionConfig
from dinotxt_jax.data.feature_cache import CHECKSUMS, SHARD, FeatureCache, cache_description
from dinotxt_jax.data.shard_files import shard_file, skipped_file, sums_file
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.models.layers import DTypes, abstract_arrays
from dinotxt_jax.models.presets import PRESETS
from dinotxt_jax.models.vit import VisionTransformer
from dinotxt_jax.storage.checksums import CHECKSUMS_VARIABLE, row_checksums
from dinotxt_jax.storage.model_directory import (
    ModelDescription,
    Preprocessing,
    write_model_directory,
)

TOKENS, WIDTH = 261, 1024


def write_backbone(folder: Path) -> float:
    """Writes a backbone with random weights; returns the arrays' size in GB."""
    vision = PRESETS["dinov2_vitl14_reg"]
    abstract = abstract_arrays(
        lambda: VisionTransformer(vision, dtypes=DTypes()), sharding.make_mesh()
    )
    rng = np.random.default_rng(0)
    arrays = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), abstract)
    description = ModelDescription(vision, Preprocessing(), fingerprint="0" * 64)
    write_model_directory(folder, description, {"backbone": arrays})
    return sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) / 1e9


def write_cache(folder: Path, gigabytes: float) -> tuple[Callable[[], FeatureCache], float]:
    """Writes a cache with random tokens; returns a function that opens it, and its size in GB."""
    shard_gb = SHARD * TOKENS * WIDTH * 2 / 1e9
    shards = max(1, round(gigabytes / shard_gb))
    data = DataConfig(num_scenes=shards * SHARD, image_size=224, augmentation="squash")
    config = Config(data=data, precision=PrecisionConfig(frozen="bfloat16"))
    description = cache_description(config, data, open_source(data), 1, "0" * 64)
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(description | {CHECKSUMS: True}))
    rng = np.random.default_rng(0)
    for shard in range(shards):
        tokens = rng.random((SHARD, TOKENS, WIDTH), np.float32).astype(ml_dtypes.bfloat16)
        bits = tokens.view(np.uint16)
        np.save(skipped_file(folder, 0, shard), np.zeros(SHARD, np.int64))
        np.save(sums_file(folder, 0, shard), row_checksums(bits))
        np.save(shard_file(folder, 0, shard), bits)
    return lambda: FeatureCache(folder, description), shards * shard_gb


def read_all(cache: FeatureCache) -> None:
    """Reads the tokens of every example in a single thread."""
    for index in range(len(cache)):
        cache.tokens(0, index)


@dataclasses.dataclass
class Times:
    """Seconds with and without verification."""

    on: list[float] = dataclasses.field(default_factory=list)
    off: list[float] = dataclasses.field(default_factory=list)

    def line(self, name: str, size: float) -> str:
        """Returns a table line."""
        on, off = float(np.median(self.on)), float(np.median(self.off))
        return f"| {name} | {size:.2f} | {off:.2f} | {on:.2f} | {on - off:.2f} |"


def alternating(action: Callable[[], Any], rounds: int) -> Times:
    """Times an action alternately with and without verification, after a warm-up round."""
    times = Times()
    for number in range(-1, rounds):
        for value in ("on", "off") if number % 2 else ("off", "on"):
            os.environ[CHECKSUMS_VARIABLE] = value
            start = time.perf_counter()
            action()
            if number >= 0:
                getattr(times, value).append(time.perf_counter() - start)
    return times


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache_gb", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{device()}\n")
    print("| reading | GB | without, s | with verification, s | difference, s |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        size = write_backbone(model)
        for dtype in ("float32", "bfloat16"):
            times = alternating(lambda dtype=dtype: dt.load_backbone(model, dtype), options.rounds)
            print(times.line(f"`dt.load_backbone`, ViT-L/14, as {dtype}", size), flush=True)
        open_cache, size = write_cache(Path(folder) / "features", options.cache_gb)
        times = alternating(lambda: read_all(open_cache()), options.rounds)
        print(times.line("every example of a feature cache once, one thread", size))


if __name__ == "__main__":
    main()
