"""The frozen-feature cache: backbone tokens written once, trained from without the backbone.

A cache is a folder:

    features.json       what was encoded: backbone fingerprint, data settings, shape, dtype, views
    v000-s00000.npy     tokens [examples, t, d] of one view of one run of `SHARD` examples
                        (bfloat16 stored as its bits, uint16), beside
    v000-s00000.skipped.npy  bad images passed over for each example (see `ImageTextExample`)

View v holds what epoch v would have seen (the same crops and flips), so that training from the
cache equals training with the backbone as long as epochs do not outnumber views. Shards appear
under their name when they are complete; an interrupted run goes on with the first missing one.
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
# What decides which pixels the backbone sees; the rest of DataConfig may change under a cache.
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
    """`features.json`: equal descriptions mean equal tokens.

    Args:
        config: of the run. data: of the source, which need not be the run's training data.
        source: the images; captions spread over it tell it from another of the same length.
        views: views of each image.
        fingerprint: of the backbone.
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
        folder: the cache.
        expected: what `cache_description` says of the run that wants to use it.

    Raises:
        UserError: no cache there, not complete, or of something else.
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
        """[class, registers, patches] of one view of one example."""
        shard, row = divmod(index, SHARD)
        return self._mapped(view, shard)[row].view(self._dtype)

    @functools.cache  # noqa: B019 - one cache lives as long as a run
    def _mapped(self, view: int, shard: int) -> np.ndarray:
        return np.load(shard_file(self._folder, view, shard), mmap_mode="r")


class CachedExample:
    """The `make_example` of training from a cache: tokens of the backbone instead of an image."""

    def __init__(self, cache: FeatureCache, source: Source, tokenize: Callable[[str], np.ndarray]):
        self._cache = cache
        self._source = source
        self._tokenize = tokenize

    def __call__(self, draw: Draw) -> dict[str, np.ndarray]:
        view = draw.epoch % self._cache.views
        skipped = self._cache.skipped[view][draw.index]
        used = dataclasses.replace(draw, index=(draw.index + int(skipped)) % len(self._cache))
        captions = self._source.captions(used.index)
        return {
            "features": self._cache.tokens(view, draw.index),
            "tokens": np.asarray(self._tokenize(captions[used.caption_index(len(captions))])),
            "index": np.asarray(used.index, np.int64),
            "skipped": np.asarray(skipped, np.int32),
        }


def task_folder(features: str, task: str) -> Path:
    """Where the tokens of an evaluation task of a training run are cached."""
    return Path(features) / "tasks" / task


def shard_file(folder: Path, view: int, shard: int) -> Path:
    return folder / f"v{view:03d}-s{shard:05d}.npy"


def skipped_file(folder: Path, view: int, shard: int) -> Path:
    return folder / f"v{view:03d}-s{shard:05d}.skipped.npy"


def stored_description(folder: Path) -> dict[str, Any] | None:
    """`features.json` of a cache; None where there is no cache.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / "features.json"
    if not file.exists():
        return None
    try:
        stored = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"{file} is not JSON ({error}), expected the description of a feature cache; remove "
            f"{folder} and run python -m dinotxt_jax.precompute again."
        ) from error
    if not isinstance(stored, dict) or not {"data", "dtype"} <= set(stored):
        raise UserError(
            f"{file} does not describe a feature cache; remove {folder} and run python -m "
            "dinotxt_jax.precompute again."
        )
    return stored


def check_same_cache(folder: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """A `UserError` naming every difference between two descriptions."""
    # A setting that is younger than the cache had its default's meaning.
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
            f"{folder} holds tokens of something else: {', '.join(changed)}; use those settings, "
            "or set config.features to a new folder and run python -m dinotxt_jax.precompute."
        )
