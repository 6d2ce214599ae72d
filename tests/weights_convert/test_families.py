"""CLIP, SigLIP, SigLIP 2 and TIPS against their own libraries, and what files must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import checkpoint
from flax import nnx
from piece_files import word_file
from safetensors.numpy import save_file
from tolerances import FEATURES

import dinotxt_jax as dt
from dinotxt_jax import sharding
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference.loading import load_dinotxt
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.models.vit import PatchBatch
from weights_convert.convert import convert
from weights_convert.settings import parse_settings


class Family(NamedTuple):
    """A model of another library.

    Attributes:
        layout: the layout that must be recognised.
        sources: files in the reference folder.
        reference: file with outputs of the library.
        settings: what `--set` must say.
        dense: our kinds of patch tokens -> names in the reference.
    """

    layout: str
    sources: tuple[str, ...]
    reference: str
    settings: tuple[str, ...] = ()
    dense: tuple[tuple[str, str], ...] = ()


_MASK_CLIP = (("value", "dense_values"), ("csa", "dense_csa"))
_TIPS_HEADS = ("num_heads=4", "text_num_heads=4")
FAMILIES = {
    "hf_clip": Family("hf_clip", ("hf_clip",), "hf_clip/out.npz", dense=_MASK_CLIP),
    "openai archive": Family(
        "clip",
        ("openai_clip/openai_jit.pt",),
        "openai_clip/out.npz",
        dense=(*_MASK_CLIP, ("plain", "dense_full"), ("kk", "dense_kk_bare")),
    ),
    "openai state dict": Family("clip", ("openai_clip/state_dict.pt",), "openai_clip/out.npz"),
    "hf_siglip": Family(
        "hf_siglip", ("hf_siglip",), "hf_siglip/out.npz", dense=(("auto", "dense_map_values"),)
    ),
    "hf_siglip2 fixed": Family("hf_siglip", ("hf_siglip2_fixed",), "hf_siglip2_fixed/out.npz"),
    "hf_siglip2 naflex": Family("hf_siglip2", ("hf_siglip2_naflex",), "hf_siglip2_naflex/out.npz"),
    "open_clip_siglip": Family(
        "open_clip_siglip",
        ("open_clip_siglip/open_clip_model.safetensors",),
        "open_clip_siglip/out.npz",
        ("activation=gelu",),
        (("map_values", "dense_map_values"), ("map_values_csa", "dense_map_values_csa")),
    ),
    "big_vision": Family(
        "big_vision", ("big_vision_siglip/siglip.npz",), "big_vision_siglip/out.npz"
    ),
    "tips": Family(
        "tips_vision",
        ("tips/torch_vision.npz", "tips/torch_text.npz"),
        "tips/out.npz",
        _TIPS_HEADS,
        (("plain", "patch_tokens"), ("value", "patch_tokens_values")),
    ),
    "tips scenic": Family(
        "tips_scenic_vision",
        ("tips/scenic_vision.npz", "tips/scenic_text.npz"),
        "tips/out_scenic.npz",
        dense=(("plain", "patch_tokens"),),
    ),
    "hf_tipsv2": Family(
        "hf_tipsv2", ("hf_tipsv2",), "hf_tipsv2/out.npz", dense=(("plain", "patch_tokens"),)
    ),
}


@pytest.fixture
def goldens(shared_goldens: Path) -> Path:
    return shared_goldens / "clip_siglip"


def converted(goldens: Path, family: Family, folder: Path) -> Path:
    sources = [goldens / source for source in family.sources]
    settings = parse_settings(family.settings)
    conversion = convert(sources, folder / "model", settings=settings, show_progress=False)
    assert conversion.matches[0].layout.name == family.layout
    return folder / "model"


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_equal_those_of_the_library(name: str, goldens: Path, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = dt.load(converted(goldens, family, tmp_path))
    inputs = np.load((goldens / family.reference).with_name("inputs.npz"))
    expected = np.load(goldens / family.reference)

    def compare(key: str, actual: jax.Array) -> None:
        want = expected[key]
        np.testing.assert_allclose(
            np.asarray(actual).reshape(want.shape), want, rtol=0, atol=FEATURES, err_msg=key
        )

    text = model.encode_text(inputs["tokens"].astype(np.int32))
    compare("text/text_features", text)
    sizes = [n.removeprefix("image_") for n in inputs.files if n.startswith("image_") and "x" in n]
    for size in sizes:
        image = model.encode_image(inputs[f"image_{size}"])
        names = [f"{size}/image_features", f"{size}/class_token"]
        compare(next(key for key in names if key in expected), image)
        for kind, key in family.dense:
            if f"{size}/{key}" in expected:
                patches = model.encode_patches(inputs[f"image_{size}"], kind).patch_tokens
                compare(f"{size}/{key}", patches)
        if f"{size}/logits" in expected:
            cosines = np.asarray(model.encode_image(inputs[f"image_{size}"], normalize=True)) @ (
                np.asarray(model.encode_text(inputs["tokens"].astype(np.int32), normalize=True)).T
            )
            compare(f"{size}/logits", np.exp(model.logit_scale) * cosines + model.logit_bias)


def test_images_of_different_sizes_share_a_naflex_batch(goldens: Path, tmp_path: Path) -> None:
    directory = converted(goldens, FAMILIES["hf_siglip2 naflex"], tmp_path)
    model, _ = load_dinotxt(directory, DTypes())
    inputs = np.load(goldens / "hf_siglip2_naflex" / "inputs.npz")
    expected = np.load(goldens / "hf_siglip2_naflex" / "out.npz")
    grids = jnp.asarray(inputs["spatial_shapes"], "int32")
    batch = PatchBatch(jnp.asarray(inputs["pixel_values"]), grids)
    features = jax.jit(lambda batch: model.encode_image(batch))(batch)
    np.testing.assert_allclose(features, expected["naflex/image_features"], rtol=0, atol=FEATURES)
    for number, feature in enumerate(features):
        alone = model.encode_image(jnp.asarray(inputs[f"image_{number}"])[None])[0]
        np.testing.assert_allclose(alone, feature, rtol=0, atol=FEATURES)


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip", "hf_tipsv2"])
def test_every_family_runs_on_a_mesh_and_with_8_bit_kernels(
    name: str, goldens: Path, tmp_path: Path
) -> None:
    directory = converted(goldens, FAMILIES[name], tmp_path)
    inputs = np.load(goldens / name / "inputs.npz")
    images = np.tile(inputs["image_48x48"], (3, 1, 1, 1))[:8]
    whole = dt.load(directory).encode_image(images)
    mesh = sharding.make_mesh(1, 4, 2)
    sharded = dt.load(directory, mesh=mesh).encode_image(images)
    np.testing.assert_allclose(sharded, whole, rtol=0, atol=FEATURES)
    exact = dt.load_backbone(directory)(images).class_token
    rounded = dt.load_backbone(directory, products="int8")(images).class_token
    assert 0 < np.abs(np.asarray(rounded - exact)).max() < 0.1 * np.abs(np.asarray(exact)).max()


def save(folder: Path, layout: str, config: dict | None = None, **sizes: int) -> Path:
    """Writes random arrays in one layout, with a config file next to them."""
    save_file(checkpoint(layout, **sizes), folder / "model.safetensors")
    if config is not None:
        name = "open_clip_config.json" if "model_cfg" in config else "config.json"
        (folder / name).write_text(json.dumps(config))
    return folder / "model.safetensors"


def refused(source: Path, folder: Path, *pairs: str) -> str:
    heads = ("num_heads=4", "text_num_heads=2")
    with pytest.raises(UserError) as error:
        convert(
            [source], folder / "out", settings=parse_settings([*heads, *pairs]), show_progress=False
        )
    assert not (folder / "out").exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("layout", "sizes"), [("clip", {"e": 40}), ("open_clip_siglip", {"n": 9, "e": 64})]
)
def test_an_activation_that_arrays_do_not_show_is_asked_for(
    layout: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    message = refused(save(tmp_path, layout, **sizes), tmp_path)
    assert "--set activation=VALUE" in message
    assert "gelu" in message


def test_a_config_that_contradicts_its_arrays_is_refused(tmp_path: Path) -> None:
    config = {"vision_config": {"hidden_size": 768, "hidden_act": "gelu"}, "text_config": {}}
    message = refused(save(tmp_path, "hf_clip", config, e=40), tmp_path)
    assert "backbone arrays with width 64, but the config file next to it says 768" in message


def test_a_pooling_that_is_not_known_is_refused(tmp_path: Path) -> None:
    config = {"model_cfg": {"vision_cfg": {}, "text_cfg": {"pool_type": "none"}}}
    message = refused(save(tmp_path, "clip", config, e=40), tmp_path)
    assert "pool_type='none'" in message


def test_one_register_may_mean_tips_or_dinov2(tmp_path: Path) -> None:
    source = save(tmp_path, "tips_vision", p=14, q=14)
    message = refused(source, tmp_path)
    assert "--layout=tips_vision or --layout=dinov2_reg" in message
    heads = parse_settings(["num_heads=4"])
    rules = {"tips_vision": "bilinear", "dinov2_reg": "antialias"}
    for layout, rule in rules.items():
        output = tmp_path / layout
        made = convert([source], output, settings=heads, layout=layout, show_progress=False)
        assert made.description.vision.position_interpolation == rule


def test_a_resnet_is_refused_in_a_sentence(tmp_path: Path) -> None:
    arrays = {
        name: np.ones((2, 2), np.float32)
        for name in ("visual.layer1.0.conv1.weight", "visual.attnpool.q_proj.weight")
    }
    save_file(arrays, tmp_path / "model.safetensors")
    message = refused(tmp_path / "model.safetensors", tmp_path)
    assert "ResNet" in message
    assert "vision transformer" in message


@pytest.mark.parametrize(
    ("layout", "wrong", "sizes"),
    [("hf_siglip", "plain", {"n": 9, "e": 64}), ("hf_clip", "backbone", {"e": 40})],
)
def test_dense_features_that_a_model_does_not_have_are_named(
    layout: str, wrong: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    settings = parse_settings(["num_heads=4", "text_num_heads=2", "activation=gelu"])
    source = save(tmp_path, layout, **sizes)
    convert([source], tmp_path / "out", settings=settings, show_progress=False)
    model = dt.load(tmp_path / "out")
    with pytest.raises(UserError, match=f"features is {wrong}, which texts cannot be compared"):
        model.encode_patches(np.zeros((1, 6, 6, 3), np.float32), wrong)


def test_padding_that_is_input_is_never_cut_off(tmp_path: Path) -> None:
    source = save(tmp_path, "hf_siglip", n=9, e=64)
    settings = parse_settings(["num_heads=4", "text_num_heads=2"])
    convert([source], tmp_path / "out", settings=settings, show_progress=False)
    model, _ = load_dinotxt(tmp_path / "out", DTypes())
    with pytest.raises(ValueError, match="reads padding as input and needs rows of 6"):
        nnx.jit(lambda model, rows: model.encode_text(rows))(model, jnp.zeros((1, 4), "int32"))


def siglip_with_pieces(folder: Path, layout: str = "hf_siglip", vocabulary: int = 50) -> Path:
    """Returns a model directory converted with a small sentencepiece file next to the arrays."""
    source = save(folder, layout, n=9, e=64, v=vocabulary, p=14, q=14)
    (folder / "tokenizer.json").write_bytes(word_file(("a", "red", "circle", "dog")))
    settings = parse_settings(["num_heads=4", "text_num_heads=2", "max_patches=12"])
    convert([source], folder / "out", settings=settings, show_progress=False)
    return folder / "out"


def test_a_sentencepiece_file_next_to_the_arrays_comes_along(tmp_path: Path) -> None:
    model = dt.load(siglip_with_pieces(tmp_path))
    assert model.tokenizer(["A red, CIRCLE!"]).tolist() == [[3, 4, 5, 1, 1, 1]]
    tokens = np.array([[3, 4, 5, 1, 1, 1], [6, 1, 1, 1, 1, 1]], np.int32)
    expected = model.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(
        model.embed_texts(["a red circle", "dog"]), expected, rtol=0, atol=FEATURES
    )


def test_a_sentencepiece_file_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gives 7 IDs, but the text transformer has 5; give the"):
        siglip_with_pieces(tmp_path, vocabulary=5)
    source = save(tmp_path, "clip", e=40)
    settings = parse_settings(["num_heads=4", "text_num_heads=2", "activation=gelu"])
    with pytest.raises(UserError, match="is not used by this model, which has no sentencepiece"):
        convert([source], tmp_path / "x", settings=settings, tokenizer=tmp_path / "tokenizer.json")


def test_a_missing_sentencepiece_file_is_said_with_its_place(tmp_path: Path) -> None:
    source = save(tmp_path, "hf_siglip", n=9, e=64)
    settings = parse_settings(["num_heads=4", "text_num_heads=2"])
    made = convert([source], tmp_path / "out", settings=settings, show_progress=False)
    assert "no sentencepiece file is next to it" in made.note
    assert "cc_en.32000/sentencepiece.model" in made.note
    with pytest.raises(UserError, match="names no tokenizer"):
        dt.load(tmp_path / "out").embed_texts(["a"])


def test_photos_of_any_aspect_share_naflex_batches(tmp_path: Path) -> None:
    model = dt.load(siglip_with_pieces(tmp_path, "hf_siglip2"))
    rng = np.random.default_rng(0)
    photos = [
        rng.integers(0, 256, size, np.uint8) for size in ((60, 90, 3), (90, 30, 3), (40, 40, 3))
    ]
    together = model.embed_images(photos, batch_size=3)
    assert model.prepared(photos[0]).shape == (42, 56, 3)
    for photo, descriptor in zip(photos, together, strict=True):
        pixels = model.prepared(photo)[None]
        preparation = model.description.preprocessing
        images = normalize(pixels, preparation.mean, preparation.std)
        alone = model.encode_image(images, normalize=True)[0]
        np.testing.assert_allclose(descriptor, alone, rtol=0, atol=FEATURES)
