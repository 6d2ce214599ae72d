"""Head, text transformer and descriptors against the official code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from packed import captions, packed
from tolerances import FEATURES, NORMALIZED, assert_same

from dinotxt_jax import sharding
from dinotxt_jax.config.architecture import DinoTxtConfig, HeadConfig, TextConfig, swiglu_hidden_dim
from dinotxt_jax.inference.loading import load_dinotxt
from dinotxt_jax.models.dinotxt import DinoTxt, normalized
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.models.presets import PRESETS, dinotxt_for
from dinotxt_jax.models.text import Packing, TextTransformer


@pytest.fixture(scope="module")
def model(tiny_dinotxt: Path) -> DinoTxt:
    return load_dinotxt(tiny_dinotxt, DTypes())[0]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parent.parent / "goldens/dinotxt_v2/out.npz"))


def test_descriptors_equal_the_official_code(model: DinoTxt, expected: dict) -> None:
    images = jnp.moveaxis(expected["image_98x98"], 1, -1)
    features = model.encode_patches(images)
    for name, actual, tolerance in (
        ("class_token", features.class_token, FEATURES),
        ("patch_tokens", features.patch_tokens.reshape(2, 49, 64), FEATURES),
        ("encode_image", model.encode_image(images), FEATURES),
        ("encode_image_normalized", model.encode_image(images, normalize=True), NORMALIZED),
    ):
        np.testing.assert_allclose(actual, expected[f"98x98/{name}"], rtol=0, atol=tolerance)


def test_text_features_equal_the_official_code(model: DinoTxt, expected: dict) -> None:
    tokens = jnp.asarray(expected["tokens"])
    actual = model.encode_text(tokens)
    np.testing.assert_allclose(actual, expected["text/encode_text"], rtol=0, atol=FEATURES)
    actual = model.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(
        actual, expected["text/encode_text_normalized"], rtol=0, atol=NORMALIZED
    )


def test_logits_equal_the_official_code(model: DinoTxt, expected: dict) -> None:
    images = jnp.moveaxis(expected["image_98x98"], 1, -1)
    scale = np.exp(model.logit_scale[...])
    text = model.encode_text(jnp.asarray(expected["tokens"]), normalize=True)
    logits = scale * model.encode_image(images, normalize=True) @ text.T
    np.testing.assert_allclose(logits, expected["98x98/image_logits"], rtol=0, atol=FEATURES)


def test_max_pooling_equals_the_official_code(model: DinoTxt, expected: dict) -> None:
    _graphdef, state = nnx.split(model)
    head = dataclasses.replace(model.config.head, pooling="max")
    config = dataclasses.replace(model.config, head=head)
    variant = DinoTxt(config, dtypes=DTypes())
    variant = nnx.merge(nnx.graphdef(variant), nnx.to_pure_dict(state))
    actual = variant.encode_image(jnp.moveaxis(expected["image_98x98"], 1, -1))
    np.testing.assert_allclose(
        actual, expected["variant/pool_max/encode_image"], rtol=0, atol=FEATURES
    )


def test_padding_behind_the_end_of_text_changes_nothing(model: DinoTxt, expected: dict) -> None:
    tokens = jnp.asarray(expected["tokens"][:1])
    end = int(tokens.argmax())
    assert_same(model.encode_text(tokens[:, : end + 1]), model.encode_text(tokens))


def test_rows_longer_than_the_context_are_refused(model: DinoTxt) -> None:
    with pytest.raises(ValueError, match="rows of 78 tokens.* has 77 positions"):
        model.encode_text(jnp.zeros((1, 78), "int32"))


@pytest.mark.parametrize(("wrong", "nearest"), [(-3, 0), (133, 132), (10**6, 132)])
def test_a_token_id_outside_the_table_reads_the_nearest_row(
    model: DinoTxt, wrong: int, nearest: int
) -> None:
    """Traced ids cannot be refused; they must not turn features into NaN."""
    rows = jnp.asarray([[130, wrong, 132, 0], [130, nearest, 132, 0]])
    embedded = jax.jit(model.text.embed)(rows)
    np.testing.assert_array_equal(embedded[0], embedded[1])


# All caption kinds: one that fills a row, one with start and end only, several in a row, one that
# fills the remaining space to the last token. Two parts of eight.
LENGTHS = [77, 2, 75, 2, 10, 40, 37, 3, 76, 5, 30, 47, 20, 19, 77, 77]


def packed_text(text: TextTransformer, tokens: np.ndarray, parts: int, spare: int = 0) -> jax.Array:
    rows = packed(tokens, parts, spare)
    return text(jnp.asarray(rows.tokens), Packing(*map(jnp.asarray, rows[1:])))


@pytest.mark.parametrize(("parts", "spare"), [(1, 0), (2, 0), (2, 3), (16, 0)])
def test_packed_texts_have_the_features_of_texts_alone(
    model: DinoTxt, parts: int, spare: int
) -> None:
    tokens = captions(LENGTHS)
    assert packed(tokens, 1).tokens.shape[1] == 8
    result = packed_text(model.text, tokens, parts, spare)
    assert_same(result, model.text(jnp.asarray(tokens)))


def test_packed_texts_equal_the_official_code(model: DinoTxt, expected: dict) -> None:
    actual = packed_text(model.text, expected["tokens"], 1)
    np.testing.assert_allclose(actual, expected["text/encode_text"], rtol=0, atol=FEATURES)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_packed_texts_have_the_gradients_of_texts_alone(model: DinoTxt, remat: str) -> None:
    tokens = captions(LENGTHS)
    rows = jnp.asarray(tokens)
    graphdef, state = nnx.split(model.text)
    weights = jax.random.normal(jax.random.key(0), (len(LENGTHS), 128))

    def gradients(*layout: int) -> dict:
        def weighted(arrays: dict) -> jax.Array:
            text = nnx.merge(graphdef, arrays)
            text.remat = remat
            return jnp.sum(weights * (packed_text(text, tokens, *layout) if layout else text(rows)))

        return jax.jit(jax.grad(weighted))(nnx.to_pure_dict(state))

    def check(result: jax.Array, alone: jax.Array) -> None:
        assert jnp.abs(alone).max() > 0
        assert_same(result, alone)

    jax.tree.map(check, gradients(2, 1), gradients())


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_reading_packed_texts_crosses_no_devices(model: DinoTxt, data: int, fsdp: int) -> None:
    mesh = sharding.make_mesh(data, fsdp)
    graphdef, state = nnx.split(model.text)
    with jax.set_mesh(mesh):
        arrays = jax.device_put(nnx.to_pure_dict(state), sharding.replicated(mesh))
        rows = sharding.global_batch(packed(captions(LENGTHS), 8)._asdict(), mesh)

        def read(arrays: dict, rows: dict) -> jax.Array:
            packing = Packing(**{name: rows[name] for name in Packing._fields})
            return nnx.merge(graphdef, arrays)(rows["tokens"], packing)

        compiled = jax.jit(read).lower(arrays, rows).compile()
        result = compiled(arrays, rows)
    assert result.sharding.shard_shape(result.shape) == (2, 128)
    names = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not [name for name in names if name in compiled.as_text()]
    assert_same(result, model.text(jnp.asarray(captions(LENGTHS))))


def test_every_size_and_shape_on_the_full_reference_set(
    shared_goldens: Path, tmp_path: Path
) -> None:
    from weights_convert.convert import convert
    from weights_convert.settings import parse_settings

    folder = shared_goldens / "dinotxt_v2"
    names = ("backbone.pth", "vision_head.pth", "text_encoder.pth")
    settings = parse_settings(["num_heads=4", "text_num_heads=4"])
    convert([folder / n for n in names], tmp_path / "m", settings=settings, show_progress=False)
    model, _ = load_dinotxt(tmp_path / "m", DTypes())
    inputs, out = np.load(folder / "inputs.npz"), np.load(folder / "out.npz")
    result = model.encode_text(jnp.asarray(inputs["tokens"]))
    np.testing.assert_allclose(result, out["text/encode_text"], rtol=0, atol=FEATURES)
    images = jnp.moveaxis(inputs["image_98x98"], 1, -1)
    result = model.encode_image(images)
    np.testing.assert_allclose(result, out["98x98/encode_image"], rtol=0, atol=FEATURES)


def test_normalized_rows_have_length_one_and_zero_stays_zero() -> None:
    rows = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalized(rows), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_generalised_mean_pooling_lies_between_mean_and_max() -> None:
    from dinotxt_jax.models.dinotxt import pool

    patches = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (2, 9, 4)), jnp.float32)
    gem = pool(patches, "gem")
    np.testing.assert_allclose(gem, (patches**3).mean(1) ** (1 / 3), rtol=1e-5)
    assert (gem > pool(patches, "mean")).all()
    assert (gem < pool(patches, "max")).all()


def test_text_and_image_widths_must_agree() -> None:
    vision = PRESETS["dinov2_vits14"]
    head = HeadConfig(num_blocks=2, num_heads=6, mlp_hidden_dim=swiglu_hidden_dim(384))
    with pytest.raises(ValueError, match="set embed_dim=768"):
        DinoTxtConfig(vision, head, TextConfig(embed_dim=2048))


def test_the_released_model_has_the_released_sizes() -> None:
    config = dinotxt_for(PRESETS["dinov2_vitl14_reg"])
    assert config.head.mlp_hidden_dim == 2752
    assert config.text.embed_dim == 2048
    abstract = DinoTxt(config, dtypes=DTypes())
    text = nnx.to_pure_dict(nnx.state(abstract.text))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(text)) == 538_131_200
