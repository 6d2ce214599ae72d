"""Training objectives, exact over the global batch.

Under `jax.jit` the batch is one array whatever the mesh, so the loss over it *is* the global loss;
there is no local variant.

The b x b logits of the contrastive losses never exist at once. Each device holds its rows of both
sides and sees `chunk` columns at a time, gathered from all devices; a block of logits serves both
directions. What is kept for the gradient is features and a logarithm of a sum for each row and each
column, and the backward pass computes the blocks again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from dinotxt_jax.config import LossConfig
from dinotxt_jax.models.dinotxt import normalized
from dinotxt_jax.sharding import BatchShards, batch_shards


def softmax_contrastive_loss(
    image_features: Float[Array, "b D"],
    text_features: Float[Array, "b D"],
    scale: Float[Scalar, ""],
    *,
    chunk: int = LossConfig.chunk,
) -> Float[Scalar, ""]:
    """Mean of image-to-text and text-to-image cross-entropy (arXiv 2103.00020, figure 3).

    Args:
        image_features, text_features: L2-normalised; row i of one belongs to row i of the other.
        scale: multiplies cosine similarities, exp(logit_scale).
        chunk: columns of the logits that exist at a time, over all devices (rounded up to a
            multiple of their number). Memory on a device is local batch x chunk; the result does
            not depend on it.
    """
    return _contrastive_loss("softmax", image_features, text_features, scale, 0.0, chunk)


def sigmoid_contrastive_loss(
    image_features: Float[Array, "b D"],
    text_features: Float[Array, "b D"],
    scale: Float[Scalar, ""],
    bias: Float[Scalar, ""],
    *,
    chunk: int = LossConfig.chunk,
) -> Float[Scalar, ""]:
    """Every pair as its own two-class problem, summed over texts (arXiv 2303.15343, algorithm 1).

    Args:
        image_features, text_features: L2-normalised; row i of one belongs to row i of the other.
        scale, bias: logits are scale * cosine + bias.
        chunk: as in `softmax_contrastive_loss`.
    """
    return _contrastive_loss("sigmoid", image_features, text_features, scale, bias, chunk)


def gram_losses(
    patch_tokens: Float[Array, "b n d"],
    backbone_patch_tokens: Float[Array, "b n e"],
    *,
    normalize: bool = True,
) -> Float[Array, " b"]:
    """For each image the mean squared difference of the patch tokens' Gram matrices.

    Args:
        patch_tokens: of the head. backbone_patch_tokens: of the frozen backbone, same patches.
        normalize: compare cosines instead of inner products.
    """

    def gram(tokens: jax.Array) -> jax.Array:
        wide = normalized(tokens) if normalize else tokens.astype(_wide(tokens))
        return jnp.einsum("bnd,bmd->bnm", wide, wide)

    target = jax.lax.stop_gradient(gram(backbone_patch_tokens))
    return jnp.mean(jnp.square(gram(patch_tokens) - target), axis=(1, 2))


def _wide(*arrays: Any) -> jnp.dtype:
    """At least float32, so that bfloat16 features give a float32 loss."""
    return jnp.result_type(*arrays, jnp.float32)


class _Setting(NamedTuple):
    """What is fixed when a loss is traced: kind of loss, columns at a time, devices."""

    kind: str
    chunk: int
    shards: BatchShards


class _Block(NamedTuple):
    """Logits of the local images with as many texts of every device: m in all, by device.

    They are matrices, since the compiler copies arrays of three axes to multiply them.

    Attributes:
        start: number of the first text, the same on every device.
        size: texts of each device.
        texts: gathered features.
        logits: of local images with these texts.
        matched: whether that is the image's own text.
    """

    start: jax.Array | int
    size: int
    texts: Float[Array, "m D"]
    logits: Float[Array, "n m"]
    matched: Bool[Array, "n m"]

    def by_device(self, values: Float[Array, "m ..."]) -> Float[Array, "p k ..."]:
        """What belongs to texts of each of p devices."""
        return values.reshape(-1, self.size, *values.shape[1:])


_FEATURES, _VECTOR, _NUMBER = ("batch", None), ("batch",), ()


def _contrastive_loss(
    kind: str, images: Any, texts: Any, scale: Any, bias: Any, chunk: int
) -> jax.Array:
    wide = _wide(images, texts, scale, bias)
    setting = _Setting(kind, chunk, batch_shards(images.shape[0]))
    scale, bias = jnp.asarray(scale, wide), jnp.asarray(bias, wide)
    return _blockwise_loss(setting, images, texts, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise_loss(
    setting: _Setting, images: jax.Array, texts: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    return _forward(setting, images, texts, scale, bias)[0]


def _forward(
    setting: _Setting, images: jax.Array, texts: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[Any, ...]]:
    run = setting.shards.map(
        functools.partial(_local_loss, setting),
        (_FEATURES, _FEATURES, _NUMBER, _NUMBER),
        (_NUMBER, _VECTOR),
    )
    loss, sums = run(images, texts, scale, bias)
    return loss, (images, texts, scale, bias, sums)


def _backward(
    setting: _Setting, kept: tuple[Any, ...], cotangent: jax.Array
) -> tuple[jax.Array, ...]:
    run = setting.shards.map(
        functools.partial(_local_gradients, setting),
        (_FEATURES, _FEATURES, _NUMBER, _NUMBER, _VECTOR, _NUMBER),
        (_FEATURES, _FEATURES, _NUMBER, _NUMBER),
    )
    return run(*kept, cotangent)


_blockwise_loss.defvjp(_forward, _backward)


def _local_loss(
    setting: _Setting,
    images: Float[Array, "n D"],
    texts: Float[Array, "n D"],
    scale: Float[Scalar, ""],
    bias: Float[Scalar, ""],
) -> tuple[Float[Scalar, ""], tuple[Float[Array, "n"], ...]]:
    """The global loss, and what the gradients need besides the arguments.

    For softmax that is logsumexp of the logits of each local image and of each local text.
    """
    shards, count = setting.shards, images.shape[0]
    images = images.astype(scale.dtype)

    def softmax(so_far: jax.Array, block: _Block) -> tuple[jax.Array, jax.Array]:
        rows = jax.nn.logsumexp(block.logits, axis=1)
        columns = block.by_device(jax.nn.logsumexp(block.logits, axis=0))
        return jnp.logaddexp(so_far, rows), columns.T

    def sigmoid(so_far: jax.Array, block: _Block) -> tuple[jax.Array, None]:
        signed = jnp.where(block.matched, -block.logits, block.logits)
        return so_far + jnp.sum(jax.nn.softplus(signed), axis=1), None

    sums: tuple[jax.Array, ...] = ()
    if setting.kind == "sigmoid":
        nothing = jnp.zeros(count, scale.dtype)
        losses, _ = _over_blocks(setting, sigmoid, nothing, images, texts, scale, bias)
    else:
        nothing = jnp.full(count, -jnp.inf, scale.dtype)
        rows, parts = _over_blocks(setting, softmax, nothing, images, texts, scale, bias)
        columns = jax.nn.logsumexp(shards.exchange(parts.T), axis=0)
        sums = (rows, columns)
        own = jnp.sum(images * texts.astype(scale.dtype), axis=-1) * scale
        losses = (rows + columns) / 2 - own
    return shards.sum(jnp.sum(losses)) / (count * shards.count), sums


def _local_gradients(
    setting: _Setting,
    images: Float[Array, "n D"],
    texts: Float[Array, "n D"],
    scale: Float[Scalar, ""],
    bias: Float[Scalar, ""],
    sums: tuple[Float[Array, "n"], ...],
    cotangent: Float[Scalar, ""],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`cotangent` times the loss's gradients in images, texts, scale and bias."""
    shards, count = setting.shards, images.shape[0]
    factor = cotangent / (count * shards.count)
    wide_images = images.astype(scale.dtype)
    slopes = _sigmoid_slopes if setting.kind == "sigmoid" else _softmax_slopes(shards, *sums)

    def step(so_far: tuple[jax.Array, jax.Array], block: _Block) -> tuple[Any, jax.Array]:
        slope = slopes(block)
        of_images = so_far[0] + jnp.einsum("nm,md->nd", slope, block.texts)
        of_texts = jnp.einsum("nm,nd->md", slope, wide_images)
        of_texts = shards.scatter_sum(block.by_device(of_texts))
        of_texts = (of_texts * (factor * scale)).astype(texts.dtype)
        # A bias would move all logits of a softmax alike.
        of_bias = so_far[1] + jnp.sum(slope) if setting.kind == "sigmoid" else so_far[1]
        return (of_images, of_bias), of_texts

    nothing = (jnp.zeros_like(wide_images), jnp.zeros_like(bias))
    (of_images, of_bias), of_texts = _over_blocks(
        setting, step, nothing, wide_images, texts, scale, bias
    )
    # sum(slope * cosine), without another pass over the blocks.
    of_scale = shards.sum(jnp.sum(of_images * wide_images))
    of_images = (of_images * (factor * scale)).astype(images.dtype)
    return of_images, of_texts, factor * of_scale, factor * shards.sum(of_bias)


def _sigmoid_slopes(block: _Block) -> Float[Array, "n m"]:
    """Derivatives of the batch's summed loss in the logits."""
    signs = jnp.where(block.matched, -1, 1)
    return signs * jax.nn.sigmoid(signs * block.logits)


def _softmax_slopes(
    shards: BatchShards, rows: Float[Array, "n"], columns: Float[Array, "n"]
) -> Callable[[_Block], Float[Array, "n m"]]:
    """As `_sigmoid_slopes`, from logsumexp of the local images' and texts' logits."""
    columns = shards.gather(columns)

    def slopes(block: _Block) -> jax.Array:
        sums = jax.lax.dynamic_slice_in_dim(columns, block.start, block.size, axis=1).ravel()
        of_images = jnp.exp(block.logits - rows[:, None])
        return (of_images + jnp.exp(block.logits - sums)) / 2 - block.matched

    return slopes


def _over_blocks(
    setting: _Setting,
    step: Callable[[Any, _Block], tuple[Any, Any]],
    so_far: Any,
    images: Float[Array, "n D"],
    texts: Float[Array, "n D"],
    scale: Float[Scalar, ""],
    bias: Float[Scalar, ""],
) -> tuple[Any, Any]:
    """`so_far` after all blocks, and what `step` says of each local text: arrays [n ...].

    `images` in the dtype of `scale` already; texts become so by blocks, after they were gathered.
    """
    shards, count = setting.shards, images.shape[0]
    size = min(-(-setting.chunk // shards.count), count)
    whole, rest = divmod(count, size)

    def one(so_far: Any, start: jax.Array | int, size: int) -> tuple[Any, Any]:
        gathered = shards.gather(jax.lax.dynamic_slice_in_dim(texts, start, size))
        gathered = gathered.astype(scale.dtype).reshape(shards.count * size, -1)
        logits = jnp.einsum("nd,md->nm", images, scale * gathered)
        logits = logits + bias if setting.kind == "sigmoid" else logits
        same_device = jnp.repeat(jnp.arange(shards.count) == shards.index(), size)
        same_row = jnp.arange(count)[:, None] == jnp.tile(start + jnp.arange(size), shards.count)
        return step(so_far, _Block(start, size, gathered, logits, same_device & same_row))

    so_far, found = jax.lax.scan(
        lambda so_far, i: one(so_far, i * size, size), so_far, jnp.arange(whole)
    )
    found = jax.tree.map(lambda x: x.reshape(whole * size, *x.shape[2:]), found)
    if rest:
        so_far, last = one(so_far, whole * size, rest)
        found = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), found, last)
    return so_far, found
