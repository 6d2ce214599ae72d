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
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from jaxtyping import Float

from dinotxt_jax import processes, sharding
from dinotxt_jax.compiler_options import compiler_options
from dinotxt_jax.config import Config, DataConfig, TaskConfig, check_image_size
from dinotxt_jax.data.examples import Source, limited
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.pipeline import ImageTextExample, in_threads
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.transforms import is_random, normalize
from dinotxt_jax.errors import UserError
from dinotxt_jax.files import new_file, write_text
from dinotxt_jax.models.directory import load_vision_transformer
from dinotxt_jax.progress import progress_bar
from dinotxt_jax.training.models import frozen_dtypes

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


def describe(
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
        expected: what `describe` says of the run that wants to use it.

    Raises:
        UserError: no cache there, not complete, or of something else.
    """

    def __init__(self, folder: Path, expected: dict[str, Any]):
        self._folder = folder
        stored = _stored_description(folder)
        cure = f"run python -m dinotxt_jax.precompute with this config, or correct {folder}"
        if stored is None:
            raise UserError(
                f"{folder} holds no features.json, expected a cache of backbone tokens; {cure}."
            )
        _check_same(folder, stored, expected)
        self.views, self._examples = expected["views"], expected["examples"]
        shards = range(-(-self._examples // SHARD))
        absent = [s for v in range(self.views) for s in shards if not _shard(folder, v, s).exists()]
        if absent:
            raise UserError(
                f"{folder} lacks {len(absent)} of {self.views * len(shards)} shards: the encoding "
                f"was interrupted; {cure}."
            )
        self._dtype = np.dtype(getattr(ml_dtypes, stored["dtype"], stored["dtype"]))
        self.skipped = [
            np.concatenate([np.load(_skipped(folder, view, shard)) for shard in shards])
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
        return np.load(_shard(self._folder, view, shard), mmap_mode="r")


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


def precompute(config: Config) -> None:
    """Writes the caches of a run's training data and evaluation tasks, where they are not yet.

    Raises:
        UserError: settings or data that cannot be used; a cache of something else is in the way.
    """
    with processes.together():
        if not config.features:
            raise UserError(
                "config.features is empty, expected the folder to write backbone tokens to; set "
                "--config.features=DIR."
            )
        source = open_source(config.data)
    folder = Path(config.features)
    views = config.feature_views
    encode_source(config, config.data, source, folder, views, "training images")
    for name, task in tasks_with_caches(config):
        data = dataclasses.replace(task.data, max_bad_fraction=0.0)
        source = open_source(data, labelled=task.kind == "classification")
        source = limited(source, task.max_examples)
        encode_source(config, data, source, task_folder(config.features, name), 1, name)


def tasks_with_caches(config: Config) -> list[tuple[str, TaskConfig]]:
    """The evaluation tasks that look at whole images; others look at windows of them."""
    return [(n, task) for n, task in config.evaluation.tasks.items() if task.kind != "segmentation"]


def encode_source(
    config: Config, data: DataConfig, source: Source, folder: Path, views: int, title: str
) -> None:
    """Writes the tokens of `views` views of every example of one source.

    Of several processes each encodes some shards on its own devices, which split the backbone as
    `config.mesh.fsdp` does if there are as many.
    """
    local = jax.local_devices()
    mesh = sharding.make_mesh(fsdp=math.gcd(config.mesh.fsdp, len(local)), devices=local)
    backbone, description = load_vision_transformer(config.backbone, frozen_dtypes(config), mesh)
    expected = describe(config, data, source, views, description.fingerprint)
    with processes.together():
        check_image_size(data, description.vision.patch_size)
        stored = _stored_description(folder)
        if stored is not None:
            _check_same(folder, stored, expected)
    make_example = ImageTextExample(source, data, lambda _: np.zeros(0, np.int32))
    graphdef, state = nnx.split(backbone)
    wanted = description.preprocessing

    @functools.partial(jax.jit, compiler_options=compiler_options([config.precision.frozen]))
    def encode(arrays: Any, images: jax.Array) -> jax.Array:
        images = normalize(images, wanted.mean, wanted.std)
        return nnx.merge(graphdef, arrays).tokens(images)

    if processes.is_first():
        write_text(folder / "features.json", json.dumps(expected, indent=2) + "\n")
    processes.check_shared(folder / "features.json")
    jobs = [(v, s) for v in range(views) for s in range(-(-len(source) // SHARD))]
    mine = jobs[jax.process_index() :: jax.process_count()]
    missing = [job for job in mine if not _shard(folder, *job).exists()]
    rows = {job: min(SHARD, len(source) - job[1] * SHARD) for job in mine}
    done = sum(rows.values()) - sum(rows[job] for job in missing)
    arrays = nnx.to_pure_dict(state)
    with (
        progress_bar(sum(rows.values()), done, "image", f"encoding {title}") as bar,
        jax.set_mesh(mesh),
    ):
        for view, shard in missing:
            first = shard * SHARD
            draws = [Draw(view, i, i, config.seed) for i in range(first, first + rows[view, shard])]
            examples = in_threads(draws, make_example, data.threads, data.prefetch)
            tokens, skipped = [], []
            for images, passed in _batches(examples, min(config.evaluation.batch_size, SHARD)):
                placed = jax.device_put(_padded(images, mesh.size), sharding.batch_sharding(mesh))
                tokens.append(np.asarray(encode(arrays, placed))[: len(images)])
                skipped.append(passed)
                bar.update(len(images))
            _write(_skipped(folder, view, shard), np.concatenate(skipped))
            _write(_shard(folder, view, shard), _bits(np.concatenate(tokens)))
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


def _shard(folder: Path, view: int, shard: int) -> Path:
    return folder / f"v{view:03d}-s{shard:05d}.npy"


def _skipped(folder: Path, view: int, shard: int) -> Path:
    return folder / f"v{view:03d}-s{shard:05d}.skipped.npy"


def _stored_description(folder: Path) -> dict[str, Any] | None:
    file = folder / "features.json"
    return json.loads(file.read_text()) if file.exists() else None


def _check_same(folder: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
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
