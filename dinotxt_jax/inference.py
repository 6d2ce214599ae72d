"""Using a model: `load` and `load_backbone`, compiled once per shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from dinotxt_jax import sharding
from dinotxt_jax.config import DTYPE_NAMES
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.errors import UserError
from dinotxt_jax.models import directory
from dinotxt_jax.models.dinotxt import ImageFeatures
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.models.vit import VisionConfig, VisionOutput, VisionTransformer
from dinotxt_jax.tokenizers import Tokenizer, load_tokenizer


@functools.partial(jax.jit, static_argnames=("graphdef", "method", "options"))
def _run(graphdef: Any, arrays: Any, method: str, options: tuple[Any, ...], *inputs: Any) -> Any:
    """One method of a module as a pure function; compiled once per module, options and shapes."""
    return getattr(nnx.merge(graphdef, arrays), method)(*inputs, *options)


class Backbone:
    """A frozen VisionTransformer: callable, compiled once per image shape.

    Attributes:
        config: architecture.
        description: what the model directory's `model.json` says (preprocessing, fingerprint).
    """

    def __init__(self, module: VisionTransformer, description: directory.ModelDescription):
        self.config: VisionConfig = module.config
        self.description = description
        self._graphdef, state = nnx.split(module)
        self._arrays = nnx.to_pure_dict(state)

    def __call__(self, images: Float[Array, "b h w 3"]) -> VisionOutput:
        """Class [b d], register [b r d] and patch tokens [b n d] after the final LayerNorm.

        Args:
            images: RGB, normalised with `description.preprocessing`.
        """
        return _run(self._graphdef, self._arrays, "__call__", (), _checked_images(images))

    def intermediate_layers(
        self,
        images: Float[Array, "b h w 3"],
        layers: int | Sequence[int] = 1,
        *,
        normalize: bool = True,
        as_grid: bool = False,
    ) -> list[VisionOutput]:
        """Tokens after some blocks, as the official `get_intermediate_layers` gives them.

        Args:
            images: RGB, normalised with `description.preprocessing`.
            layers: the last so many blocks, or their numbers from 0 (negative ones count from the
                end).
            normalize: apply the final LayerNorm to them.
            as_grid: patch tokens as [b gh gw d] instead of [b n d].

        Returns:
            One `VisionOutput` a layer, in the order asked for.

        Raises:
            UserError: a block that does not exist, or one twice.
        """
        depth = self.config.depth
        numbers = range(depth - layers, depth) if isinstance(layers, int) else layers
        chosen = tuple(n + depth if n < 0 else n for n in numbers)
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(depth)):
            raise UserError(
                f"layers={layers!r} does not name blocks of this backbone, which has {depth}; give "
                f"a number from 1 to {depth}, or different block numbers from 0 to {depth - 1}."
            )
        options = (chosen, normalize, as_grid)
        images = _checked_images(images)
        return _run(self._graphdef, self._arrays, "intermediate_layers", options, images)


class Model:
    """A dino.txt model: methods are compiled once per shape.

    Args:
        graphdef, arrays: of a `DinoTxt`.
        description: what the model directory's `model.json` says.
        make_tokenizer: called when the tokenizer is first needed.
        mesh: shards batches; None uses the first device.
    """

    def __init__(
        self,
        graphdef: Any,
        arrays: dict[str, Any],
        description: directory.ModelDescription,
        make_tokenizer: Callable[[], Tokenizer],
        mesh: Mesh | None = None,
    ):
        self.description = description
        self._make_tokenizer = make_tokenizer
        self._graphdef = graphdef
        self._arrays = arrays
        self._mesh = mesh

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
        return directory.fingerprint(self._arrays["text"])

    @functools.cached_property
    def trained_fingerprint(self) -> str:
        """sha256 of everything but the backbone, which `description.fingerprint` is of."""
        return directory.fingerprint(
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
        return self._call("encode_image", (normalize,), _checked_images(images))

    def encode_patches(self, images: Float[Array, "b h w 3"]) -> ImageFeatures:
        """The head's class token [b d] and patch tokens [b gh gw d] of normalised RGB images."""
        return self._call("encode_patches", (), _checked_images(images))

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
            return _run(self._graphdef, self._arrays, method, options, *map(jnp.asarray, inputs))
        with jax.set_mesh(self._mesh):
            return _run(self._graphdef, self._arrays, method, options, *inputs)

    def embed_images(
        self, batches: Iterable[np.ndarray], batch_size: int
    ) -> Iterator[Float[np.ndarray, "b D"]]:
        """L2-normalised descriptors of batches of uint8 images [b h w 3], batch by batch.

        Short batches are padded to `batch_size`, so that one shape is compiled.
        """
        wanted = self.description.preprocessing
        for images in batches:
            images = normalize(images, wanted.mean, wanted.std)
            yield self._in_batch("encode_image", (True,), images, batch_size)

    def embed_backbone_tokens(
        self, batches: Iterable[np.ndarray], batch_size: int
    ) -> Iterator[Float[np.ndarray, "b D"]]:
        """As `embed_images`, from cached tokens [b t d] of the backbone."""
        for tokens in batches:
            yield self._in_batch("describe_tokens", (True,), tokens, batch_size)

    def embed_texts(
        self, texts: Sequence[str], batch_size: int, trim: int = 8
    ) -> Float[np.ndarray, "n D"]:
        """L2-normalised features of texts, in their order.

        Texts are encoded in order of length and cut to multiples of `trim` tokens: the same
        features (attention is causal), a fraction of the work.
        """
        tokens = self.tokenizer(list(texts))
        lengths = self.tokenizer.lengths(tokens)
        order = np.argsort(lengths, kind="stable")
        features: np.ndarray | None = None
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            length = trimmed_length(int(lengths[rows].max()), trim, tokens.shape[1])
            encoded = self._in_batch("encode_text", (True,), tokens[rows, :length], batch_size)
            if features is None:
                features = np.empty((len(order), encoded.shape[-1]), np.float32)
            features[rows] = encoded
        assert features is not None, "no texts"
        return features

    def _in_batch(
        self, method: str, options: tuple[Any, ...], rows: np.ndarray, batch_size: int
    ) -> np.ndarray:
        """Encodes up to `batch_size` rows, padded by repeating the last."""
        missing = batch_size - len(rows)
        padded = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
        if self._mesh is not None:
            padded = jax.device_put(padded, sharding.batch_sharding(self._mesh))
        return np.asarray(self._call(method, options, padded))[: len(rows)]


def _checked_images(images: Any) -> jax.Array:
    """Images as an array, or a `UserError` that says what is expected."""
    found = images if isinstance(images, jax.Array) else np.asarray(images)
    if found.ndim != 4 or found.shape[-1] != 3 or not jnp.issubdtype(found.dtype, jnp.floating):
        raise UserError(
            f"images are {found.dtype}{list(found.shape)}, expected floating point [b h w 3], "
            "normalised with description.preprocessing (data.transforms.normalize does it)."
        )
    return jnp.asarray(found)


def _checked_dtype(dtype: str) -> str:
    if dtype not in DTYPE_NAMES:
        raise UserError(f"dtype={dtype!r} is unknown; choose {' or '.join(DTYPE_NAMES)}.")
    return dtype


def trimmed_length(longest: int, multiple: int, context_length: int) -> int:
    """`longest` rounded up to a multiple, at most the context length."""
    return min(-(-longest // multiple) * multiple, context_length)


def load_backbone(path: epath.PathLike, dtype: str = "float32") -> Backbone:
    """The backbone of a model directory.

    Args:
        path: a directory made by `python -m weights_convert` or by training.
        dtype: of arrays and matrix products; "float32" or "bfloat16".

    Raises:
        UserError: not a model directory.
    """
    dtypes = DTypes(_checked_dtype(dtype), dtype)
    module, description = directory.load_vision_transformer(path, dtypes)
    return Backbone(module, description)


def load(path: epath.PathLike, dtype: str = "float32", mesh: Mesh | None = None) -> Model:
    """A whole dino.txt model.

    Args:
        path: a directory made by `python -m weights_convert` or by training.
        dtype: of arrays and matrix products; "float32" or "bfloat16".
        mesh: shards arrays and batches over it; None uses the first device.

    Raises:
        UserError: not a model directory, or one with a backbone only.
    """
    dtypes = DTypes(_checked_dtype(dtype), dtype)
    module, description = directory.load_dinotxt(path, dtypes, mesh)
    graphdef, state = nnx.split(module)

    def make_tokenizer() -> Tokenizer:
        if description.tokenizer is None:
            raise UserError(
                f"{path} names no tokenizer, so texts cannot be encoded, only token rows; use "
                "model.encode_text(tokens) with ids of your own tokenizer."
            )
        return load_tokenizer(description.tokenizer, path)

    return Model(graphdef, nnx.to_pure_dict(state), description, make_tokenizer, mesh)
