"""The frozen-feature cache: backbone tokens written once, for training without the backbone.

A cache is a folder:

    features.json       description: backbone fingerprint, data settings, shape, dtype, views
    v000-s00000.npy     tokens [examples, t, d] for a view (v) and a shard (s) with `SHARD`
                        consecutive examples (bfloat16 is stored as raw uint16 bits)
    v000-s00000.skipped.npy  per example, the index offset (modulo the number of examples) to the
                        example used in its place: 0 means no replacement, positive a bad image,
                        negative an example that the filters exclude
    v000-s00000.sums.npy  per example, a checksum over the tokens (`storage.checksums`)

View v has the same crops and flips as epoch v, so training from the cache equals training with the
backbone as long as there are at least as many views as epochs. A shard file gets this name only
when it is complete; an interrupted run continues with the first missing shard.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from dinotxt_jax.config import Config, DataConfig
from dinotxt_jax.config.data import EXACT
from dinotxt_jax.data.examples import Source, readable_captions
from dinotxt_jax.data.mixture import part_number, source_parts
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.shard_files import (
    REPAIR,
    ShardFile,
    damaged_shard,
    read_numbers,
    shard_file,
    skipped_file,
    sums_file,
    token_dtype,
)
from dinotxt_jax.data.transforms import is_random, view_decoder
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.checksums import is_verifying, row_checksums
from dinotxt_jax.storage.retries import retried

SHARD = 512
# Field in features.json, true if every shard has checksums; older caches lack field and checksums.
CHECKSUMS = "checksums"
_SAMPLED = 256
# Settings that determine the backbone's input pixels. Changing any other DataConfig setting keeps a
# cache valid.
_DATA_KEYS = (
    "source",
    "name",
    "split",
    "num_scenes",
    "only",
    "min_side",
    "max_aspect_ratio",
    "min_caption_length",
    "max_caption_length",
    "image_size",
    "augmentation",
    "resize",
    "crop_scale",
    "crop_ratio",
    "flip_probability",
    "max_pixels",
)


def cache_description(
    config: Config, data: DataConfig, source: Source, views: int, fingerprint: str
) -> dict[str, Any]:
    """Returns the content for `features.json`: equal descriptions mean equal tokens.

    Args:
        config: the run config.
        data: the data settings for `source`, which need not be the run's training data.
        source: the images. A hash over evenly spaced captions distinguishes sources with equal
            length.
        views: number of views per image.
        fingerprint: the backbone fingerprint.
    """
    count = len(source)
    sample = [readable_captions(source, i * count // _SAMPLED) for i in range(min(count, _SAMPLED))]
    description = {
        "fingerprint": fingerprint,
        "dtype": config.precision.frozen,
        "products": config.precision.frozen_products,
        "seed": config.seed if is_random(data) else None,
        "views": views,
        "examples": count,
        "captions": hashlib.sha256(json.dumps(sample).encode()).hexdigest(),
        "data": {key: getattr(data, key) for key in _DATA_KEYS}
        | {"decoder": view_decoder(data), "mixture": _mixture(data)},
    }
    return json.loads(json.dumps(description))


def _mixture(data: DataConfig) -> dict[str, dict[str, Any]]:
    """Returns each source's settings, without weights, which do not change the tokens."""
    return {
        name: {key: getattr(source, key) for key in _DATA_KEYS if hasattr(source, key)}
        for name, source in data.mixture.items()
    }


class FeatureCache:
    """Reads a cache by (view, example).

    Shard files are opened on demand. An example's tokens are compared with the checksum on the
    first read.

    Args:
        folder: the cache folder.
        expected: the `cache_description` for the run that reads the cache.

    Raises:
        UserError: the folder holds no cache, or the cache is incomplete, damaged or has a different
            description.
    """

    def __init__(self, folder: Address, expected: dict[str, Any]):
        self._folder = folder
        stored = stored_description(folder)
        if stored is None:
            raise UserError(
                f"{folder} holds no features.json, expected a cache of backbone tokens; run python "
                f"-m dinotxt_jax.precompute with this config, or correct {folder}."
            )
        check_same_cache(folder, stored, expected)
        self.views, self._examples = expected["views"], expected["examples"]
        self._shards = range(-(-self._examples // SHARD))
        files = [
            shard_file(folder, view, shard) for view in range(self.views) for shard in self._shards
        ]
        absent = [file for file in files if not file.exists()]
        if absent:
            raise UserError(
                f"{folder} lacks {len(absent)} of {len(files)} shards: the encoding was "
                f"interrupted; {REPAIR}."
            )
        self._dtype = token_dtype(stored["dtype"])
        self.skipped = [self._numbers(skipped_file, view) for view in range(self.views)]
        has_sums = bool(stored.get(CHECKSUMS)) and is_verifying()
        self._sums = [self._numbers(sums_file, view) for view in range(self.views) if has_sums]
        self._verified = np.zeros((self.views, self._examples), bool)

    def __len__(self) -> int:
        return self._examples

    @functools.cached_property
    def blank(self) -> Float[np.ndarray, "t d"]:
        """Zeros with the shape and dtype that an example's tokens have."""
        return np.zeros(self._opened(0, 0).shape, self._dtype)

    def tokens(self, view: int, index: int) -> Float[np.ndarray, "t d"]:
        """Returns the tokens [class, registers, patches] for an example in a view.

        Raises:
            UserError: the shard is damaged.
        """
        shard, row = divmod(index, SHARD)
        file = self._opened(view, shard)
        tokens = file.read(row)
        if self._sums and not self._verified[view, index]:
            if row_checksums(tokens[None])[0] != self._sums[view][index]:
                raise damaged_shard(file.path, f"example {index} does not match its checksum")
            self._verified[view, index] = True
        return tokens.view(self._dtype)

    def _rows(self, shard: int) -> int:
        return min(SHARD, self._examples - shard * SHARD)

    # Closes the least recently used files: caches may have more shards than the open-file limit.
    @functools.lru_cache(maxsize=128)  # noqa: B019 - the cache object lives for the whole run
    def _opened(self, view: int, shard: int) -> ShardFile:
        return ShardFile(shard_file(self._folder, view, shard), self._rows(shard), self._dtype)

    def _numbers(self, file: Callable[[Address, int, int], Address], view: int) -> np.ndarray:
        """Reads a view's per-example numbers from all shards: [examples]."""
        return np.concatenate(
            [
                read_numbers(file(self._folder, view, shard), self._rows(shard))
                for shard in self._shards
            ]
        )


class CachedExample:
    """Makes examples with cached backbone tokens instead of images; used as `make_example`."""

    def __init__(
        self,
        cache: FeatureCache,
        source: Source,
        data: DataConfig,
        tokenize: Callable[[str], np.ndarray],
    ):
        self._cache = cache
        self._source = source
        self._parts = source_parts(source, data)
        self._tokenize = tokenize

    def __call__(self, draw: Draw) -> dict[str, np.ndarray]:
        view = draw.epoch % self._cache.views
        offset = int(self._cache.skipped[view][draw.index])
        used = dataclasses.replace(draw, index=(draw.index + offset) % len(self._cache))
        part = self._parts[part_number(self._parts, draw.index)]
        caption = part.selection.caption(used, self._source.captions(used.index))
        return {
            "features": self._cache.tokens(view, draw.index),
            "tokens": np.asarray(self._tokenize(caption)),
            "index": np.asarray(used.index, np.int64),
            "skipped": np.asarray(offset > 0, np.int32),
            "filtered": np.asarray(offset < 0, np.int32),
        }


def task_folder(features: str, task: str) -> Address:
    """Returns the cache folder that a training run uses for an evaluation task."""
    return to_address(features) / "tasks" / task


def stored_description(folder: Address) -> dict[str, Any] | None:
    """Reads `features.json` from a cache folder; returns None if there is no cache.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / "features.json"
    if not retried(file.exists):
        return None
    text = retried(file.read_text)
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


def check_same_cache(folder: Address, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises a `UserError` that names every difference between two cache descriptions."""
    # Settings that are younger than the cache count as having the default value. The exception is
    # the decoder: older caches used the exact decoder, which is not the default.
    defaults = json.loads(json.dumps(dataclasses.asdict(DataConfig(decoder=EXACT))))
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
