"""Quantised backbones: feature errors, stored arrays, and placement on the mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_same

import dinotxt_jax as dt
from dinotxt_jax import UserError, sharding
from dinotxt_jax.config.training import PRODUCTS
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.inference.loading import load_vision_transformer
from dinotxt_jax.models import quantization
from dinotxt_jax.models.layers import DTypes, abstract_arrays
from dinotxt_jax.storage.arrays import load_arrays
from dinotxt_jax.storage.model_arrays import load_stored
from dinotxt_jax.storage.pieces import StoredArray
from dinotxt_jax.storage.quantized_kernels import quantized
from weights_convert.convert import convert

QUANTIZED = PRODUCTS[1:]
# The rounding error: half a step of 1/127 of the largest value, or of 3 mantissa bits.
STEPS = {"int8": 0.5 / 127, "float8_e4m3fn": 2**-4}


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_numbers_are_rounded_within_their_channel(dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, 64, 5)).astype(np.float32)
    x[0, :, 0] = 0
    x[1] *= 1e-4
    numbers, scale = quantized(jnp.asarray(x), dtype, (1,))
    assert numbers.dtype == dtype
    assert scale.shape == (3, 1, 5)
    largest = np.abs(x).max(1, keepdims=True)
    error = np.abs(np.asarray(numbers, np.float32) * scale - x)
    # 1e-6: the division by the factor is rounded too.
    assert (error <= largest * (STEPS[dtype] + 1e-6)).all()


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_a_product_sums_the_quantised_numbers_exactly(dtype: str) -> None:
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 7, 4, 6)), jnp.float32)
    kernel, scale = quantized(
        jnp.asarray(random.normal(size=(4, 6, 3, 5)), jnp.float32), dtype, (0, 1)
    )
    actual = quantization.product(x, kernel, scale, 2)
    numbers, factors = quantized(x, dtype, (2, 3))
    wide = [np.asarray(array, np.float64) for array in (numbers, factors, kernel, scale)]
    expected = np.tensordot(wide[0] * wide[1], wide[2] * wide[3], 2)
    assert_same(actual, expected)


@pytest.mark.parametrize(("dtype", "bound"), [("int8", 0.998), ("float8_e4m3fn", 0.98)])
def test_features_of_a_quantised_backbone_point_the_same_way(
    tiny_backbone: Path, goldens: Path, dtype: str, bound: float
) -> None:
    images = np.moveaxis(np.load(goldens / "backbones/images.npz")["image_98x98"], 1, -1)
    plain = dt.load_backbone(tiny_backbone)(images)
    actual = dt.load_backbone(tiny_backbone, products=dtype)(images)
    for expected, features in zip(plain, actual, strict=True):
        similar = cosine(features, expected)
        assert bound < similar.min()
        assert similar.max() < 1 - 1e-9, "nothing was quantised"


@pytest.mark.slow
def test_features_of_a_pretrained_backbone_survive_quantisation(
    shared_data: Path, tmp_path: Path
) -> None:
    from PIL import Image

    file = shared_data / "weights_vit_tiny_patch16_224/vit_tiny_patch16_224.safetensors"
    convert([file], tmp_path / "model", show_progress=False)
    photos = sorted((shared_data / "flickr8k/test").iterdir())[:2]
    pixels = np.stack([np.asarray(Image.open(photo).convert("RGB")) for photo in photos])
    plain = dt.load_backbone(tmp_path / "model")
    preprocessing = plain.description.preprocessing
    images = normalize(pixels, preprocessing.mean, preprocessing.std)
    expected = plain(images)
    for dtype, bound in (("int8", 0.995), ("float8_e4m3fn", 0.98)):
        actual = dt.load_backbone(tmp_path / "model", products=dtype)(images)
        for name in ("class_token", "patch_tokens"):
            pair = [
                np.asarray(getattr(out, name)).reshape(2, -1, 192).mean(1)
                for out in (actual, expected)
            ]
            assert bound < cosine(*pair).min()


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_kernels_of_blocks_are_stored_in_a_byte_and_sharded(
    tiny_backbone: Path, dtype: str
) -> None:
    mesh = sharding.make_mesh(data=2, fsdp=4)
    module, _ = load_vision_transformer(tiny_backbone, DTypes(products=dtype), mesh)
    whole, _ = load_vision_transformer(tiny_backbone, DTypes(products=dtype))
    for dense in (module.blocks.mlp.fc1, module.blocks.attention.out):
        assert dense.kernel.dtype == dtype
        assert dense.kernel_scale.dtype == jnp.float32
        parts = dense.kernel[...].sharding.shard_shape(dense.kernel.shape)
        assert np.prod(parts) == dense.kernel[...].size // 4
    assert module.patch_embed.kernel.dtype == jnp.float32
    unquantised = dt.load_backbone(tiny_backbone).size_in_bytes
    assert dt.load_backbone(tiny_backbone, products=dtype).size_in_bytes < unquantised / 2
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
        nnx.to_pure_dict(nnx.state(module)),
        nnx.to_pure_dict(nnx.state(whole)),
    )


def test_a_quantised_run_can_still_copy_the_stored_backbone(tiny_backbone: Path) -> None:
    """The export of a run contains the backbone as converted."""
    from dinotxt_jax.models.vit import VisionTransformer

    plain, description = load_vision_transformer(tiny_backbone, DTypes())
    abstract = abstract_arrays(
        lambda: VisionTransformer(description.vision, dtypes=DTypes(products="int8")),
        None,
    )
    stored = load_stored(tiny_backbone, "backbone", {"backbone": abstract})["backbone"]
    jax.tree.map(np.testing.assert_array_equal, stored, nnx.to_pure_dict(nnx.state(plain)))


def test_kernels_are_read_a_layer_at_a_time(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backbone that fits in memory only in 8 bits can be loaded."""
    largest = [0]
    read, load = StoredArray.read, load_arrays

    def noted(self: StoredArray, layer: int | None = None) -> np.ndarray:
        array = read(self, layer)
        largest.append(array.size)
        return array

    def loaded(path: Path, parts: dict[str, Any], **options: Any) -> dict[str, Any]:
        assert "kernel" not in parts["backbone"]["blocks"]["mlp"]["fc1"]
        return load(path, parts, **options)

    monkeypatch.setattr(StoredArray, "read", noted)
    monkeypatch.setattr("dinotxt_jax.storage.model_arrays.load_arrays", loaded)
    module, _ = load_vision_transformer(tiny_backbone, DTypes(products="int8"))
    kernel = module.blocks.mlp.fc1.kernel
    assert max(largest) == kernel.size // len(kernel[...])


def test_an_unknown_quantisation_is_named(tiny_backbone: Path) -> None:
    with pytest.raises(
        UserError,
        match="products is 'int4', .*; did you mean 'int8'",
    ):
        dt.load_backbone(tiny_backbone, products="int4")
