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
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from dinotxt_jax.config import LossConfig
from dinotxt_jax.models.dinotxt import normalized
from dinotxt_jax.sharding import BatchShards, batch_shards


def softmax_contrastive_loss(
    image_features: Float[Array, "b D"],
    text_features: Float[Array, "b D"],
    scale: Float[ArrayLike, ""],
    *,
    chunk: int = LossConfig.chunk,
) -> Float[Array, ""]:
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
    scale: Float[ArrayLike, ""],
    bias: Float[ArrayLike, ""],
    *,
    chunk: int = LossConfig.chunk,
) -> Float[Array, ""]:
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

    def gram(tokens: Float[Array, "b n w"]) -> Float[Array, "b n n"]:
        wide = normalized(tokens) if normalize else tokens.astype(_wide(tokens))
        return jnp.einsum("bnd,bmd->bnm", wide, wide)

    target = jax.lax.stop_gradient(gram(backbone_patch_tokens))
    return jnp.mean(jnp.square(gram(patch_tokens) - target), axis=(1, 2))


def _wide(*arrays: Any) -> jnp.dtype:
    """At least float32, so that bfloat16 features give a float32 loss."""
    return jnp.result_type(*arrays, jnp.float32)


class _Setting(NamedTuple):
    """The constants of a traced loss.

    Attributes:
        kind: "softmax" or "sigmoid".
        chunk: columns of the logits that exist at a time, over all devices.
        shards: the devices.
    """

    kind: str
    chunk: int
    shards: BatchShards

    def blocks(self, count: int) -> tuple[int, int]:
        """Number of blocks, and texts of each device in a block, for `count` texts on each device.

        Equal blocks, none above the chunk; together they are less than a block longer than `count`.
        """
        number = -(-count // min(-(-self.chunk // self.shards.count), count))
        return number, -(-count // number)


class _Block(NamedTuple):
    """Logits of the n local images with k texts of each of p devices, m = p k texts in all.

    The m texts are ordered by device and form one axis, because the compiler copies arrays of three
    axes to multiply them.

    Attributes:
        start: position of the first of the k texts on its device, the same on every device.
        size: k.
        texts: gathered features.
        logits: of local images with these texts; -inf for texts that only pad the last block.
        matched: where image and text are a pair.
    """

    start: Int[Array, ""]
    size: int
    texts: Float[Array, "m D"]
    logits: Float[Array, "n m"]
    matched: Bool[Array, "n m"]

    def by_device(self, values: Float[Array, "m ..."]) -> Float[Array, "p k ..."]:
        """Splits the axis of texts by device."""
        return values.reshape(-1, self.size, *values.shape[1:])


# Logical axes of the arguments and results of the functions that each device runs on its shard.
_FEATURES, _VECTOR, _NUMBER = ("batch", None), ("batch",), ()


def _contrastive_loss(
    kind: str,
    images: Float[Array, "b D"],
    texts: Float[Array, "b D"],
    scale: Float[ArrayLike, ""],
    bias: Float[ArrayLike, ""],
    chunk: int,
) -> Float[Array, ""]:
    wide = _wide(images, texts, scale, bias)
    setting = _Setting(kind, chunk, batch_shards(images.shape[0]))
    scale, bias = jnp.asarray(scale, wide), jnp.asarray(bias, wide)
    return _blockwise_loss(setting, images, texts, scale, bias)


# The gradient is written out, because autodiff of the loop over blocks would keep all b x b logits.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise_loss(
    setting: _Setting,
    images: Float[Array, "b D"],
    texts: Float[Array, "b D"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
) -> Float[Array, ""]:
    return _forward(setting, images, texts, scale, bias)[0]


def _forward(
    setting: _Setting,
    images: Float[Array, "b D"],
    texts: Float[Array, "b D"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
) -> tuple[Float[Array, ""], tuple[Any, ...]]:
    """The loss, and the values that `_backward` starts from: O(b D), no logits."""
    run = setting.shards.map(
        functools.partial(_local_loss, setting),
        (_FEATURES, _FEATURES, _NUMBER, _NUMBER),
        (_NUMBER, _VECTOR),
    )
    loss, sums = run(images, texts, scale, bias)
    return loss, (images, texts, scale, bias, sums)


def _backward(
    setting: _Setting, kept: tuple[Any, ...], cotangent: Float[Array, ""]
) -> tuple[Float[Array, "b D"], Float[Array, "b D"], Float[Array, ""], Float[Array, ""]]:
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
    scale: Float[Array, ""],
    bias: Float[Array, ""],
) -> tuple[Float[Array, ""], tuple[Float[Array, " n"], ...]]:
    """Computes the loss of the global batch on one device.

    Returns:
        The loss, and for softmax the logsumexp of the logits of each local image and of each local
        text, which the gradients need.
    """
    shards, count = setting.shards, images.shape[0]
    images = images.astype(scale.dtype)

    def softmax(
        so_far: Float[Array, " n"], block: _Block
    ) -> tuple[Float[Array, " n"], Float[Array, "k p"]]:
        rows = jax.nn.logsumexp(block.logits, axis=1)
        columns = block.by_device(jax.nn.logsumexp(block.logits, axis=0))
        # Texts come first in the output of a block; `_over_blocks` joins the blocks on that axis.
        return jnp.logaddexp(so_far, rows), columns.T

    def sigmoid(so_far: Float[Array, " n"], block: _Block) -> tuple[Float[Array, " n"], None]:
        signed = jnp.where(block.matched, -block.logits, block.logits)
        return so_far + jnp.sum(jax.nn.softplus(signed), axis=1), None

    sums: tuple[Float[Array, " n"], ...] = ()
    if setting.kind == "sigmoid":
        zeros = jnp.zeros(count, scale.dtype)
        losses, _ = _over_blocks(setting, sigmoid, zeros, images, texts, scale, bias)
    else:
        empty = jnp.full(count, -jnp.inf, scale.dtype)  # log of an empty sum
        rows, parts = _over_blocks(setting, softmax, empty, images, texts, scale, bias)
        # parts [n p]: the local images' share in the sum of text j of device i is [j, i]. Each
        # device receives the shares of all devices in its own texts, [p n], and adds them up.
        columns = jax.nn.logsumexp(shards.exchange(parts.T), axis=0)
        sums = (rows, columns)
        own = jnp.sum(images * texts.astype(scale.dtype), axis=-1) * scale
        losses = (rows + columns) / 2 - own
    return shards.sum(jnp.sum(losses)) / (count * shards.count), sums


def _local_gradients(
    setting: _Setting,
    images: Float[Array, "n D"],
    texts: Float[Array, "n D"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    sums: tuple[Float[Array, " n"], ...],
    cotangent: Float[Array, ""],
) -> tuple[Float[Array, "n D"], Float[Array, "n D"], Float[Array, ""], Float[Array, ""]]:
    """`cotangent` times the gradients of the loss in images, texts, scale and bias.

    S = d loss / d logits is computed again block by block. The gradients are scale * S texts for
    images, scale * S' images for texts, sum(S * cosines) for the scale, and sum(S) for the bias.
    """
    shards, count = setting.shards, images.shape[0]
    factor = cotangent / (count * shards.count)
    wide_images = images.astype(scale.dtype)
    slopes = _sigmoid_slopes if setting.kind == "sigmoid" else _softmax_slopes(setting, *sums)

    def step(
        so_far: tuple[Float[Array, "n D"], Float[Array, ""]], block: _Block
    ) -> tuple[tuple[Float[Array, "n D"], Float[Array, ""]], Float[Array, "k D"]]:
        slope = slopes(block)  # [n m]
        of_images = so_far[0] + jnp.einsum("nm,md->nd", slope, block.texts)
        # The local images' part in the gradients of the m texts goes to the devices of the texts.
        of_texts = jnp.einsum("nm,nd->md", slope, wide_images)
        of_texts = shards.scatter_sum(block.by_device(of_texts))
        of_texts = (of_texts * (factor * scale)).astype(texts.dtype)
        # A bias would move all logits of a softmax alike.
        of_bias = so_far[1] + jnp.sum(slope) if setting.kind == "sigmoid" else so_far[1]
        return (of_images, of_bias), of_texts

    zeros = (jnp.zeros_like(wide_images), jnp.zeros_like(bias))
    (of_images, of_bias), of_texts = _over_blocks(
        setting, step, zeros, wide_images, texts, scale, bias
    )
    # sum(S * cosines) = sum((S texts) * images), which needs no other pass over the blocks.
    of_scale = shards.sum(jnp.sum(of_images * wide_images))
    of_images = (of_images * (factor * scale)).astype(images.dtype)
    return of_images, of_texts, factor * of_scale, factor * shards.sum(of_bias)


def _sigmoid_slopes(block: _Block) -> Float[Array, "n m"]:
    """Derivatives of the summed loss of the batch in the logits."""
    signs = jnp.where(block.matched, -1, 1)
    return signs * jax.nn.sigmoid(signs * block.logits)


def _softmax_slopes(
    setting: _Setting, rows: Float[Array, " n"], columns: Float[Array, " n"]
) -> Callable[[_Block], Float[Array, "n m"]]:
    """As `_sigmoid_slopes`, from logsumexp of the local images' and texts' logits."""
    columns = setting.shards.gather(_padded(setting, columns))  # [p n], padded as the texts are

    def slopes(block: _Block) -> Float[Array, "n m"]:
        sums = jax.lax.dynamic_slice_in_dim(columns, block.start, block.size, axis=1).ravel()  # [m]
        of_images = jnp.exp(block.logits - rows[:, None])
        return (of_images + jnp.exp(block.logits - sums)) / 2 - block.matched

    return slopes


def _padded(setting: _Setting, values: Float[Array, "n ..."]) -> Float[Array, "padded ..."]:
    """Local values with zeros at the end, so that the blocks divide them."""
    number, size = setting.blocks(len(values))
    return jnp.pad(values, [(0, number * size - len(values))] + [(0, 0)] * (values.ndim - 1))


CarryT = TypeVar("CarryT")
OutputT = TypeVar("OutputT")


def _over_blocks(
    setting: _Setting,
    step: Callable[[CarryT, _Block], tuple[CarryT, OutputT]],
    so_far: CarryT,
    images: Float[Array, "n D"],
    texts: Float[Array, "n D"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
) -> tuple[CarryT, OutputT]:
    """Runs `step` over all blocks of texts, one after the other.

    Args:
        setting: of the loss.
        step: takes the carry and a block; returns the next carry, and an output for each of the k
            local texts of the block.
        so_far: the first carry.
        images: in the dtype of `scale`.
        texts: in their own dtype; a block is converted after it was gathered, so that bfloat16
            features cross devices as bfloat16.
        scale: multiplies cosines.
        bias: is added to the logits; 0 for softmax.

    Returns:
        The last carry, and the outputs of all local texts.
    """
    shards, count = setting.shards, images.shape[0]
    number, size = setting.blocks(count)
    texts = _padded(setting, texts)

    def body(so_far: CarryT, start: Int[Array, ""]) -> tuple[CarryT, OutputT]:
        gathered = shards.gather(jax.lax.dynamic_slice_in_dim(texts, start, size))  # [p k D]
        gathered = gathered.astype(scale.dtype).reshape(shards.count * size, -1)  # [m D]
        row = jnp.tile(start + jnp.arange(size), shards.count)  # [m], position on its device
        # A logit of -inf adds exactly 0 to every sum and has a gradient of 0.
        offsets = jnp.where(row < count, bias, -jnp.inf)
        logits = jnp.einsum("nd,md->nm", images, scale * gathered) + offsets
        same_device = jnp.repeat(jnp.arange(shards.count) == shards.index(), size)
        same_row = jnp.arange(count)[:, None] == row
        return step(so_far, _Block(start, size, gathered, logits, same_device & same_row))

    so_far, outputs = jax.lax.scan(body, so_far, jnp.arange(number) * size)
    # [number k ...] -> [n ...]
    return so_far, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], outputs)
