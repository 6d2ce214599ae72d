"""Writing frozen-feature caches (`data.feature_cache`): the backbone runs once over every image."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from dinotxt_jax import sharding
from dinotxt_jax.config import Config, DataConfig, TaskConfig, check_image_size
from dinotxt_jax.data import feature_cache
from dinotxt_jax.data.examples import SECTION, Source, check_images_found
from dinotxt_jax.data.feature_cache import (
    cache_description,
    check_same_cache,
    shard_file,
    skipped_file,
    stored_description,
    task_folder,
)
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.pipeline import ImageTextExample, in_threads
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.errors import UserError, check_choice
from dinotxt_jax.evaluation.tasks import KINDS, check_task
from dinotxt_jax.inference.loading import load_vision_transformer
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.compiler_options import compiler_options
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.storage.files import new_file, write_text
from dinotxt_jax.storage.model_directory import read_description
from dinotxt_jax.training.models import frozen_dtypes


@dataclasses.dataclass(frozen=True)
class EncodedSet:
    """The images of one cache.

    Attributes:
        data: settings of the images.
        source: the images.
        folder: the cache.
        views: views of each image.
        title: name of the images for the progress bar.
        evaluated: whether the images are those of an evaluation task, none of which may be bad.
    """

    data: DataConfig
    source: Source
    folder: Path
    views: int
    title: str
    evaluated: bool = False


def precompute(config: Config) -> None:
    """Writes the caches of a run's training data and evaluation tasks, where they are not yet.

    All data is opened, and all caches that exist are compared with it, before the first image is
    encoded.

    Raises:
        UserError: settings or data that cannot be used; a cache of something else is in the way.
    """
    with processes.together():
        sets = _open_sets(config)
    for images in sets:
        encode_source(config, images)


def _open_sets(config: Config) -> list[EncodedSet]:
    if not config.features:
        raise UserError(
            "config.features is empty, expected the folder to write backbone tokens to; set "
            "--config.features=DIR."
        )
    backbone = read_description(config.backbone)
    patch_size = backbone.vision.patch_size
    check_image_size(config.data, patch_size)
    source = open_source(config.data)
    check_images_found(source, config.data, SECTION)
    folder = Path(config.features)
    sets = [EncodedSet(config.data, source, folder, config.feature_views, "training images")]
    for name, task in tasks_with_caches(config):
        section = f"config.evaluation.tasks.{name}"
        check_task(section, task, patch_size)
        kind = KINDS[task.kind]
        source = kind.open_set(section, task)
        kind.check_images(section, task, source)
        folder = task_folder(config.features, name)
        sets.append(EncodedSet(task.data, source, folder, 1, name, evaluated=True))
    for images in sets:
        stored = stored_description(images.folder)
        if stored is not None:
            expected = _description(config, images, backbone.fingerprint)
            check_same_cache(images.folder, stored, expected)
    return sets


def _description(config: Config, images: EncodedSet, fingerprint: str) -> dict[str, Any]:
    return cache_description(config, images.data, images.source, images.views, fingerprint)


def tasks_with_caches(config: Config) -> list[tuple[str, TaskConfig]]:
    """The evaluation tasks that encode whole images; others encode windows of them.

    Raises:
        UserError: a task of an unknown kind.
    """
    tasks = config.evaluation.tasks.items()
    for name, task in tasks:
        check_choice(f"config.evaluation.tasks.{name}.kind", task.kind, KINDS)
    return [(name, task) for name, task in tasks if KINDS[task.kind].encodes_whole_images]


def encode_source(config: Config, images: EncodedSet) -> None:
    """Writes the tokens of all views of every example of one source.

    Of several processes each encodes some shards on its own devices, which split the backbone as
    `config.mesh.fsdp` does if there are as many.
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
    wanted = description.preprocessing

    @functools.partial(jax.jit, compiler_options=compiler_options([config.precision.frozen]))
    def encode(arrays: Any, images: jax.Array) -> jax.Array:
        images = normalize(images, wanted.mean, wanted.std)
        return nnx.merge(graphdef, arrays).tokens(images)

    if processes.is_first():
        write_text(folder / "features.json", json.dumps(expected, indent=2) + "\n")
    processes.check_shared(folder / "features.json")
    jobs = [
        (v, s) for v in range(images.views) for s in range(-(-len(source) // feature_cache.SHARD))
    ]
    mine = jobs[jax.process_index() :: jax.process_count()]
    missing = [job for job in mine if not shard_file(folder, *job).exists()]
    rows = {
        job: min(feature_cache.SHARD, len(source) - job[1] * feature_cache.SHARD) for job in mine
    }
    done = sum(rows.values()) - sum(rows[job] for job in missing)
    arrays = nnx.to_pure_dict(state)
    with (
        progress_bar(sum(rows.values()), done, "image", f"encoding {images.title}") as bar,
        jax.set_mesh(mesh),
    ):
        for view, shard in missing:
            first = shard * feature_cache.SHARD
            draws = [Draw(view, i, i, config.seed) for i in range(first, first + rows[view, shard])]
            examples = in_threads(draws, make_example, data.threads, data.prefetch)
            tokens, skipped = [], []
            for pixels, passed in _batches(
                examples, min(config.evaluation.batch_size, feature_cache.SHARD)
            ):
                placed = jax.device_put(_padded(pixels, mesh.size), sharding.batch_sharding(mesh))
                tokens.append(np.asarray(encode(arrays, placed))[: len(pixels)])
                skipped.append(passed)
                bar.update(len(pixels))
            _write(skipped_file(folder, view, shard), np.concatenate(skipped))
            _write(shard_file(folder, view, shard), _bits(np.concatenate(tokens)))
    processes.wait()


def _batches(
    examples: Iterator[dict[str, np.ndarray]], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images, skipped) in batches of up to `size`."""
    rows: list[dict[str, np.ndarray]] = []
    for example in examples:
        rows.append(example)
        if len(rows) == size:
            yield _stacked(rows)
            rows = []
    if rows:
        yield _stacked(rows)


def _stacked(rows: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([r["image"] for r in rows]), np.stack([r["skipped"] for r in rows])


def _padded(images: np.ndarray, multiple: int) -> np.ndarray:
    missing = -len(images) % multiple
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])


def _bits(tokens: np.ndarray) -> np.ndarray:
    return tokens.view(np.uint16) if tokens.dtype == ml_dtypes.bfloat16 else tokens


def _write(path: Path, array: np.ndarray) -> None:
    with new_file(path) as partial, partial.open("wb") as file:
        np.save(file, array)
