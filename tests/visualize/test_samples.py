"""Sample sheets: every image with its caption, whatever their sizes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dinotxt_jax import visualize


def test_every_image_is_drawn_above_its_caption() -> None:
    images = [np.full((56, 56, 3), 10 * number, np.uint8) for number in range(16)]
    captions = ["a red circle", "ein Bär 🐻", "", "long " * 200, *["text"] * 12]
    sheet = visualize.samples_sheet(images, captions, "run: the first images")
    pixels = np.asarray(sheet)
    for number in range(16):
        assert (pixels == 10 * number).all(axis=-1).any(), number
    without = visualize.samples_sheet(images, [""] * 16, "run: the first images")
    assert sheet.size == without.size
    assert (np.asarray(without) != pixels).any()


def test_one_image_and_tall_images_fit() -> None:
    for count, shape in ((1, (8, 8, 3)), (5, (300, 60, 3)), (2, (60, 300, 3))):
        sheet = visualize.samples_sheet([np.zeros(shape, np.uint8)] * count, ["a"] * count)
        assert isinstance(sheet, Image.Image)
        assert sheet.height > 100
