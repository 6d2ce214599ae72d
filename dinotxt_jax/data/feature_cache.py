"""The frozen-feature cache: backbone tokens written once, for training without the backbone.

A cache is a folder:

    features.json       description: backbone fingerprint, data settings, shape, dtype, views
    v000-s00000.npy     tokens [examples, t, d] for one view and one shard with `SHARD` consecutive
                        examples (bfloat16 is stored as raw uint16 bits)
    v000-s00000.skipped.npy  per example, how many indices further (modulo the number of examples)
                        the example that was used lies; 0 unless its image is bad

View v holds the same crops and flips that epoch v would use, so training from the cache equals
training with the backbone while there are no more epochs than views. A shard file gets this name
only when it is complete; an interrupted run continues with the first missing shard.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float

from dinotxt_jax.config import Config, DataConfig
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.transforms import is_random
from dinotxt_jax.errors import UserError

SHARD = 512
_SAMPLED = 256
# The settings that determine the backbone's input pixels. All other DataConfig settings may
# change while a cache stays valid.
_DATA_KEYS = (
    "source",
    "name",
    "split",
    "num_scenes",
    "only",
    "image_size",
    "augmentation",
    "resize",
    "crop_scale",
    "crop_ratio",
    "flip_probability",
)


def cache_description(
    config: Config, data: DataConfig, source: Source, views: int, fingerprint: str
) -> dict[str, Any]:
    """Returns the content for `features.json`: equal descriptions mean equal tokens.

    Args:
        config: the run config.
        data: the data settings for `source`, which need not be the run's training data.
        source: the images. A hash over evenly spaced captions distinguishes this source from
            another with the same length.
        views: number of views per image.
        fingerprint: the backbone fingerprint.
    """
    count = len(source)
    sample = [source.captions(i * count // _SAMPLED) for i in range(min(count, _SAMPLED))]
    description = {
        "fingerprint": fingerprint,
        "dtype": config.precision.frozen,
        "products": config.precision.frozen_products,
        "seed": config.seed if is_random(data) else None,
        "views": views,
        "examples": count,
        "captions": hashlib.sha256(json.dumps(sample).encode()).hexdigest(),
        "data": {key: getattr(data, key) for key in _DATA_KEYS},
    }
    return json.loads(json.dumps(description))


class FeatureCache:
    """Reads a cache by (view, example).

    Args:
        folder: the cache folder.
        expected: the `cache_description` for the run that reads the cache.

    Raises:
        UserError: the folder holds no cache, or the cache is incomplete or has a different
            description.
    """

    def __init__(self, folder: Path, expected: dict[str, Any]):
        self._folder = folder
        stored = stored_description(folder)
        cure = f"run python -m dinotxt_jax.precompute with this config, or correct {folder}"
        if stored is None:
            raise UserError(
                f"{folder} holds no features.json, expected a cache of backbone tokens; {cure}."
            )
        check_same_cache(folder, stored, expected)
        self.views, self._examples = expected["views"], expected["examples"]
        shards = range(-(-self._examples // SHARD))
        every = [shard_file(folder, view, shard) for view in range(self.views) for shard in shards]
        absent = [file for file in every if not file.exists()]
        if absent:
            raise UserError(
                f"{folder} lacks {len(absent)} of {len(every)} shards: the encoding "
                f"was interrupted; {cure}."
            )
        self._dtype = np.dtype(getattr(ml_dtypes, stored["dtype"], stored["dtype"]))
        self.skipped = [
            np.concatenate([np.load(skipped_file(folder, view, shard)) for shard in shards])
            for view in range(self.views)
        ]

    def __len__(self) -> int:
        return self._examples

    def tokens(self, view: int, index: int) -> Float[np.ndarray, "t d"]:
        """Returns the tokens [class, registers, patches] for one view and one example."""
        shard, row = divmod(index, SHARD)
        return self._mapped(view, shard)[row].view(self._dtype)

    @functools.cache  # noqa: B019 - the cache object lives for the whole run
    def _mapped(self, view: int, shard: int) -> np.ndarray:
        return np.load(shard_file(self._folder, view, shard), mmap_mode="r")


class CachedExample:
    """Makes examples with cached backbone tokens instead of an image; used as `make_example`."""

    def __init__(self, cache: FeatureCache, source: Source, tokenize: Callable[[str], np.ndarray]):
        self._cache = cache
        self._source = source
        self._tokenize = tokenize

    def __call__(self, draw: Draw) -> dict[str, np.ndarray]:
        view = draw.epoch % self._cache.views
        further = int(self._cache.skipped[view][draw.index])
        used = dataclasses.replace(draw, index=(draw.index + further) % len(self._cache))
        captions = self._source.captions(used.index)
        return {
            "features": self._cache.tokens(view, draw.index),
            "tokens": np.asarray(self._tokenize(captions[used.caption_index(len(captions))])),
            "index": np.asarray(used.index, np.int64),
            "skipped": np.asarray(further != 0, np.int32),
        }


def task_folder(features: str, task: str) -> Path:
    """Returns the cache folder that a training run uses for an evaluation task."""
    return Path(features) / "tasks" / task


def shard_file(folder: Path, view: int, shard: int) -> Path:
    return folder / f"v{view:03d}-s{shard:05d}.npy"


def skipped_file(folder: Path, view: int, shard: int) -> Path:
    return folder / f"v{view:03d}-s{shard:05d}.skipped.npy"


def stored_description(folder: Path) -> dict[str, Any] | None:
    """Reads `features.json` from a cache folder; returns None if there is no cache.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / "features.json"
    if not file.exists():
        return None
    text = file.read_text()
    try:
        stored = json.loads(text)
    except ValueError as error:
        stored, problem = None, f"is not JSON ({error})" if text.strip() else "is empty"
    else:
        problem = "does not describe a feature cache"
    if not isinstance(stored, dict) or not {"data", "dtype"} <= set(stored):
        raise UserError(
            f"{file} {problem}, expected the description of a feature cache; remove {folder} and "
            "run python -m dinotxt_jax.precompute again."
        )
    return stored


def check_same_cache(folder: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises a `UserError` that names every difference between two cache descriptions."""
    # A setting added after the cache was written counts as having the default value.
    defaults = json.loads(json.dumps(dataclasses.asdict(DataConfig())))
    before = {"products": "none", **defaults, **stored, **stored["data"]}
    now = {**expected, **expected["data"]}
    changed = [
        f"{key} {before.get(key)!r} (this run: {value!r})"
        for key, value in now.items()
        if key != "data" and before.get(key) != value
    ]
    if changed:
        raise UserError(
            f"{folder} holds tokens for other settings or data: {', '.join(changed)}; use "
            "those settings, or set config.features to a new folder and run "
            "python -m dinotxt_jax.precompute."
        )
