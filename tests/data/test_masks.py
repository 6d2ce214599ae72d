"""Images with masks: a CSV of pairs, unusual files, and the messages about bad files."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from mask_trees import palette, save
from PIL import Image

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.mask_layouts import MASK_LAYOUTS
from dinotxt_jax.data.masks import IGNORED
from dinotxt_jax.data.scenes import SHAPES, SceneSource
from dinotxt_jax.data.sources import open_masks
from dinotxt_jax.errors import UserError


def pairs(
    folder: Path,
    mask: np.ndarray | Image.Image,
    size: tuple[int, int] = (20, 30),
    classes: str = "sky\ngrass\n",
) -> DataConfig:
    save(np.zeros((*size, 3), np.uint8), folder / "a.png")
    save(mask, folder / "a_mask.png")
    (folder / "index.csv").write_text("image,mask\na.png,a_mask.png\n")
    (folder / "classes.txt").write_text(classes)
    return DataConfig(
        source="csv",
        path=str(folder / "index.csv"),
        classes=str(folder / "classes.txt"),
        augmentation="squash",
    )


def test_pairs_are_read_with_palettes_and_ignored_pixels(tmp_path: Path) -> None:
    mask = np.full((20, 30), 255, np.uint8)
    mask[:10] = 1
    source = open_masks(pairs(tmp_path, palette(mask)))
    assert source.class_names == ("sky", "grass")
    assert source.background is None
    image, loaded_mask = source.load(0)
    assert image.size == (30, 20)
    np.testing.assert_array_equal(loaded_mask, mask)


def test_a_class_called_background_means_anything_else(tmp_path: Path) -> None:
    names = "sky\nbackground\nbackground cloth\n"
    source = open_masks(pairs(tmp_path, np.zeros((20, 30), np.uint8), classes=names))
    assert source.background == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((20, 31), np.uint8), r"has the shape \[20, 31\], but a.png has \[20, 30\]"),
        (np.zeros((20, 30, 3), np.uint8), "expected one integer class index per pixel"),
        (np.full((20, 30), 2, np.uint8), "holds the index 2, but there are 2 classes"),
        (np.full((20, 30), 256, np.uint16), "holds the index 256, but there are 2 classes"),
    ],
)
def test_masks_that_do_not_fit_are_named(tmp_path: Path, mask: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_masks(pairs(tmp_path, mask)).load(0)


def test_a_storage_fault_is_not_blamed_on_the_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_masks(pairs(tmp_path, np.zeros((20, 30), np.uint8)))
    original = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "a_mask.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(OSError, match="Input/output error"):
        source.load(0)


def test_missing_pairs_and_lists_are_named(tmp_path: Path) -> None:
    config = pairs(tmp_path, np.zeros((20, 30), np.uint8))
    source = open_masks(config)
    (tmp_path / "a_mask.png").unlink()
    with pytest.raises(UserError, match=r"a_mask.png, the mask for a.png, cannot be read"):
        source.load(0)
    with pytest.raises(
        UserError,
        match=f"index.csv:2: there is no file a_mask.png in the folder {tmp_path}, .* correct the "
        "path, or config.data.image_root",
    ):
        open_masks(config)
    (tmp_path / "index.csv").write_text("image\na.png\n")
    with pytest.raises(
        UserError,
        match="has the columns image, expected one of file.* and mask; rename the col",
    ):
        open_masks(config)
    (tmp_path / "classes.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty; write one entry per line"):
        open_masks(config)
    with pytest.raises(UserError, match="config.data.classes is empty"):
        open_masks(DataConfig(source="csv", path=config.path))
    (tmp_path / "classes.txt").write_text("sky\n")
    with pytest.raises(UserError, match="is a folder, expected a CSV index with the"):
        open_masks(dataclasses.replace(config, path=str(tmp_path)))


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    config = pairs(tmp_path, np.zeros((20, 30), np.uint8))
    whole = (tmp_path / "a_mask.png").read_bytes()
    for broken in (b"", b"no image", whole[: len(whole) // 2]):
        (tmp_path / "a_mask.png").write_bytes(broken)
        with pytest.raises(UserError, match="a_mask.png, the mask for a.png, cannot be read"):
            open_masks(config).load(0)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^a.png cannot be read"):
        open_masks(config).load(0)


def test_more_classes_than_masks_can_tell_apart_are_refused(tmp_path: Path) -> None:
    names = "\n".join(f"class {number}" for number in range(256))
    config = pairs(tmp_path, np.zeros((20, 30), np.uint16), classes=names)
    with pytest.raises(UserError, match="there are 256 class names, expected at most 255"):
        open_masks(config)


def test_images_of_unusual_kinds_load_beside_their_masks(tmp_path: Path) -> None:
    kinds = {
        "grey.png": (Image.new("L", (30, 20), 70), (70, 70, 70)),
        "print.jpg": (Image.new("CMYK", (30, 20), (0, 255, 255, 0)), (255, 0, 0)),
        "deep.png": (Image.fromarray(np.full((20, 30), 257 * 90, np.uint16)), (90, 90, 90)),
    }
    config = pairs(tmp_path, np.ones((20, 30), np.uint8))
    for name, (image, colour) in kinds.items():
        save(image, tmp_path / name)
        (tmp_path / "index.csv").write_text(f"image,mask\n{name},a_mask.png\n")
        loaded, mask = open_masks(config).load(0)
        assert (loaded.mode, loaded.size) == ("RGB", (30, 20))
        assert mask.shape == (20, 30)
        assert (mask == 1).all()
        np.testing.assert_allclose(loaded.getpixel((3, 3)), colour, atol=8)


def test_16_bit_and_1_bit_masks_are_read(tmp_path: Path) -> None:
    wide = np.resize(np.array([0, 1, 255], np.uint16), (20, 30))
    np.testing.assert_array_equal(open_masks(pairs(tmp_path, wide)).load(0)[1], wide)
    bits = np.resize(np.array([False, True, True]), (20, 30))
    np.testing.assert_array_equal(open_masks(pairs(tmp_path, bits)).load(0)[1], bits)


def test_one_pixel_is_enough(tmp_path: Path) -> None:
    image, mask = open_masks(pairs(tmp_path, np.ones((1, 1), np.uint8), (1, 1))).load(0)
    assert image.size == (1, 1)
    assert mask.tolist() == [[1]]


def test_images_are_turned_by_exif_and_masks_must_be_upright(tmp_path: Path) -> None:
    upright = np.arange(600).reshape(30, 20) % 2
    config = pairs(tmp_path, upright.astype(np.uint8))
    stored = Image.new("RGB", (30, 20))
    stored.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by 90 degrees
    stored.save(tmp_path / "a.png", exif=exif)
    image, mask = open_masks(config).load(0)
    assert image.size == (20, 30)
    assert image.getpixel((19, 0)) == (255, 255, 255)
    np.testing.assert_array_equal(mask, upright)
    save(np.zeros((20, 30), np.uint8), tmp_path / "a_mask.png")
    expected = r"\[20, 30\], but a.png has \[30, 20\] pixels once turned upright by its EXIF .*turn"
    with pytest.raises(UserError, match=expected):
        open_masks(config).load(0)
    # The official reading turns nothing, and takes that mask.
    image, mask = open_masks(dataclasses.replace(config, decoder="official")).load(0)
    assert image.size == mask.shape[::-1] == (30, 20)
    np.testing.assert_array_equal(image, stored)
    save(np.zeros((9, 9), np.uint8), tmp_path / "a_mask.png")
    with pytest.raises(UserError, match="correct the pair"):
        open_masks(config).load(0)


def test_msrc_as_a_csv_keeps_its_pairs(shared_data: Path) -> None:
    folder = shared_data / "msrc_v2"
    config = DataConfig(
        source="csv", path=str(folder / "index.csv"), classes=str(folder / "classes.txt")
    )
    source = open_masks(config)
    assert len(source) == 591
    assert source.class_names == MASK_LAYOUTS["msrc_v2"].class_names()
    image, mask = source.load(0)
    assert mask.shape == image.size[::-1]
    assert set(np.unique(mask)) <= {*range(23), IGNORED}


def test_drawn_scenes_have_masks_of_their_shapes() -> None:
    source = open_masks(DataConfig(source="scenes", num_scenes=3, image_size=56))
    assert (len(source), source.class_names[source.background or 0]) == (3, "background")
    image, mask = source.load(1)
    assert (image.size, mask.shape) == ((56, 56), (56, 56))
    visible = {source.class_names[label] for label in np.unique(mask)} - {"background"}
    assert visible
    (caption, *_) = SceneSource(3, split="test", image_size=56).captions(1)
    assert all(any(word in caption for word in SHAPES[name]) for name in visible)
