"""Losses and gradients against the official code in float64, on one device and on several.

Also checks the purpose of the contrastive losses: they never hold all logits.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import plain_losses
import pytest
from tolerances import EXACT, SAME_LOSS

from dinotxt_jax import sharding
from dinotxt_jax.losses import gram_losses, sigmoid_contrastive_loss, softmax_contrastive_loss
from dinotxt_jax.models.dinotxt import normalized


@pytest.fixture(scope="module")
def contrastive() -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parent / "goldens/losses/contrastive.npz"))


# The batch is 64: all at once, blocks that do not divide it on any mesh here, and one column per
# device. One device and all devices are tested with every block size; the meshes between them
# differ only in the number of devices.
@pytest.mark.parametrize(
    ("data", "fsdp", "chunk"),
    [
        *((data, fsdp, chunk) for data, fsdp in ((1, 1), (2, 4)) for chunk in (2048, 24, 1)),
        *((data, fsdp, 24) for data, fsdp in ((2, 1), (1, 4), (8, 1))),
    ],
)
@pytest.mark.parametrize("name", ["infonce", "siglip", "siglip_b0"])
def test_contrastive_losses_equal_the_official_code(
    name: str, data: int, fsdp: int, chunk: int, contrastive: dict[str, np.ndarray]
) -> None:
    def loss(images: jax.Array, texts: jax.Array, logit_scale: jax.Array, bias: jax.Array):
        images, texts, scale = normalized(images), normalized(texts), jnp.exp(logit_scale)
        if name == "infonce":
            return softmax_contrastive_loss(images, texts, scale, chunk=chunk)
        return sigmoid_contrastive_loss(images, texts, scale, bias, chunk=chunk)

    golden = {key.split("/")[1]: v for key, v in contrastive.items() if key.startswith(name + "/")}
    bias = golden.get("logit_bias", np.zeros(()))
    mesh = sharding.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
    with jax.enable_x64(True), jax.set_mesh(mesh):
        placed = jax.device_put(
            (contrastive["img_raw"], contrastive["txt_raw"]), sharding.batch_sharding(mesh)
        )
        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(
            *placed, jnp.asarray(golden["logit_scale"]), jnp.asarray(bias)
        )
    np.testing.assert_allclose(value, golden["loss"], rtol=EXACT)
    names = ("grad_img_raw", "grad_txt_raw", "grad_logit_scale", "grad_logit_bias")
    for key, result in zip(names, gradients, strict=True):
        if key in golden:
            np.testing.assert_allclose(result, golden[key], rtol=1e-9, atol=EXACT, err_msg=key)


def test_contrastive_loss_in_float32_is_close_to_float64(
    contrastive: dict[str, np.ndarray],
) -> None:
    images, texts = (
        normalized(jnp.asarray(contrastive[key], "float32")) for key in ("img_raw", "txt_raw")
    )
    scale = jnp.exp(jnp.asarray(contrastive["infonce/logit_scale"], "float32"))
    result = softmax_contrastive_loss(images, texts, scale)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, contrastive["infonce/loss"], rtol=0, atol=1e-6)


SOFTMAX = (softmax_contrastive_loss, plain_losses.softmax, (20.0,))
SIGMOID = (sigmoid_contrastive_loss, plain_losses.sigmoid, (20.0, -5.0))


def drawn_features(rows: int, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    images, texts = np.random.default_rng(0).normal(size=(2, rows, width))
    texts = texts + images
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))


def value_and_gradients(loss: Callable, *arguments: jax.Array) -> tuple:
    return jax.value_and_grad(loss, argnums=tuple(range(len(arguments))))(*arguments)


# 6 rows do not divide over the devices and 8 leave one to each.
@pytest.mark.parametrize("rows", [1, 6, 8, 40])
@pytest.mark.parametrize(("loss", "plain", "numbers"), [SOFTMAX, SIGMOID])
@pytest.mark.parametrize("mesh", ["none", "2x4"])
def test_any_batch_equals_the_definition(
    mesh: str, loss: Callable, plain: Callable, numbers: tuple, rows: int
) -> None:
    with jax.enable_x64(True):
        arguments = tuple(map(jnp.asarray, (*drawn_features(rows), *numbers)))
        expected = value_and_gradients(plain, *arguments)
        run = jax.jit(functools.partial(value_and_gradients, functools.partial(loss, chunk=7)))
        with contextlib.nullcontext() if mesh == "none" else jax.set_mesh(sharding.make_mesh(2, 4)):
            actual = run(*arguments)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=EXACT), actual, expected
    )


@pytest.mark.parametrize(("loss", "plain", "numbers"), [SOFTMAX, SIGMOID])
def test_gradients_are_multiplied_by_the_cotangent(
    loss: Callable, plain: Callable, numbers: tuple
) -> None:
    with jax.enable_x64(True), jax.set_mesh(sharding.make_mesh(2, 4)):
        arguments = tuple(map(jnp.asarray, (*drawn_features(16), *numbers)))
        actual, expected = (
            jax.jit(functools.partial(value_and_gradients, lambda *a, f=f: jnp.square(f(*a))))(
                *arguments
            )
            for f in (loss, plain)
        )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=EXACT), actual, expected
    )


@pytest.mark.parametrize(("loss", "plain", "numbers"), [SOFTMAX, SIGMOID])
def test_bfloat16_features_give_a_float32_loss_and_bfloat16_gradients(
    loss: Callable, plain: Callable, numbers: tuple
) -> None:
    features = [jnp.asarray(x, "bfloat16") for x in drawn_features(64)]
    numbers = tuple(map(jnp.float32, numbers))
    with jax.set_mesh(sharding.make_mesh()):
        value, gradients = jax.jit(functools.partial(value_and_gradients, loss))(
            *features, *numbers
        )
    expected, expected_gradients = value_and_gradients(
        plain, *(x.astype("float32") for x in features), *numbers
    )
    assert [g.dtype for g in gradients[:2]] == [jnp.bfloat16] * 2
    assert value.dtype == gradients[2].dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=SAME_LOSS)
    for actual, wide in zip(gradients[:2], expected_gradients, strict=False):
        # Rounded once, at the end: half a unit in the last of eight places, and float32's errors.
        np.testing.assert_allclose(actual.astype("float32"), wide, rtol=1.01 * 2**-8, atol=1e-7)
    # Cancellation in the scale's gradient leaves about 1e-8.
    np.testing.assert_allclose(gradients[2:], expected_gradients[2:], rtol=1e-5, atol=1e-7)


def test_rows_far_below_the_rest_of_their_block_do_not_vanish() -> None:
    # exp(-100 - 100) is 0 in float32: each row and each column needs a separate maximum logit.
    signs = jnp.ones((16, 1)).at[3].set(-1)
    images, texts = signs * jnp.eye(1, 4), jnp.ones((16, 1)) * jnp.eye(1, 4)
    with jax.set_mesh(sharding.make_mesh()):
        value, gradients = jax.jit(
            functools.partial(value_and_gradients, softmax_contrastive_loss)
        )(images, texts, jnp.float32(100))
        swapped = jax.jit(softmax_contrastive_loss)(texts, images, jnp.float32(100))
    # Images to texts: all logits of a row are equal; texts to images: number 3 is 200 too low.
    by_hand = (np.log(16) + (15 * np.log(15) + np.log(15) + 200) / 16) / 2
    np.testing.assert_allclose([value, swapped], by_hand, rtol=SAME_LOSS)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(("loss", "numbers"), [(SOFTMAX[0], 1), (SIGMOID[0], 2)])
def test_a_batch_of_65536_takes_less_than_300_megabytes_on_each_of_eight_devices(
    loss: Callable, numbers: int
) -> None:
    mesh = sharding.make_mesh()
    features = jax.ShapeDtypeStruct(
        (65_536, 2048), jnp.float32, sharding=sharding.batch_sharding(mesh)
    )
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(functools.partial(value_and_gradients, loss))
            .lower(features, features, *[number] * numbers)
            .compile()
        )
    # All logits of one direction would be 2.1 GB per device.
    assert compiled.memory_analysis().temp_size_in_bytes < 0.30e9


@pytest.mark.parametrize("name", ["normalized", "raw"])
def test_gram_loss_equals_the_official_code(name: str, goldens: Path) -> None:
    golden = np.load(goldens / "losses/gram.npz")
    with jax.enable_x64(True):
        tokens = jnp.asarray(golden["patch_tokens"], "float64")
        target = jnp.asarray(golden["backbone_patch_tokens"], "float64")
        value, gradient = jax.value_and_grad(lambda *x, **how: gram_losses(*x, **how).mean())(
            tokens, target, normalize=name == "normalized"
        )
    np.testing.assert_allclose(value, golden[f"{name}/loss"], rtol=1e-10)
    if f"{name}/grad_patch_tokens" in golden:
        np.testing.assert_allclose(
            gradient, golden[f"{name}/grad_patch_tokens"], rtol=1e-8, atol=EXACT
        )


def test_gram_loss_holds_the_backbone_fixed() -> None:
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 4))
    gradient = jax.grad(lambda target: gram_losses(tokens, target).mean())(tokens + 1)
    np.testing.assert_array_equal(gradient, 0)
