"""A complete dino.txt model that runs on arrays, on one device or a mesh; one compile per shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped, UInt8

from dinotxt_jax import sharding
from dinotxt_jax.errors import UserError, check_choice
from dinotxt_jax.inference.running import checked_images, checked_tokens, run_method
from dinotxt_jax.inference.summary import summary
from dinotxt_jax.models.dinotxt import DENSE_FEATURES, ImageFeatures, normalized
from dinotxt_jax.models.vit import PatchBatch
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.model_directory import ModelDescription, fingerprint
from dinotxt_jax.tokenizers import Tokenizer, trimmed_length


class Encoder:
    """Maps arrays to features; methods are compiled once per shape.

    Args:
        graphdef, arrays: a split `DinoTxt` module.
        description: content of the model directory's `model.json`.
        make_tokenizer: called when the tokenizer is first needed.
        mesh: device mesh for sharding batches; None uses the first device.
        cache_texts: keep class features in the cache folder (disable for a model in training).
    """

    def __init__(
        self,
        graphdef: Any,
        arrays: dict[str, Any],
        description: ModelDescription,
        make_tokenizer: Callable[[], Tokenizer],
        mesh: Mesh | None = None,
        *,
        cache_texts: bool = True,
    ):
        self.description = description
        self._make_tokenizer = make_tokenizer
        self._arrays = arrays
        self._mesh = mesh
        self._run = functools.partial(run_method, graphdef, arrays, mesh=mesh)
        self.cache_texts = cache_texts

    def __repr__(self) -> str:
        return summary(type(self).__name__, self.description, self._arrays)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with.

        Raises:
            UserError: the model directory names no tokenizer, or the vocabulary is unavailable.
        """
        return self._make_tokenizer()

    @functools.cached_property
    def text_fingerprint(self) -> str:
        """SHA-256 digest of the text transformer's arrays."""
        return fingerprint(self._arrays["text"])

    @functools.cached_property
    def trained_fingerprint(self) -> str:
        """SHA-256 digest of all arrays except the backbone (`description.fingerprint`)."""
        return fingerprint(
            {name: tree for name, tree in self._arrays.items() if name != "backbone"}
        )

    @property
    def logit_scale(self) -> float:
        """Logarithm of the factor that multiplies cosine similarities: exp(logit_scale)."""
        return float(self._arrays["logit_scale"])

    @property
    def logit_bias(self) -> float:
        """The number that is added to logits (SigLIP); 0 for models without one."""
        return float(self._arrays.get("logit_bias", 0.0))

    def encode_image(
        self, images: Float[Array | np.ndarray, "b h w 3"], normalize: bool = False
    ) -> Float[Array, "b D"]:
        """Encodes normalised RGB images to [class token; pooled patch tokens], float32."""
        return self._run("encode_image", checked_images(images), normalize=normalize)

    def encode_patches(
        self, images: Float[Array | np.ndarray, "b h w 3"], features: str = "auto"
    ) -> ImageFeatures:
        """Encodes normalised RGB images to class [b d] and patch [b gh gw d] tokens.

        Args:
            images: normalised images.
            features: kind of patch tokens (`SegmentationConfig.features`).

        Raises:
            UserError: the model has no patch tokens of that kind.
        """
        kind = self.dense_features(features, "encode_patches")
        return self._run("encode_patches", checked_images(images), features=kind)

    def dense_features(self, name: str, where: str) -> str:
        """Returns the kind of patch tokens that `SegmentationConfig.features` stands for.

        Args:
            name: the setting.
            where: the key of the settings that contain it, for messages.

        Raises:
            UserError: the model has no patch tokens of that kind that texts can be compared with.
        """
        model = self.description.dinotxt
        pools = model.vision.attention_pooling and not model.head.num_blocks
        if name == "auto":
            return "map_values" if pools else "plain"
        check_choice(f"{where}.features", name, DENSE_FEATURES)
        suitable = [
            kind
            for kind, made in DENSE_FEATURES.items()
            if made.pools_each == pools and (made.through_head or not model.head.projection)
        ]
        if name not in suitable:
            raise UserError(
                f"{where}.features is {name}, which texts cannot be compared with in this model, "
                f"expected {', '.join(suitable)} or auto; set it to one of these."
            )
        return name

    def encode_text(
        self, tokens: Int[Array | np.ndarray, "b l"], normalize: bool = False
    ) -> Float[Array, "b D"]:
        """Encodes token rows (`tokenizer(texts)`) to float32 features."""
        rows = checked_tokens(tokens, self.description.dinotxt.text.vocabulary_size)
        return self._run("encode_text", rows, normalize=normalize)

    def held_rows(self, batch_size: int) -> tuple[int, ...]:
        """Returns which rows of a batch of `batch_size` this process's devices hold, ascending.

        All rows if there is a single process. `embed_batches` and `embed_backbone_tokens` use no
        other rows that they are given.
        """
        if self._mesh is None:
            return tuple(range(batch_size))
        padded = self._padded_size(batch_size)
        placed = sharding.batch_sharding(self._mesh)
        indices = placed.addressable_devices_indices_map((padded,)).values()
        rows = {row for index in indices if index for row in range(padded)[index[0]]}
        return tuple(sorted(row for row in rows if row < batch_size))

    def embed_batches(
        self, batches: Iterable[UInt8[np.ndarray, "_ h w 3"] | PatchBatch], batch_size: int
    ) -> Iterator[Float[np.ndarray, "b D"]]:
        """Yields L2-normalised descriptors for prepared images, batch by batch.

        Short batches are padded to `batch_size`, so that only one shape is compiled.
        """
        for images in batches:
            yield self._embedded(
                "encode_image", images, batch_size, pixels=self.description.preprocessing
            )

    def embed_backbone_tokens(
        self, batches: Iterable[Float[np.ndarray, "_ t d"]], batch_size: int
    ) -> Iterator[Float[np.ndarray, "b D"]]:
        """Same as `embed_batches`, but from cached backbone tokens."""
        for tokens in batches:
            yield self._embedded("describe_tokens", tokens, batch_size)

    @functools.cached_property
    def readers(self) -> list[list[int]]:
        """Groups of processes that hold the same rows of a batch, in row order.

        The processes of a group read the same images; the groups share the images among them.
        """
        if self._mesh is None:
            return [[jax.process_index()]]
        return list(sharding.batch_readers(self._mesh).values())

    @property
    def share(self) -> tuple[int, int]:
        """The index of this process's group in `readers`, and the number of groups."""
        me = jax.process_index()
        (index,) = (i for i, group in enumerate(self.readers) if me in group)
        return index, len(self.readers)

    @property
    def is_shared(self) -> bool:
        """Whether other processes take part in every computation."""
        return sum(map(len, self.readers)) > 1

    def window_rows(self, batch_size: int) -> int:
        """Returns how many windows this process gives to `window_tokens`.

        That is its share of `batch_size`, which is rounded up to a multiple of the device count.
        """
        return self._padded_size(batch_size) // len(self.readers)

    def window_tokens(
        self, windows: UInt8[np.ndarray, "r h w 3"], features: str = "plain"
    ) -> Float[Array, "b gh gw d"]:
        """Returns patch tokens of image windows, L2-normalised, float32, on the devices.

        All processes that share the mesh must call it, each with `window_rows` windows of its own
        (those of a group in `readers` with the same); `own_rows` finds them in the result. Windows
        are stretched bicubically to whole patches. `features` comes from `dense_features`.
        """
        if self._mesh is None:
            placed = jnp.asarray(windows)
        else:
            placed = sharding.global_batch({"windows": windows}, self._mesh)["windows"]
        pixels = self.description.preprocessing
        encoded = self._run("encode_patches", placed, pixels=pixels, features=features)
        return unit_length(encoded.patch_tokens)

    def own_rows(self, batch: Float[Array, "b ..."]) -> Float[Array, "r ..."]:
        """Returns the rows that belong to this process's windows, on its first device.

        All processes that share the mesh must call it, with an array computed from
        `window_tokens`.
        """
        if self._mesh is None or self._mesh.size == 1:
            return batch
        by_rows = jax.device_put(batch, sharding.batch_sharding(self._mesh))
        shards = {shard.index[0].start or 0: shard.data for shard in by_rows.addressable_shards}
        return jnp.asarray(np.concatenate([np.asarray(shards[start]) for start in sorted(shards)]))

    def embed_texts(
        self, texts: str | Sequence[str], batch_size: int = 256, trim: int = 8
    ) -> Float[np.ndarray, "n D"]:
        """Returns L2-normalised features for one or several texts, in input order.

        Texts are sorted by length for encoding and cut to multiples of `trim` tokens. Where padding
        has no influence, this gives the same features for a fraction of the work; other models get
        whole rows.

        Raises:
            UserError: there is no text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise UserError("there are no texts, expected at least one; add a text.")
        tokens = self.tokenizer(texts)
        config = self.description.dinotxt.text
        if config.ignores_padding:
            lengths = self.tokenizer.lengths(tokens)
        else:
            lengths = np.full(len(tokens), config.context_length)
        order = np.argsort(lengths, kind="stable")
        features = np.empty((len(order), config.embed_dim), np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            length = trimmed_length(int(lengths[rows].max()), trim, tokens.shape[1])
            features[rows] = self._embedded("encode_text", tokens[rows, :length], batch_size)
        return features

    def _embedded(
        self,
        method: str,
        rows: Shaped[np.ndarray, "b ..."] | PatchBatch,
        batch_size: int,
        **settings: Any,
    ) -> Float[np.ndarray, "b D"]:
        """Returns L2-normalised features of up to `batch_size` rows, on the host."""
        placed = jax.tree.map(lambda array: self._placed(array, batch_size), rows)
        features = self._run(method, placed, normalize=True, **settings)
        return processes.on_host(features)[: len(jax.tree.leaves(rows)[0])]

    def _placed(
        self, rows: Shaped[np.ndarray, "b ..."], batch_size: int
    ) -> Shaped[Array, "padded ..."]:
        """Places up to `batch_size` rows on the devices, padded by repeating the last row.

        With a mesh, `batch_size` is first rounded up to a multiple of the device count.
        """
        missing = self._padded_size(batch_size) - len(rows)
        padded = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
        if self._mesh is not None:
            return processes.placed(padded, sharding.batch_sharding(self._mesh))
        return jnp.asarray(padded)

    def _padded_size(self, batch_size: int) -> int:
        parts = 1 if self._mesh is None else self._mesh.size
        return -(-batch_size // parts) * parts


unit_length = jax.jit(normalized)
"""Divides rows by the L2 norm, compiled."""
