"""classify, segment, embed_images and the other functions, on typical user images."""

from __future__ import annotations

import copy
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import with_tokenizer
from PIL import Image
from tolerances import ROUNDING, TWO_PROGRAMS, assert_same

import dinotxt_jax as dt
from dinotxt_jax import UserError, sharding
from dinotxt_jax.config import SegmentationConfig
from dinotxt_jax.config.data import RESIZE_RULES
from dinotxt_jax.config.evaluation import PROTOCOL_SIDES
from dinotxt_jax.data.resizing import center_crop, prepare_image
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.inference import Model
from dinotxt_jax.inference.embeddings import embedded_files
from dinotxt_jax.inference.protocols import PROTOCOLS
from dinotxt_jax.inference.protocols.whole import Whole
from dinotxt_jax.inference.windows import Level
from dinotxt_jax.storage.addresses import to_address

NAMES = ["cat", "dog", "zebra"]
SMALL = SegmentationConfig("slide", short_side=60, window=46, stride=23)


@pytest.fixture(scope="module")
def directory(tiny_dinotxt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    captions = [f"a photo of a {name}" for name in (*NAMES, "background", "sky")]
    return with_tokenizer(tiny_dinotxt, tmp_path_factory.mktemp("use") / "model", captions)


@pytest.fixture(scope="module")
def model(directory: Path) -> Model:
    return dt.load(directory)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photo() -> Image.Image:
    blocks = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(blocks).resize((280, 240), Image.Resampling.NEAREST)


def test_an_image_is_the_same_as_path_bytes_array_and_pil(
    model: Model, photo: Image.Image, tmp_path: Path
) -> None:
    photo.save(tmp_path / "a.png")
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        np.asarray(photo),
        photo,
    ]
    together = model.embed_images(forms, batch_size=2)
    preprocessing = model.description.preprocessing
    pixels = np.asarray(center_crop(photo, preprocessing.resize, preprocessing.crop))
    images = normalize(pixels[None], preprocessing.mean, preprocessing.std)
    expected = np.asarray(model.encode_image(images, normalize=True))
    assert_same(together, np.repeat(expected, 5, axis=0))
    for form in forms:
        assert_same(model.embed_images(form), expected)
    several = np.stack([np.asarray(photo)] * 3)
    assert model.embed_images(several, batch_size=2).shape == (3, 128)


def with_rule(model: Model, **preprocessing: Any) -> Model:
    """Returns a model that prepares images otherwise."""
    changed = dataclasses.replace(model.description.preprocessing, **preprocessing)
    other = copy.copy(model)
    other.description = dataclasses.replace(model.description, preprocessing=changed)
    return other


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_images_are_resized_by_the_rule_of_the_model(
    model: Model, photo: Image.Image, tmp_path: Path, rule: str
) -> None:
    """With naflex, images of several shapes are encoded, in order."""
    ruled = with_rule(model, rule=rule, max_patches=12)
    photos = [photo, photo.rotate(180), photo.resize((90, 300)), photo.resize((140, 120)), photo]
    pixels = [prepare_image(image, ruled.description.preprocessing, 14) for image in photos]
    assert len({array.shape for array in pixels}) == (2 if rule == "naflex" else 1)
    expected = np.concatenate(list(model.embed_batches((array[None] for array in pixels), 2)))
    assert_same(ruled.embed_images(photos, batch_size=2), expected)
    files = [to_address(tmp_path / f"{number}.png") for number in range(len(photos))]
    for file, image in zip(files, photos, strict=True):
        image.save(file)
    names, rows = zip(*embedded_files(ruled, files, batch_size=2, threads=2), strict=True)
    assert [name for batch in names for name in batch] == files
    assert_same(np.concatenate(rows), expected)


def test_an_image_that_is_too_wide_for_naflex_is_named(model: Model, tmp_path: Path) -> None:
    ruled = with_rule(model, rule="naflex", max_patches=12)
    file = tmp_path / "panorama.png"
    Image.new("RGB", (260, 20)).save(file)
    message = r"panorama.png cannot be used \(260 x 20 pixels are too wide.* at most 12\); crop it."
    with pytest.raises(UserError, match=message):
        ruled.embed_images(file)
    with pytest.raises(UserError, match="none of the 1 images could be read"):
        list(embedded_files(ruled, [to_address(file)], batch_size=8, threads=2))


def odd_images(photo: Image.Image) -> dict[str, bytes]:
    def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        return stream.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise
    grey16 = (np.asarray(photo.convert("L")).astype(np.uint16)) * 257
    return {
        "grey": encoded(photo.convert("L"), "PNG"),
        "16 bits": encoded(Image.fromarray(grey16), "PNG"),
        "CMYK": encoded(photo.convert("CMYK"), "TIFF"),
        "turned": encoded(photo.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif),
        "1 pixel": encoded(photo.resize((1, 1)), "PNG"),
    }


def test_odd_images_are_embedded_and_segmented(model: Model, photo: Image.Image) -> None:
    odd = odd_images(photo)
    rows = dict(zip(odd, model.embed_images(odd.values()), strict=True))
    grey, upright = model.embed_images([photo.convert("L"), photo])
    assert_same(rows["grey"], grey)
    assert_same(rows["16 bits"], grey)
    assert_same(rows["turned"], upright)
    assert_same(rows["CMYK"], upright)
    for name, data in odd.items():
        result = model.segment(data, NAMES, SMALL, "a {}")
        assert result.labels.shape == ((1, 1) if name == "1 pixel" else (240, 280)), name
    turned, plain = (model.segment(i, NAMES, SMALL, "a {}") for i in (odd["turned"], photo))
    np.testing.assert_array_equal(turned.labels, plain.labels)


def test_classes_are_ranked_by_scaled_cosines(model: Model, photo: Image.Image) -> None:
    images = [photo, photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM).resize((90, 250))]
    result = model.classify(images, NAMES, ["a {}", "a photo of a {}"])
    texts = np.stack([model.embed_texts([f"a {n}", f"a photo of a {n}"]).mean(0) for n in NAMES])
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    cosines = model.embed_images(images) @ texts.T
    assert_same(result.cosines, cosines)
    scale = float(np.exp(model.logit_scale))
    odds = np.exp(scale * cosines)
    # Errors of the cosines, which `assert_same` bounds, times the scale, above and below the bar.
    bound = 2 * scale * TWO_PROGRAMS * ROUNDING
    np.testing.assert_allclose(result.probabilities, odds / odds.sum(1, keepdims=True), rtol=bound)
    best = [NAMES[i] for i in np.argsort(-cosines[0])]
    assert [name for name, _ in result.top(2)[0]] == best[:2]
    assert [NAMES[i] for i in result.labels] == [pairs[0][0] for pairs in result.top(1)]


def test_devices_change_nothing(directory: Path, model: Model, photo: Image.Image) -> None:
    spread = dt.load(directory, mesh=sharding.make_mesh())
    one, many = (m.classify([photo] * 3, NAMES, "a {}") for m in (model, spread))
    assert_same(one.cosines, many.cosines)
    one, many = (m.segment(photo, NAMES, SMALL, "a {}", batch_size=3) for m in (model, spread))
    assert (one.labels == many.labels).mean() > 0.9999


@pytest.mark.parametrize("protocol", ["slide", "whole", "highres"])
def test_a_segmentation_has_labels_scores_and_pictures(
    model: Model, photo: Image.Image, protocol: str
) -> None:
    config = SegmentationConfig(protocol, 98, 60, 56, 28, scales=(56, 70))
    result = model.segment(photo, NAMES, config, "a {}")
    assert (result.labels.shape, result.scores.shape[-1]) == ((240, 280), 3)
    assert set(np.unique(result.labels)) <= {0, 1, 2}
    np.testing.assert_array_equal(np.asarray(result.mask()), result.labels)
    assert result.overlay().width > 280
    assert result.heat_maps().width > 280
    if protocol == "slide":
        np.testing.assert_allclose(result.scores.sum(-1), 1, atol=1e-5)


class Mirrored(Whole):
    """Processes the whole image with left and right exchanged."""

    unit = "cosine similarity of the mirror image"

    def levels(self, image: Image.Image, *settings: Any) -> list[Level]:
        return super().levels(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), *settings)


def test_a_new_protocol_is_one_row(
    model: Model, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS, "mirrored", Mirrored())
    monkeypatch.setitem(PROTOCOL_SIDES, "mirrored", "")
    actual = model.segment(photo, NAMES, SegmentationConfig("mirrored", 98), "a {}")
    mirror = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = model.segment(mirror, NAMES, SegmentationConfig("whole", 98), "a {}")
    np.testing.assert_array_equal(actual.labels, expected.labels)
    assert actual.heat_maps().width > 280
    with pytest.raises(UserError, match="expected slide, whole, highres or mirrored"):
        model.segment(photo, NAMES, "jump")
    with pytest.raises(UserError, match="take whole or highres or mirrored"):
        model.similarity(photo, "cat", "slide")


def test_protocols_can_be_named_alone(model: Model, photo: Image.Image) -> None:
    named = model.segment(photo, NAMES, "whole", "a {}")
    size = model.description.preprocessing.crop
    given = model.segment(photo, NAMES, SegmentationConfig("whole", size), "a {}")
    np.testing.assert_array_equal(named.labels, given.labels)


def test_a_background_is_one_more_class(model: Model, photo: Image.Image) -> None:
    plain = model.segment(photo, NAMES, "whole", "a {}")
    by_score = model.segment(photo, NAMES, "whole", "a {}", background=2.0)
    assert by_score.class_names == (*NAMES, "background")
    assert (by_score.labels == 3).all()
    by_words = model.segment(photo, NAMES, "whole", "a {}", background=["sky", "a photo"])
    kept = by_words.labels != 3
    np.testing.assert_array_equal(by_words.labels[kept], plain.labels[kept])
    assert by_words.heat_maps().width > 280


def test_a_class_called_background_has_a_separate_heat_map(
    model: Model, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list = []
    monkeypatch.setattr(
        "dinotxt_jax.visualize.heat_maps",
        lambda image, scores, names, score_name: calls.append((scores, names)),
    )
    plain = model.segment(photo, ["background", "dog", "cat"], "whole", "a {}")
    plain.heat_maps()
    model.segment(photo, ["dog", "cat"], "whole", "a {}", background=["sky", "sea"]).heat_maps()
    assert [names for _, names in calls] == [["background", "dog", "cat"], ["dog", "cat"]]
    np.testing.assert_array_equal(calls[0][0], plain.scores)
    assert_same(calls[1][0], plain.scores[..., 1:])


def test_a_background_is_a_number_a_word_or_words(model: Model, photo: Image.Image) -> None:
    for background, texts in (("sky", 4), (["sky", "sea"], 5), (np.float32(0.3), 3)):
        result = model.segment(photo, NAMES, "whole", "a {}", background=background)
        assert result.scores.shape[-1] == texts


def test_a_phrase_is_compared_with_every_patch(model: Model, photo: Image.Image) -> None:
    config = SegmentationConfig("highres", scales=(56,), window=56, stride=56)
    result = model.similarity(photo, "a red cat", config)
    small = np.asarray(photo.resize((70, 56), Image.Resampling.BICUBIC))
    preprocessing = model.description.preprocessing
    text = model.encode_text(model.tokenizer(["a red cat"]))[0, 64:]
    left = normalize(small[None, :, :56], preprocessing.mean, preprocessing.std)
    patches = np.asarray(model.encode_patches(left).patch_tokens[0])
    patches = patches / np.linalg.norm(patches, axis=-1, keepdims=True)
    assert result.shape == (4, 5)
    # Only one window covers the first column.
    np.testing.assert_allclose(
        result[:, 0], (patches @ (text / np.linalg.norm(text)))[:, 0], atol=1e-5
    )


def test_patch_tokens_are_a_grid_of_the_photo(model: Model, photo: Image.Image) -> None:
    assert model.patch_tokens(photo, 70).shape == (5, 6, 64)
    size = model.description.preprocessing.crop // 14
    assert model.patch_tokens(photo).shape[0] == size


@pytest.mark.parametrize("name", ["potter's wheel", 'a "quoted" thing', "two\nlines", "{0}", "é✓"])
def test_class_names_may_hold_anything(model: Model, photo: Image.Image, name: str) -> None:
    assert model.classify(photo, [name, "cat"], "a {}").class_names == (name, "cat")
    assert model.segment(photo, [name, "cat"], "whole", "a {}").overlay().width > 280


def test_unusable_input_is_named(model: Model, photo: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    hair = Image.new("RGB", (2**21, 1))
    for use, message in (
        (lambda: model.classify(photo, [], "a {}"), "the list of class names is empty"),
        (lambda: model.classify(photo, "cat", "a {}"), "class names are the text 'cat', expected"),
        (lambda: model.classify(photo, ["cat", " "], "a {}"), "class name 2 of 2 is ' ', exp"),
        (lambda: model.segment(photo, [], "whole", "a {}"), "the list of class names is empty"),
        (lambda: model.segment(photo, [], "whole", "a {}", background=0.1), "class names is"),
        (lambda: model.segment(photo, NAMES, "jump"), "segmentation.protocol is 'jump', expected"),
        (lambda: model.segment(photo, NAMES, "whole", []), "templates is empty"),
        (lambda: model.classify(photo, NAMES, "a photo of"), "no place for the class name"),
        (lambda: model.classify(photo, NAMES, "openai_8"), "did you mean openai_80"),
        (lambda: model.segment(hair, NAMES, "slide", "a {}"), "would be resized to"),
        (lambda: model.similarity(photo, "cat", "slide"), "one phrase alone has no score"),
        (lambda: model.embed_images(tmp_path / "a.png"), "a.png cannot be read .text, not an ima"),
        (lambda: model.embed_images(tmp_path / "b.png"), "b.png cannot be read .No such file"),
        (lambda: model.embed_images(np.zeros((4, 4, 3))), r"an image \(float64\[4, 4, 3\]\) cann"),
        (lambda: model.embed_images([]), "there are no images"),
        (lambda: model.embed_texts([]), "there are no texts"),
    ):
        with pytest.raises(UserError, match=message):
            use()
