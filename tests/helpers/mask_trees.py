"""Synthetic segmentation data sets: two or three tiny images each, in the published folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (10, 12)  # rows, columns


def save(pixels: np.ndarray | Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path)


def photo(path: Path, shade: int = 0) -> None:
    save(np.full((*SIZE, 3), shade, np.uint8), path)


def spread(*values: int) -> np.ndarray:
    """Returns a mask in which each value occurs."""
    return np.resize(np.array(values), SIZE)


def palette(mask: np.ndarray) -> Image.Image:
    image = Image.new("P", mask.shape[::-1])
    image.putpalette([number % 7 * 36 for number in range(768)])
    image.putdata(mask.ravel().tolist())
    return image


def ade20k(root: Path) -> None:
    for split, shade in (("validation", 1), ("training", 2)):
        for number in (2, 1):
            name = f"ADE_{split[:3]}_{number:08d}"
            photo(root / "images" / split / f"{name}.jpg", shade)
            save(spread(0, 1, 150).astype(np.uint8), root / "annotations" / split / f"{name}.png")


def cityscapes(root: Path) -> None:
    for city in ("munster", "frankfurt"):
        name = f"{city}_000000_000019"
        photo(root / "leftImg8bit/val" / city / f"{name}_leftImg8bit.png")
        truth = root / "gtFine/val" / city
        save(spread(7, 33, 0, 29, 24).astype(np.uint8), truth / f"{name}_gtFine_labelIds.png")
        # The official archive also contains these files, which must not be read as masks.
        save(spread(0, 24_003).astype(np.uint16), truth / f"{name}_gtFine_instanceIds.png")
        photo(truth / f"{name}_gtFine_color.png")


def voc(root: Path) -> None:
    for name in ("2007_000033", "2007_000042", "2011_003276"):
        photo(root / "JPEGImages" / f"{name}.jpg")
    for name in ("2007_000042", "2007_000033"):
        save(palette(spread(0, 1, 20, 255)), root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_000042\n2007_000033\n")
    (lists / "train.txt").write_text("2011_003276\n")


def context(root: Path) -> None:
    for name in ("2008_000002", "2008_000003"):
        photo(root / "JPEGImages" / f"{name}.jpg")
        mask = spread(0, 1, 55, 59).astype(np.uint8)
        save(mask, root / "SegmentationClassContext" / f"{name}.png")
    lists = root / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2008_000002\n2008_000003\n")


def coco(root: Path, images: str = "images/", maps: str = "annotations") -> None:
    for number in (139, 285):
        photo(root / f"{images}val2017" / f"{number:012d}.jpg")
        mask = spread(0, 12, 89, 91, 95, 181, 255).astype(np.uint8)
        save(mask, root / maps / "val2017" / f"{number:012d}.png")


def camvid(root: Path) -> None:
    for split in ("test", "val", "train"):
        for name in ("Seq05VD_f00030", "0001TP_008550"):
            photo(root / split / f"{name}.png")
            mask = spread(0, 2, 10, 11).astype(np.uint8)
            save(mask, root / f"{split}annot" / f"{name}.png")


def msrc(root: Path) -> None:
    colours = np.array([(0, 0, 0), (128, 0, 0), (0, 0, 128), (64, 128, 128), (192, 64, 0)])
    for name in ("2_1_s", "10_4_s"):
        photo(root / "Images" / f"{name}.bmp")
        mask = colours[np.resize(np.arange(5), SIZE)].astype(np.uint8)
        save(mask, root / "GroundTruth" / f"{name}_GT.bmp")
    (root / "Images/Thumbs.db").write_bytes(b"")
