"""Training objectives, exact over the global batch.

Under `jax.jit` the batch is a single array on every mesh, so the loss over it *is* the global loss;
there is no local variant.

The b x b logits for the contrastive losses never exist at once. Each device holds the local rows of
both modalities and computes `chunk` columns at a time, gathered from all devices; a block of logits
serves both directions. Only the features and one logsumexp per row and per column are saved for the
gradient; the backward pass recomputes the blocks.
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
    """Returns the mean of image-to-text and text-to-image cross-entropy.

    Source: arXiv 2103.00020, figure 3.

    Args:
        image_features, text_features: L2-normalised; row i in one matches row i in the other.
        scale: multiplies cosine similarities, exp(logit_scale).
        chunk: logit columns that exist at a time, over all devices (rounded up to a multiple of
            the device count). Memory per device is local batch x chunk; the result does not depend
            on `chunk`.
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
    """Returns the loss that treats every pair as a separate two-class problem, summed over texts.

    Source: arXiv 2303.15343, algorithm 1.

    Args:
        image_features, text_features: L2-normalised; row i in one matches row i in the other.
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
    """Returns the mean squared difference between patch token Gram matrices for each image.

    Args:
        patch_tokens: from the head. backbone_patch_tokens: from the frozen backbone, same patches.
        normalize: compare cosines instead of inner products.
    """

    def gram(tokens: Float[Array, "b n w"]) -> Float[Array, "b n n"]:
        wide = normalized(tokens) if normalize else tokens.astype(_wide(tokens))
        return jnp.einsum("bnd,bmd->bnm", wide, wide)

    target = jax.lax.stop_gradient(gram(backbone_patch_tokens))
    return jnp.mean(jnp.square(gram(patch_tokens) - target), axis=(1, 2))


def _wide(*arrays: Any) -> jnp.dtype:
    """Returns at least float32, so that bfloat16 features give a float32 loss."""
    return jnp.result_type(*arrays, jnp.float32)


class _Setting(NamedTuple):
    """The constants in a traced loss.

    Attributes:
        kind: "softmax" or "sigmoid".
        chunk: logit columns that exist at a time, over all devices.
        shards: how the devices split the batch.
    """

    kind: str
    chunk: int
    shards: BatchShards

    def blocks(self, count: int) -> tuple[int, int]:
        """Returns the block count and the block size per device, for `count` texts per device.

        All blocks are equal and none exceeds the chunk; the padded total exceeds `count` by less
        than one block.
        """
        number = -(-count // min(-(-self.chunk // self.shards.count), count))
        return number, -(-count // number)


class _Block(NamedTuple):
    """Logits between the n local images and k texts from each of p devices, m = p k texts in all.

    The m texts are ordered by device and form a single axis, because the compiler copies arrays
    with three axes to multiply them.

    Attributes:
        start: local index of the first text in the block, the same on every device.
        size: k.
        texts: gathered features.
        logits: local images against these texts; -inf for texts that only pad the last block.
        matched: where image and text are a pair.
    """

    start: Int[Array, ""]
    size: int
    texts: Float[Array, "m D"]
    logits: Float[Array, "n m"]
    matched: Bool[Array, "n m"]

    def by_device(self, values: Float[Array, "m ..."]) -> Float[Array, "p k ..."]:
        """Splits the text axis by device."""
        return values.reshape(-1, self.size, *values.shape[1:])


# Logical axes for the arguments and results in functions that each device runs on the local shard.
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


# The gradient is written out, because autodiff through the block loop would keep all b x b logits.
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
    """Returns the loss, and the residuals for `_backward`: O(b D), no logits."""
    run = setting.shards.map(
        functools.partial(_local_loss, setting),
        (_FEATURES, _FEATURES, _NUMBER, _NUMBER),
        (_NUMBER, _VECTOR),
    )
    loss, sums = run(images, texts, scale, bias)
    return loss, (images, texts, scale, bias, sums)


def _backward(
    setting: _Setting, residuals: tuple[Any, ...], cotangent: Float[Array, ""]
) -> tuple[Float[Array, "b D"], Float[Array, "b D"], Float[Array, ""], Float[Array, ""]]:
    run = setting.shards.map(
        functools.partial(_local_gradients, setting),
        (_FEATURES, _FEATURES, _NUMBER, _NUMBER, _VECTOR, _NUMBER),
        (_FEATURES, _FEATURES, _NUMBER, _NUMBER),
    )
    return run(*residuals, cotangent)


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
        The loss, and for softmax the logsumexp over the logits for each local image and for each
        local text, which the gradients need.
    """
    shards, count = setting.shards, images.shape[0]
    images = images.astype(scale.dtype)

    def softmax(
        so_far: Float[Array, " n"], block: _Block
    ) -> tuple[Float[Array, " n"], Float[Array, "k p"]]:
        rows = jax.nn.logsumexp(block.logits, axis=1)
        columns = block.by_device(jax.nn.logsumexp(block.logits, axis=0))
        # Texts are the first output axis in a block; `_over_blocks` joins the blocks on that axis.
        return jnp.logaddexp(so_far, rows), columns.T

    def sigmoid(so_far: Float[Array, " n"], block: _Block) -> tuple[Float[Array, " n"], None]:
        signed = jnp.where(block.matched, -block.logits, block.logits)
        return so_far + jnp.sum(jax.nn.softplus(signed), axis=1), None

    sums: tuple[Float[Array, " n"], ...] = ()
    if setting.kind == "sigmoid":
        zeros = jnp.zeros(count, scale.dtype)
        losses, _ = _over_blocks(setting, sigmoid, zeros, images, texts, scale, bias)
    else:
        empty = jnp.full(count, -jnp.inf, scale.dtype)  # log(0)
        rows, parts = _over_blocks(setting, softmax, empty, images, texts, scale, bias)
        # parts [n p]: [j, i] is the contribution of the local images to the sum for text j of
        # device i. Each device receives the contributions of all devices to the local texts, [p n],
        # and adds them up.
        columns = jax.nn.logsumexp(shards.exchange(parts.T), axis=0)
        sums = (rows, columns)
        pair_logits = jnp.sum(images * texts.astype(scale.dtype), axis=-1) * scale
        losses = (rows + columns) / 2 - pair_logits
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
    """Returns `cotangent` times the gradients of the loss for images, texts, scale and bias.

    S = d loss / d logits is recomputed block by block. The gradients are scale * S texts for
    images, scale * S' images for texts, sum(S * cosines) for the scale, and sum(S) for the bias.
    """
    shards, count = setting.shards, images.shape[0]
    factor = cotangent / (count * shards.count)
    wide_images = images.astype(scale.dtype)
    slopes = _sigmoid_slopes if setting.kind == "sigmoid" else _softmax_slopes(setting, *sums)

    def step(
        so_far: tuple[Float[Array, "n D"], Float[Array, ""]], block: _Block
    ) -> tuple[tuple[Float[Array, "n D"], Float[Array, ""]], Float[Array, "k D"]]:
        """Adds a block's gradients of images and bias, and returns the gradient of its texts."""
        slope = slopes(block)  # [n m]
        image_gradient = so_far[0] + jnp.einsum("nm,md->nd", slope, block.texts)
        # The contributions to the m text gradients go to the devices that hold those texts.
        text_gradient = jnp.einsum("nm,nd->md", slope, wide_images)
        text_gradient = shards.scatter_sum(block.by_device(text_gradient))
        text_gradient = (text_gradient * (factor * scale)).astype(texts.dtype)
        # The softmax loss has no bias gradient: a bias would shift all logits equally.
        bias_gradient = so_far[1] + jnp.sum(slope) if setting.kind == "sigmoid" else so_far[1]
        return (image_gradient, bias_gradient), text_gradient

    zeros = (jnp.zeros_like(wide_images), jnp.zeros_like(bias))
    (image_gradient, bias_gradient), text_gradient = _over_blocks(
        setting, step, zeros, wide_images, texts, scale, bias
    )
    # sum(S * cosines) = sum((S texts) * images), which needs no second pass over the blocks.
    scale_gradient = shards.sum(jnp.sum(image_gradient * wide_images))
    image_gradient = (image_gradient * (factor * scale)).astype(images.dtype)
    return (
        image_gradient,
        text_gradient,
        factor * scale_gradient,
        factor * shards.sum(bias_gradient),
    )


def _sigmoid_slopes(block: _Block) -> Float[Array, "n m"]:
    """Returns the derivatives of the summed batch loss with respect to the logits."""
    signs = jnp.where(block.matched, -1, 1)
    return signs * jax.nn.sigmoid(signs * block.logits)


def _softmax_slopes(
    setting: _Setting, rows: Float[Array, " n"], columns: Float[Array, " n"]
) -> Callable[[_Block], Float[Array, "n m"]]:
    """Returns a function like `_sigmoid_slopes`, given the logsumexp per local image and text."""
    columns = setting.shards.gather(_padded(setting, columns))  # [p n], padded like the texts

    def slopes(block: _Block) -> Float[Array, "n m"]:
        sums = jax.lax.dynamic_slice_in_dim(columns, block.start, block.size, axis=1).ravel()  # [m]
        image_softmax = jnp.exp(block.logits - rows[:, None])
        return (image_softmax + jnp.exp(block.logits - sums)) / 2 - block.matched

    return slopes


def _padded(setting: _Setting, values: Float[Array, "n ..."]) -> Float[Array, "padded ..."]:
    """Pads local values with zeros at the end, so that the blocks divide them."""
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
    """Runs `step` over all text blocks, one after the other.

    Args:
        setting: the loss constants.
        step: takes the carry and a block; returns the next carry, and an output for each of the k
            local texts in the block.
        so_far: the first carry.
        images: features with the same dtype as `scale`.
        texts: features in any dtype; a block is converted after the gather, so that bfloat16
            features cross devices as bfloat16.
        scale: multiplies cosines.
        bias: added to the logits; 0 for softmax.

    Returns:
        The last carry, and the outputs for all local texts.
    """
    shards, count = setting.shards, images.shape[0]
    number, size = setting.blocks(count)
    texts = _padded(setting, texts)

    def body(so_far: CarryT, start: Int[Array, ""]) -> tuple[CarryT, OutputT]:
        """Runs one block of texts: gathers it from all devices and masks its padding."""
        gathered = shards.gather(jax.lax.dynamic_slice_in_dim(texts, start, size))  # [p k D]
        gathered = gathered.astype(scale.dtype).reshape(shards.count * size, -1)  # [m D]
        row = jnp.tile(start + jnp.arange(size), shards.count)  # [m], local index on each device
        # A -inf logit adds exactly 0 to every sum and has a zero gradient.
        offsets = jnp.where(row < count, bias, -jnp.inf)
        logits = jnp.einsum("nd,md->nm", images, scale * gathered) + offsets
        same_device = jnp.repeat(jnp.arange(shards.count) == shards.index(), size)
        same_row = jnp.arange(count)[:, None] == row
        return step(so_far, _Block(start, size, gathered, logits, same_device & same_row))

    so_far, outputs = jax.lax.scan(body, so_far, jnp.arange(number) * size)
    # [number k ...] -> [n ...]
    return so_far, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], outputs)
