"""DINOv3: rotary positions, the masked bias, and the whole model against the official code."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import FEATURES, NORMALIZED, ROUNDING

import dinotxt_jax as dt
from dinotxt_jax.models.rope import make_periods, make_rotation, rotate
from weights_convert.convert import convert
from weights_convert.settings import Settings

# Angles up to 2 pi in float32, after a division and two products on both sides.
ANGLES = 2 * math.pi * 8 * ROUNDING


@pytest.fixture
def expected(shared_goldens: Path) -> dict[str, np.ndarray]:
    """Returns inputs and outputs of the official DINOv3 and of the dino.txt built on DINOv3."""
    folder = shared_goldens / "dinotxt_v3"
    return dict(np.load(folder / "out.npz")) | dict(np.load(folder / "inputs.npz"))


def test_tokens_of_every_layer_equal_the_official_code(
    shared_goldens: Path, expected: dict, tmp_path: Path
) -> None:
    convert([shared_goldens / "dinotxt_v3/backbone.pth"], tmp_path / "model", show_progress=False)
    backbone = dt.load_backbone(tmp_path / "model")
    assert backbone.config.num_heads == 4  # inferred from the periods
    images = np.moveaxis(expected["image_112x112"], 1, -1)
    out = backbone(images)
    actual = {
        "x_norm_clstoken": out.class_token,
        "x_storage_tokens": out.register_tokens,
        "x_norm_patchtokens": out.patch_tokens,
    }
    for number, layer in enumerate(backbone.intermediate_layers(images, 3)):
        actual[f"inter{number}_cls"] = layer.class_token
        actual[f"inter{number}_extra"] = layer.register_tokens
        actual[f"inter{number}_patch"] = layer.patch_tokens
    for name, array in actual.items():
        np.testing.assert_allclose(
            array, expected[f"112x112/{name}"], rtol=0, atol=FEATURES, err_msg=name
        )


def test_the_whole_dinotxt_equals_the_official_code(
    shared_goldens: Path, expected: dict, tmp_path: Path
) -> None:
    folder = shared_goldens / "dinotxt_v3"
    files = [folder / "backbone.pth", folder / "vision_head_and_text_encoder.pth"]
    # The text transformer's width, 32, does not determine that it has four heads.
    convert(files, tmp_path / "model", settings=Settings(text_num_heads=4), show_progress=False)
    model = dt.load(tmp_path / "model")
    images, tokens = np.moveaxis(expected["image_112x112"], 1, -1), expected["tokens"]
    assert model.logit_scale == expected["logit_scale"][0]
    features = model.encode_patches(images)
    for name, actual, tolerance in (
        ("112x112/class_token", features.class_token, FEATURES),
        ("112x112/patch_tokens", features.patch_tokens.reshape(4, 49, 64), FEATURES),
        ("112x112/encode_image", model.encode_image(images), FEATURES),
        ("112x112/encode_image_normalized", model.encode_image(images, True), NORMALIZED),
        ("text/encode_text", model.encode_text(tokens), FEATURES),
        ("text/encode_text_normalized", model.encode_text(tokens, True), NORMALIZED),
    ):
        np.testing.assert_allclose(actual, expected[name], rtol=0, atol=tolerance, err_msg=name)


def test_angles_equal_the_official_code(expected: dict) -> None:
    rotation = make_rotation(jnp.asarray(expected["periods"]), (7, 7), 0)
    np.testing.assert_allclose(rotation.sine, expected["112x112/rope_sin"], rtol=0, atol=ANGLES)
    np.testing.assert_allclose(rotation.cosine, expected["112x112/rope_cos"], rtol=0, atol=ANGLES)


def test_computed_periods_are_the_released_ones_before_rounding() -> None:
    rounded = make_periods(100.0, 16).astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(rounded, [1.0, 3.15625, 10.0, 31.625])


def test_prefix_tokens_are_not_touched_and_lengths_are_kept() -> None:
    rotation = make_rotation(jnp.asarray(make_periods(100.0, 8)), (2, 3), unrotated=5)
    x = jax.random.normal(jax.random.key(0), (2, 11, 4, 8))
    turned = rotate(x, rotation)
    np.testing.assert_array_equal(turned[:, :5], x[:, :5])
    # Sine, cosine, two products and their sum for each component; the sum of squares averages these
    # errors, and adds a few roundings of its own.
    lengths = (np.linalg.norm(np.float64(array), axis=-1) for array in (turned, x))
    np.testing.assert_allclose(*lengths, rtol=8 * ROUNDING)
    assert np.abs(turned[:, 5:] - x[:, 5:]).min(axis=-1).max() > 0


def test_attention_between_patches_depends_on_their_distance_only() -> None:
    """With q and k equal everywhere, patch pairs at equal distances have equal products."""
    rotation = make_rotation(jnp.asarray(make_periods(100.0, 8)), (4, 4), unrotated=0)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 1, 1, 8)), (1, 16, 1, 8))
    turned = rotate(x, rotation)[0, :, 0]
    products = turned @ turned.T
    # An error in an angle moves a vector of length |x| by as much times |x|.
    bound = 2 * ANGLES * float(products[0, 0])
    np.testing.assert_allclose(products[0, 5], products[10, 15], rtol=0, atol=bound)
    np.testing.assert_allclose(products[1, 2], products[13, 14], rtol=0, atol=bound)


def test_rotation_is_computed_in_float32(tiny_dinov3: Path) -> None:
    half = dt.load_backbone(tiny_dinov3, dtype="bfloat16")
    state = half._arrays
    assert state["rope_periods"].dtype == jnp.float32
    assert state["blocks"]["attention"]["qkv"]["kernel"].dtype == jnp.bfloat16


def test_keys_have_no_bias(tiny_dinov3: Path) -> None:
    backbone = dt.load_backbone(tiny_dinov3)
    qkv = backbone._arrays["blocks"]["attention"]["qkv"]
    assert np.abs(qkv["bias"][:, 1]).max() > 0  # the file has numbers there
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    before = backbone(images).patch_tokens
    qkv["bias"] = qkv["bias"].at[:, 1].add(100.0)
    np.testing.assert_array_equal(backbone(images).patch_tokens, before)


def test_a_remainder_that_fills_no_patch_is_left_out(tiny_dinov3: Path) -> None:
    backbone = dt.load_backbone(tiny_dinov3)
    images = np.random.default_rng(0).normal(size=(1, 47, 33, 3)).astype(np.float32)
    out = backbone(images)
    assert out.patch_tokens.shape == (1, 4, 64)
    np.testing.assert_array_equal(out.patch_tokens, backbone(images[:, :32, :32]).patch_tokens)
    with pytest.raises(ValueError, match="15x32 pixels does not consist of 16x16 patches"):
        backbone(np.zeros((1, 15, 32, 3), np.float32))
