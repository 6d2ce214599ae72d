"""Losses and their gradients against the official code in float64, on one device and on eight."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinotxt_jax import sharding
from dinotxt_jax.losses import gram_loss, sigmoid_contrastive_loss, softmax_contrastive_loss
from dinotxt_jax.models.dinotxt import normalized

# The arithmetic is float64 on both sides.
EXACT = 1e-12


@pytest.fixture(scope="module")
def contrastive() -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parent / "goldens/losses/contrastive.npz"))


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("name", ["infonce", "siglip", "siglip_b0"])
def test_contrastive_losses_equal_the_official_code(
    name: str, devices: int, contrastive: dict[str, np.ndarray]
) -> None:
    def loss(images: jax.Array, texts: jax.Array, logit_scale: jax.Array, bias: jax.Array):
        images, texts = normalized(images), normalized(texts)
        if name == "infonce":
            return softmax_contrastive_loss(images, texts, jnp.exp(logit_scale))
        return sigmoid_contrastive_loss(images, texts, jnp.exp(logit_scale), bias)

    golden = {key.split("/")[1]: v for key, v in contrastive.items() if key.startswith(name + "/")}
    bias = golden.get("logit_bias", np.zeros(()))
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    with jax.enable_x64(True), jax.set_mesh(mesh):
        placed = jax.device_put(
            (contrastive["img_raw"], contrastive["txt_raw"]), sharding.batch_sharding(mesh)
        )
        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(
            *placed, jnp.asarray(golden["logit_scale"]), jnp.asarray(bias)
        )
    np.testing.assert_allclose(value, golden["loss"], rtol=EXACT)
    names = ("grad_img_raw", "grad_txt_raw", "grad_logit_scale", "grad_logit_bias")
    for key, found in zip(names, gradients, strict=True):
        if key in golden:
            np.testing.assert_allclose(found, golden[key], rtol=1e-9, atol=EXACT, err_msg=key)


def test_contrastive_loss_in_float32_is_close_to_float64(
    contrastive: dict[str, np.ndarray],
) -> None:
    images, texts = (
        normalized(jnp.asarray(contrastive[key], "float32")) for key in ("img_raw", "txt_raw")
    )
    scale = jnp.exp(jnp.asarray(contrastive["infonce/logit_scale"], "float32"))
    found = softmax_contrastive_loss(images, texts, scale)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, contrastive["infonce/loss"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["normalized", "raw"])
def test_gram_loss_equals_the_official_code(name: str, goldens: Path) -> None:
    golden = np.load(goldens / "losses/gram.npz")
    with jax.enable_x64(True):
        tokens = jnp.asarray(golden["patch_tokens"], "float64")
        target = jnp.asarray(golden["backbone_patch_tokens"], "float64")
        value, gradient = jax.value_and_grad(gram_loss)(
            tokens, target, normalize=name == "normalized"
        )
    np.testing.assert_allclose(value, golden[f"{name}/loss"], rtol=1e-10)
    if f"{name}/grad_patch_tokens" in golden:
        np.testing.assert_allclose(
            gradient, golden[f"{name}/grad_patch_tokens"], rtol=1e-8, atol=EXACT
        )


def test_gram_loss_holds_the_backbone_fixed() -> None:
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 4))
    gradient = jax.grad(lambda target: gram_loss(tokens, target))(tokens + 1)
    np.testing.assert_array_equal(gradient, 0)
