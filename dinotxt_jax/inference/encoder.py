"""A whole dino.txt, ready to run on arrays: compiled once per shape, on one device or a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from dinotxt_jax import sharding
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference.interpolation import to_whole_patches
from dinotxt_jax.inference.running import checked_images, run_method
from dinotxt_jax.inference.summary import summary
from dinotxt_jax.models.dinotxt import ImageFeatures, normalized
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.model_directory import ModelDescription, fingerprint
from dinotxt_jax.tokenizers import Tokenizer, trimmed_length


class Encoder:
    """Arrays in, features out; methods are compiled once per shape.

    Args:
        graphdef, arrays: of a `DinoTxt`.
        description: what the model directory's `model.json` says.
        make_tokenizer: called when the tokenizer is first needed.
        mesh: shards batches; None uses the first device.
        cache_texts: keep features of classes in the cache folder (a model that learns should not).
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
        self._graphdef = graphdef
        self._arrays = arrays
        self._mesh = mesh
        self.cache_texts = cache_texts

    def __repr__(self) -> str:
        return summary(type(self).__name__, self.description, self._arrays)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with.

        Raises:
            UserError: the model directory names none, or its vocabulary cannot be had.
        """
        return self._make_tokenizer()

    @functools.cached_property
    def text_fingerprint(self) -> str:
        """sha256 of the text transformer's arrays."""
        return fingerprint(self._arrays["text"])

    @functools.cached_property
    def trained_fingerprint(self) -> str:
        """sha256 of everything but the backbone, which `description.fingerprint` is of."""
        return fingerprint(
            {name: tree for name, tree in self._arrays.items() if name != "backbone"}
        )

    @property
    def logit_scale(self) -> float:
        """Its exp() multiplies cosine similarities."""
        return float(self._arrays["logit_scale"])

    def encode_image(
        self, images: Float[Array, "b h w 3"], normalize: bool = False
    ) -> Float[Array, "b D"]:
        """Descriptors [class token; pooled patch tokens] of normalised RGB images, float32."""
        return self._call("encode_image", (normalize,), checked_images(images))

    def encode_patches(self, images: Float[Array, "b h w 3"]) -> ImageFeatures:
        """The head's class token [b d] and patch tokens [b gh gw d] of normalised RGB images."""
        return self._call("encode_patches", (), checked_images(images))

    def encode_text(
        self, tokens: Int[Array, "b l"], normalize: bool = False
    ) -> Float[Array, "b D"]:
        """Features of token rows (`tokenizer(texts)`), float32."""
        rows = tokens if isinstance(tokens, jax.Array) else np.asarray(tokens)
        if rows.ndim != 2 or rows.dtype.kind not in "iu":
            raise UserError(
                f"token rows are {rows.dtype}{list(rows.shape)}, expected integers [b l]; encode "
                "texts with model.tokenizer(texts) first."
            )
        return self._call("encode_text", (normalize,), rows)

    def _call(self, method: str, options: tuple[Any, ...], *inputs: Any) -> Any:
        # The mesh is part of jit's cache key, so that activations are pinned where there is one.
        if self._mesh is None:
            return run_method(
                self._graphdef, self._arrays, method, options, *map(jnp.asarray, inputs)
            )
        with jax.set_mesh(self._mesh):
            return run_method(self._graphdef, self._arrays, method, options, *inputs)

    def embed_batches(
        self, batches: Iterable[UInt8[np.ndarray, "b h w 3"]], batch_size: int
    ) -> Iterator[Float[np.ndarray, "b D"]]:
        """L2-normalised descriptors of prepared images, batch by batch.

        Short batches are padded to `batch_size`, so that one shape is compiled.
        """
        for images in batches:
            pixels = self._pixels(self._placed(images, batch_size))
            yield self._rows(self._call("encode_image", (True,), pixels), len(images))

    def embed_backbone_tokens(
        self, batches: Iterable[np.ndarray], batch_size: int
    ) -> Iterator[Float[np.ndarray, "b D"]]:
        """As `embed_batches`, from cached tokens [b t d] of the backbone."""
        for tokens in batches:
            placed = self._placed(tokens, batch_size)
            yield self._rows(self._call("describe_tokens", (True,), placed), len(tokens))

    def window_tokens(
        self, windows: UInt8[np.ndarray, "n h w 3"], batch_size: int
    ) -> Float[Array, "b gh gw d"]:
        """The head's patch tokens of pieces of images, L2-normalised, float32, on the devices.

        Pieces are stretched bicubically to whole patches, and padded to `batch_size` of them.
        """
        pixels = self._pixels(self._placed(windows, batch_size))
        return _unit_patches(self._call("encode_patches", (), pixels))

    def embed_texts(
        self, texts: str | Sequence[str], batch_size: int = 256, trim: int = 8
    ) -> Float[np.ndarray, "n D"]:
        """L2-normalised features of texts, one or several, in their order.

        Texts are encoded in order of length and cut to multiples of `trim` tokens: the same
        features (attention is causal), a fraction of the work.

        Raises:
            UserError: there is no text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise UserError("there are no texts, expected at least one; give it.")
        tokens = self.tokenizer(texts)
        lengths = self.tokenizer.lengths(tokens)
        order = np.argsort(lengths, kind="stable")
        features = np.empty((len(order), self.description.dinotxt.text.embed_dim), np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            length = trimmed_length(int(lengths[rows].max()), trim, tokens.shape[1])
            placed = self._placed(tokens[rows, :length], batch_size)
            features[rows] = self._rows(self._call("encode_text", (True,), placed), len(rows))
        return features

    def _placed(self, rows: np.ndarray, batch_size: int) -> Any:
        """Up to `batch_size` rows on the devices, padded by repeating the last.

        With a mesh `batch_size` is first rounded up to a multiple of its devices.
        """
        parts = 1 if self._mesh is None else self._mesh.size
        missing = -(-batch_size // parts) * parts - len(rows)
        padded = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
        if self._mesh is not None:
            return processes.placed(padded, sharding.batch_sharding(self._mesh))
        return jnp.asarray(padded)

    def _pixels(self, images: Any) -> Float[Array, "b h w 3"]:
        """uint8 images normalised, and stretched to whole patches."""
        wanted, patch = self.description.preprocessing, self.description.vision.patch_size
        return _prepared(images, wanted.mean, wanted.std, patch)

    @staticmethod
    def _rows(features: Any, count: int) -> np.ndarray:
        return processes.on_host(features)[:count]


@functools.partial(jax.jit, static_argnames=("mean", "std", "patch"))
def _prepared(
    images: UInt8[Array, "b h w 3"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    patch: int,
) -> Float[Array, "b i j 3"]:
    return to_whole_patches(normalize(images, mean, std), patch)


@jax.jit
def _unit_patches(features: ImageFeatures) -> Float[Array, "b gh gw d"]:
    return normalized(features.patch_tokens)
