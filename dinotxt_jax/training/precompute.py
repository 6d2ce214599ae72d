"""Writes frozen-feature caches (`data.feature_cache`): the backbone runs once over every image."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from absl import logging
from flax import nnx

from dinotxt_jax import sharding
from dinotxt_jax.config import Config, DataConfig, TaskConfig, check, check_image_size
from dinotxt_jax.data import feature_cache
from dinotxt_jax.data.examples import SECTION, Source, check_images_found
from dinotxt_jax.data.feature_cache import (
    CHECKSUMS,
    cache_description,
    check_same_cache,
    stored_description,
    task_folder,
)
from dinotxt_jax.data.mixture import source_parts
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.pipeline import ImageTextExample, in_threads
from dinotxt_jax.data.shard_files import shard_file, shard_problem, skipped_file, sums_file
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.tasks import KINDS
from dinotxt_jax.inference.loading import load_vision_transformer
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.compiler_options import compiler_options
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.storage.addresses import Address, to_output
from dinotxt_jax.storage.checksums import is_verifying, row_checksums
from dinotxt_jax.storage.files import new_file, write_text
from dinotxt_jax.storage.model_directory import read_description
from dinotxt_jax.training.models import frozen_dtypes

# Example fields: the index of the example that was used, and whether filters replaced the original.
_REPLACEMENT = ("index", "filtered")


@dataclasses.dataclass(frozen=True)
class EncodedSet:
    """The images in one cache.

    Attributes:
        data: settings for the images.
        source: the images.
        folder: the cache folder.
        views: number of views per image.
        section: the command-line name for `data`, for messages.
        title: name for the images in the progress bar.
        evaluated: whether the images belong to an evaluation task, which allows no bad images.
        missing: (view, shard) for the shards that this process must encode.
    """

    data: DataConfig
    source: Source
    folder: Address
    views: int
    section: str
    title: str
    evaluated: bool = False
    missing: tuple[tuple[int, int], ...] = ()

    def jobs(self) -> list[tuple[int, int]]:
        """Returns (view, shard) for this process's share of the cache."""
        shards = range(-(-len(self.source) // feature_cache.SHARD))
        jobs = [(view, shard) for view in range(self.views) for shard in shards]
        return jobs[jax.process_index() :: jax.process_count()]

    def rows(self, shard: int) -> int:
        """Returns the number of examples in a shard."""
        return min(feature_cache.SHARD, len(self.source) - shard * feature_cache.SHARD)


def precompute(config: Config) -> None:
    """Writes missing and damaged cache shards for the training data and the evaluation tasks.

    Before encoding the first image, this opens all data and compares all existing caches with it.

    Raises:
        UserError: the settings or the data are invalid, or a folder contains a different cache.
    """
    with processes.together():
        sets = _open_sets(config)
    for images in sets:
        encode_source(config, images)


def _open_sets(config: Config) -> list[EncodedSet]:
    check(config, needs=("features", "backbone"))
    backbone = read_description(config.backbone)
    check_image_size(config.data.image_size, backbone.vision.patch_size)
    source, views = open_source(config.data), config.feature_views
    folder, title = to_output(config.features, "config.features"), "training images"
    sets = [EncodedSet(config.data, source, folder, views, SECTION, title)]
    for name, task in tasks_with_caches(config):
        section = f"config.evaluation.tasks.{name}"
        KINDS[task.kind].check(section, task, backbone.vision)
        source = KINDS[task.kind].open_set(section, task)
        folder = task_folder(config.features, name)
        images = EncodedSet(task.data, source, folder, 1, f"{section}.data", name, evaluated=True)
        sets.append(images)
    checked = []
    for images in sets:
        stored = stored_description(images.folder)
        missing = images.jobs()
        if stored is not None:
            expected = _description(config, images, backbone.fingerprint)
            check_same_cache(images.folder, stored, expected)
            missing = _to_encode(images, stored)
        if missing:
            for part in source_parts(images.source, images.data, images.section):
                check_images_found(part.source, part.data, part.section)
        checked.append(dataclasses.replace(images, missing=tuple(missing)))
    return checked


def _to_encode(images: EncodedSet, stored: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Returns this process's missing or damaged shards; reads and verifies all existing shards."""
    existing = [job for job in images.jobs() if shard_file(images.folder, *job).exists()]
    sums = bool(stored.get(CHECKSUMS)) and is_verifying()
    damaged = []
    with progress_bar(len(existing), 0, "shard", f"verifying {images.title}") as bar:
        for view, shard in existing:
            rows, dtype = images.rows(shard), stored["dtype"]
            problem = shard_problem(images.folder, view, shard, rows, dtype, sums)
            if problem:
                damaged.append((view, shard))
                logging.warning("%s: encoding it again", problem)
            bar.update()
    intact = set(existing) - set(damaged)
    return [job for job in images.jobs() if job not in intact]


def _description(config: Config, images: EncodedSet, fingerprint: str) -> dict[str, Any]:
    return cache_description(config, images.data, images.source, images.views, fingerprint)


def tasks_with_caches(config: Config) -> list[tuple[str, TaskConfig]]:
    """Returns the tasks that encode whole images; other tasks encode windows, without a cache."""
    tasks = config.evaluation.tasks.items()
    return [(name, task) for name, task in tasks if KINDS[task.kind].encodes_whole_images]


def encode_source(config: Config, images: EncodedSet) -> None:
    """Writes the missing token shards, for all views and examples in a source.

    With several processes, each process encodes a share of the shards on the local devices. These
    shard the backbone over `config.mesh.fsdp` devices if there are enough local devices.
    """
    local = jax.local_devices()
    mesh = sharding.make_mesh(fsdp=math.gcd(config.mesh.fsdp, len(local)), devices=local)
    backbone, description = load_vision_transformer(config.backbone, frozen_dtypes(config), mesh)
    source, folder, data = images.source, images.folder, images.data
    expected = _description(config, images, description.fingerprint)
    make_example = ImageTextExample(
        source, data, lambda _: np.zeros(0, np.int32), evaluated=images.evaluated
    )
    graphdef, state = nnx.split(backbone)
    preprocessing = description.preprocessing

    @functools.partial(jax.jit, compiler_options=compiler_options([config.precision.frozen]))
    def encode(arrays: Any, images: jax.Array) -> jax.Array:
        images = normalize(images, preprocessing.mean, preprocessing.std)
        return nnx.merge(graphdef, arrays).tokens(images)

    if processes.is_first() and not (folder / "features.json").exists():
        described = expected | {CHECKSUMS: True}
        write_text(folder / "features.json", json.dumps(described, indent=2) + "\n")
    processes.check_shared(folder / "features.json")
    rows = {job: images.rows(job[1]) for job in images.jobs()}
    done = sum(rows.values()) - sum(rows[job] for job in images.missing)
    # Pad the last batch in a shard to the same shape as all batches, to compile a single program.
    batch_size = min(config.evaluation.batch_size, feature_cache.SHARD, len(source))
    batch_size += -batch_size % mesh.size
    arrays = nnx.to_pure_dict(state)
    with (
        progress_bar(sum(rows.values()), done, "image", f"encoding {images.title}") as bar,
        jax.set_mesh(mesh),
    ):
        encode_batch = bar.compiling(encode)
        for view, shard in images.missing:
            first = shard * feature_cache.SHARD
            draws = [Draw(view, i, i, config.seed) for i in range(first, first + rows[view, shard])]
            examples = in_threads(draws, make_example, data.threads, data.prefetch)
            tokens: list[np.ndarray] = []
            used: list[dict[str, np.ndarray]] = []
            for rows_read in _batches(examples, batch_size):
                pixels = np.stack([row.pop("image") for row in rows_read])
                placed = jax.device_put(_padded(pixels, batch_size), sharding.batch_sharding(mesh))
                tokens.append(np.asarray(encode_batch(arrays, placed))[: len(pixels)])
                used += rows_read
                bar.update(len(pixels))
            index, filtered = (np.stack([row[key] for row in used]) for key in _REPLACEMENT)
            offsets = (index - [draw.index for draw in draws]) % len(source)
            encoded = np.concatenate(tokens)
            finite = np.isfinite(encoded).all((1, 2))
            if not finite.all():
                bad = draws[int(np.argmin(finite))].index
                raise UserError(
                    f"the backbone's tokens for {source.key(bad)} are not finite; use an intact "
                    "backbone, or another config.precision.frozen."
                )
            bits = _bits(encoded)
            # Filtered examples get negative offsets; see `data.feature_cache`.
            _write(skipped_file(folder, view, shard), offsets - filtered * len(source))
            _write(sums_file(folder, view, shard), row_checksums(bits))
            _write(shard_file(folder, view, shard), bits)
    processes.wait()


def _batches(
    examples: Iterator[dict[str, np.ndarray]], size: int
) -> Iterator[list[dict[str, np.ndarray]]]:
    """Yields examples in batches of up to `size`."""
    while rows := list(itertools.islice(examples, size)):
        yield rows


def _padded(images: np.ndarray, count: int) -> np.ndarray:
    """Pads to `count` images by repeating the last image."""
    return np.concatenate([images, np.repeat(images[-1:], count - len(images), axis=0)])


def _bits(tokens: np.ndarray) -> np.ndarray:
    return tokens.view(np.uint16) if tokens.dtype == ml_dtypes.bfloat16 else tokens


def _write(path: Address, array: np.ndarray) -> None:
    with new_file(path) as partial, partial.open("wb") as file:
        np.save(file, array)
