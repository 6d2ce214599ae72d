"""Embeds every image of a pool with the frozen backbone, in shards (`curation.embeddings`)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Float16, UInt8

from dinotxt_jax import sharding
from dinotxt_jax.config import CurationConfig, DataConfig, MeshConfig, check_image_size
from dinotxt_jax.curation.embeddings import (
    EMBEDDINGS_FORMAT,
    read_embeddings_description,
    shard_rows,
    shard_state,
    write_shard,
)
from dinotxt_jax.data.bad_images import BadImageError, too_many_bad
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.train_views import decoded_image
from dinotxt_jax.data.transforms import EvalTransform, normalize, view_decoder
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference.loading import load_vision_transformer
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.compiler_options import compiler_options
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.storage.addresses import Address, AddressLike
from dinotxt_jax.storage.files import write_text
from dinotxt_jax.storage.model_directory import read_description
from dinotxt_jax.storage.retries import retried

ItemT = TypeVar("ItemT")
_Encode = Callable[[UInt8[np.ndarray, "b s s 3"]], Float16[np.ndarray, "b d"]]


@dataclass
class _Pool:
    """A pool that is embedded.

    Attributes:
        data: its settings.
        source: its examples.
        folder: folder of the embeddings.
        description: content of embeddings.json.
        missing: shards that this process has to embed.
        done: examples in this process's other shards.
        bad: bad images in this process's shards so far.
    """

    data: DataConfig
    source: Source
    folder: Address
    description: dict[str, Any]
    missing: list[int] = field(default_factory=list)
    done: int = 0
    bad: int = 0

    def rows(self, shard: int) -> range:
        """Returns the examples of a shard."""
        size = self.description["shard_rows"]
        return range(shard * size, min((shard + 1) * size, len(self.source)))

    def check_bad(self) -> None:
        """Raises `UserError` if too many images are bad."""
        if self.bad > self.data.max_bad_fraction * len(self.source):
            raise too_many_bad(self.bad, len(self.source), self.data.max_bad_fraction)


def embed_pool(
    config: CurationConfig, model: AddressLike, folder: Address, batch_size: int, dtype: str
) -> str:
    """Writes the class token of every image in `config.data`; returns a sentence about the result.

    Images are prepared as for evaluation (never random crops). With several
    processes, each embeds some shards on its local devices, which split the backbone as
    `config.mesh.fsdp` says if there are enough.

    Args:
        config: the pool and the mesh.
        model: a model directory.
        folder: folder of the embeddings; shards that it holds are verified and kept.
        batch_size: images per batch and process.
        dtype: dtype of the backbone.

    Raises:
        UserError: the settings or the data cannot be used, the folder holds other embeddings, or
            too many images are bad.
    """
    with processes.together():
        pool = _opened(config, model, folder, dtype)
    if processes.is_first():
        write_text(folder / "embeddings.json", json.dumps(pool.description, indent=2) + "\n")
    processes.check_shared(folder / "embeddings.json")
    local = jax.local_devices()
    mesh = sharding.make_mesh(fsdp=math.gcd(config.mesh.fsdp, len(local)), devices=local)
    # All batches have the same shape, even the last one of a shard, to compile only one program.
    batch_size = min(batch_size, len(pool.source))
    batch_size += -batch_size % mesh.size
    encode = _encoder(model, dtype, mesh, batch_size)
    total = pool.done + sum(len(pool.rows(shard)) for shard in pool.missing)
    with progress_bar(total, pool.done, "image", "embedding") as bar, processes.together():
        for shard in pool.missing:
            rows, bad = _embedded(pool, pool.rows(shard), encode, batch_size, bar.update)
            pool.bad += len(bad)
            pool.check_bad()
            write_shard(folder, shard, rows, bad)
    bad_count = int(processes.gathered([pool.bad])[:, 0].sum())
    without = f", {bad_count} of them without an image that can be read" if bad_count else ""
    return f"{len(pool.source)} examples are embedded{without}."


def _opened(config: CurationConfig, model: AddressLike, folder: Address, dtype: str) -> _Pool:
    for name in ("data", "tensor", "slices"):
        value, default = getattr(config.mesh, name), getattr(MeshConfig(), name)
        if value != default:
            raise UserError(
                f"config.mesh.{name} is {value}, expected {default}, since embed runs replicas on "
                "all devices and only shards the backbone; remove it, or set config.mesh.fsdp."
            )
    data = config.data
    backbone = read_description(model)
    check_image_size(data.image_size, backbone.vision.patch_size)
    data = dataclasses.replace(data, augmentation=data.view_rule)
    for sentence in data.preparation_conflicts("config.data"):
        raise UserError(sentence)
    source = open_source(data)
    if not len(source):
        raise UserError("config.data has no examples, expected at least one; correct it.")
    size = shard_rows(len(source))
    description = {
        "format": EMBEDDINGS_FORMAT,
        "pool": data_identity(source, data.threads),
        "backbone": backbone.fingerprint,
        "dtype": dtype,
        "width": backbone.vision.dim,
        "shard_rows": size,
        "image_size": data.image_size,
        "resize": data.resize if data.view_rule == "center_crop" else 0,
        "rule": data.view_rule,
        "decoder": view_decoder(data),
    }
    pool = _Pool(data, source, folder, description)
    shards = range(-(-len(source) // size))
    mine = shards[jax.process_index() :: jax.process_count()]
    if retried((folder / "embeddings.json").exists):
        _check_same(read_embeddings_description(folder), description, folder)
        _verify(pool, mine)
    else:
        pool.missing = list(mine)
    return pool


def _check_same(stored: dict[str, Any], expected: dict[str, Any], folder: Address) -> None:
    changed = [key for key in expected if stored.get(key) != expected[key]]
    if changed:
        found = ", ".join(f"{key} {stored.get(key)!r}" for key in changed)
        now = ", ".join(f"{key} {expected[key]!r}" for key in changed)
        raise UserError(
            f"{folder} holds embeddings with {found}, expected {now}; name a new folder with "
            "--output, or embed the same pool with the same settings."
        )


def _verify(pool: _Pool, shards: range) -> None:
    with progress_bar(len(shards), 0, "shard", "verifying embeddings") as bar:
        for shard in shards:
            rows = len(pool.rows(shard))
            problem, bad = shard_state(pool.folder, shard, rows, pool.description["width"])
            if problem:
                pool.missing.append(shard)
                if problem != "missing":
                    logging.warning("%s: it is embedded again", problem)
            else:
                pool.done += rows
                pool.bad += len(bad)
            bar.update()


def _encoder(model: AddressLike, dtype: str, mesh: Any, batch_size: int) -> _Encode:
    """Returns a function that computes class tokens of up to `batch_size` images."""
    backbone, description = load_vision_transformer(model, DTypes(dtype, dtype), mesh)
    graphdef, state = nnx.split(backbone)
    arrays = nnx.to_pure_dict(state)
    preprocessing = description.preprocessing

    @functools.partial(jax.jit, compiler_options=compiler_options([dtype]))
    def run(arrays: Any, pixels: jax.Array) -> jax.Array:
        images = normalize(pixels, preprocessing.mean, preprocessing.std)
        return nnx.merge(graphdef, arrays)(images).class_token.astype("float32")

    def encode(pixels: UInt8[np.ndarray, "b s s 3"]) -> Float16[np.ndarray, "b d"]:
        missing = batch_size - len(pixels)
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
        with jax.set_mesh(mesh):
            placed = jax.device_put(padded, sharding.batch_sharding(mesh))
            return np.asarray(run(arrays, placed))[: len(pixels)].astype(np.float16)

    return encode


def _embedded(
    pool: _Pool, rows: range, encode: _Encode, batch_size: int, progress: Callable[[int], Any]
) -> tuple[Float16[np.ndarray, "n d"], list[int]]:
    """Returns the embeddings of a shard, and the examples in it whose images are bad."""
    transform = EvalTransform(pool.data)
    side = pool.data.image_size

    def load(index: int) -> tuple[bool, UInt8[np.ndarray, "s s 3"]]:
        try:
            return True, transform(decoded_image(pool.source[index], pool.data))
        except BadImageError as error:
            logging.warning("example %d has no embedding: %s", index, error)
            return False, np.zeros((side, side, 3), np.uint8)

    images = in_threads(rows, load, pool.data.threads, max(pool.data.prefetch, batch_size))
    blocks, bad = [], []
    for start, batch in _batches(images, batch_size):
        bad += [start + number for number, (is_good, _) in enumerate(batch) if not is_good]
        blocks.append(encode(np.stack([pixels for _, pixels in batch])))
        progress(len(batch))
    embeddings = np.concatenate(blocks)
    embeddings[bad] = 0
    finite = np.isfinite(embeddings).all(1)
    if not finite.all():
        key = pool.source.key(rows[int(np.argmin(finite))])
        raise UserError(
            f"the embedding of {key} is not finite, expected numbers that float16 can hold; use a "
            "model that is whole, or --dtype=float32."
        )
    return embeddings, bad


def _batches(items: Iterator[ItemT], size: int) -> Iterator[tuple[int, list[ItemT]]]:
    """Yields the position of the first item, and up to `size` items."""
    start = 0
    while batch := list(itertools.islice(items, size)):
        yield start, batch
        start += len(batch)
