"""Segmentation pictures: class colours over photos, next to the ground truth, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageFilter

from dinotxt_jax.errors import UserError
from dinotxt_jax.visualize.colours import FAINT, HATCH, class_colours
from dinotxt_jax.visualize.inputs import NONE, Photo, checked_alpha, checked_labels, checked_photo
from dinotxt_jax.visualize.legend import Entry, draw_legend, hatched
from dinotxt_jax.visualize.page import (
    PAGE,
    TEXT,
    Tile,
    grid,
    line,
    page_of,
    panel_side,
    sized,
)
from dinotxt_jax.visualize.text import one_line, percent

_SMALLEST = 1000  # the longer side of an overlay, pixels; the largest is PAGE
_FINER = 2  # regions are drawn at this multiple of the resolution, for smooth edges
_BESIDE = 0.85  # from this ratio (height / width) on, the legend is next to the photo
_LEGEND = 420  # legend width next to a photo, pixels
_CONTOUR = 217  # line opacity, from 0 to 255
_SHARES = "share of pixels: ground truth / prediction"

Labels = Int[np.ndarray, "h w"]


def segmentation_overlay(
    image: Photo,
    labels: Labels,
    class_names: Sequence[str],
    *,
    alpha: float = 0.55,
    ignored: int = 255,
    legend: bool = True,
) -> Image.Image:
    """Draws translucent class colours over a photo, with contours and a legend.

    A class always has the same colour. The legend lists the classes that occur and the share of all
    pixels for each, the largest first. It is below the photo, or next to a square or upright photo.

    Args:
        image: the photo, PIL or uint8 [h w 3].
        labels: class index for every pixel.
        class_names: by index.
        alpha: opacity of the class colours, 0 to 1.
        ignored: index for pixels without a class, which are hatched.
        legend: whether to draw the legend; without a legend, the picture has no margin either.

    Returns:
        An RGB image; the photo has 1000 to 1600 pixels on the longer side.

    Raises:
        UserError: labels have another size or no class name, or the photo is unusable.
    """
    photo = checked_photo(image)
    label_map = checked_labels(labels, photo, len(class_names), ignored, "labels")
    larger = sized(photo, min(max(*photo.size, _SMALLEST), PAGE))
    palette = class_colours(class_names)
    painted = _painted(larger, label_map, palette, checked_alpha(alpha))
    if not legend:
        return painted
    beside = photo.height > _BESIDE * photo.width
    width = _LEGEND if beside else max(painted.width, _LEGEND)
    shares = _shares([label_map], len(class_names))[:, None]
    return page_of([painted, _class_legend(shares, class_names, width)], beside=beside)


def segmentation_comparison(
    image: Photo,
    truth: Labels,
    labels: Labels,
    class_names: Sequence[str],
    *,
    alpha: float = 0.55,
    ignored: int = 255,
) -> Image.Image:
    """Draws photo, ground truth and prediction next to each other, with one legend.

    The picture is the same as `segmentation_sheet` with one row.
    """
    return segmentation_sheet([(image, truth, labels)], class_names, alpha=alpha, ignored=ignored)


def segmentation_sheet(
    entries: Sequence[tuple[Photo, Labels, Labels]],
    class_names: Sequence[str],
    *,
    alpha: float = 0.55,
    ignored: int = 255,
    title: str = "",
) -> Image.Image:
    """Draws photo, ground truth and prediction in rows, with one legend.

    The note above each prediction gives the pixel accuracy among pixels that have a true class. The
    legend gives the pixel shares in the ground truths and in the predictions.

    Args:
        entries: (photo, true class index for every pixel, predicted class index for every pixel).
        class_names: by index.
        alpha: opacity of the class colours, 0 to 1.
        ignored: index for pixels without a class, which are hatched.
        title: model and data.

    Raises:
        UserError: there are no entries, labels have another size or no class name, or a photo is
            unusable.
    """
    if not entries:
        raise UserError("there are no entries, expected at least one; give a photo with labels.")
    checked_alpha(alpha)
    tiles, truths, predictions = [], [], []
    side = panel_side(3)
    palette = class_colours(class_names)
    for number, (image, truth, labels) in enumerate(entries):
        photo = checked_photo(image)
        classes = len(class_names)
        true = checked_labels(truth, photo, classes, ignored, "the ground truth")
        prediction = checked_labels(labels, photo, classes, ignored, "the prediction")
        smaller = sized(photo, side)
        labelled = true != NONE
        right = (
            f"{percent(float(np.mean((prediction == true)[labelled])))} right"
            if labelled.any()
            else ""
        )
        titles = ("", "", "") if number else ("photo", "ground truth", "prediction")
        tiles += [
            Tile(smaller, titles[0]),
            Tile(_painted(smaller, true, palette, alpha), titles[1]),
            Tile(_painted(smaller, prediction, palette, alpha), titles[2], right),
        ]
        truths.append(true)
        predictions.append(prediction)
    panels = grid(tiles, 3)
    shares = [_shares(maps, len(class_names)) for maps in (truths, predictions)]
    chips = _class_legend(np.stack(shares, axis=-1), class_names, panels.width)
    note = line(_SHARES, panels.width, TEXT * 5 // 6, FAINT)
    heading = [line(one_line(title, "segmentation"), panels.width, TEXT * 4 // 3)] if title else []
    return page_of([*heading, panels, chips, note])


def _shares(maps: Sequence[Labels], classes: int) -> Float[np.ndarray, " {classes}+1"]:
    """Returns the pixel share for every class; the last is for pixels without a class."""
    counts = np.zeros(classes + 1, np.int64)
    for labels in maps:
        numbers = np.where(labels == NONE, classes, labels)
        counts += np.bincount(numbers.ravel(), minlength=classes + 1)
    return counts / counts.sum()


def _class_legend(
    shares: Float[np.ndarray, "c k"], class_names: Sequence[str], width: int
) -> Image.Image:
    """Draws names and shares for classes that occur, largest first; pixels without a class last."""
    total = shares.sum(axis=1)
    order = [index for index in np.argsort(-total[:-1], kind="stable") if total[index] > 0]
    palette = class_colours(class_names)
    entries = []
    for index in [*order, *([len(class_names)] if total[-1] else [])]:
        text = " / ".join(percent(float(share)) for share in shares[index])
        if index == len(class_names):
            entries.append(Entry("no class", text, None))
        else:
            red, green, blue = (int(part) for part in palette[index])
            name = one_line(class_names[index], f"class {index}")
            entries.append(Entry(name, text, (red, green, blue)))
    return draw_legend(entries, width)


def _painted(
    photo: Image.Image, labels: Labels, palette: UInt8[np.ndarray, "c 3"], alpha: float
) -> Image.Image:
    """Draws class colours and contours over a photo, which fades to grey by the same `alpha`."""
    fine = _resized(labels, (_FINER * photo.width, _FINER * photo.height))
    colours = np.concatenate([palette, np.asarray([HATCH], np.uint8)])[fine]  # NONE is the last
    period = _FINER * max(max(photo.size) // 40, 8)
    without = hatched(fine.shape[0], fine.shape[1], period)
    colours = np.where((fine == NONE)[..., None], without, colours)
    grey = photo.convert("L").convert("RGB")
    base = Image.blend(photo, grey, alpha)
    mixed = Image.blend(base, Image.fromarray(colours).reduce(_FINER), alpha)
    return Image.composite(
        Image.new("RGB", photo.size, "white"), mixed, _contours(fine, max(photo.size))
    )


def _resized(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resizes a label map to (width, height); every pixel gets the class with the largest weight.

    Each class mask is resized separately, so that edges become smooth instead of stepped. The mask
    is resized bilinearly and, when enlarged, averaged over the area that one source pixel covers;
    a larger area would make single pixels vanish. Only the region around the class pixels is
    resized, so that many small regions cost little.
    """
    nearest = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    resized = np.array(nearest)
    best = np.zeros(resized.shape, np.uint8)
    scale = size[0] / labels.shape[1], size[1] / labels.shape[0]
    for index in np.unique(labels):
        mask = labels == index
        columns = _extent(mask.any(axis=0), scale[0])
        rows = _extent(mask.any(axis=1), scale[1])
        source = [
            min(edge / factor, side)
            for edge, factor, side in zip(
                (columns.start, rows.start, columns.stop, rows.stop),
                scale * 2,
                labels.shape[::-1] * 2,
                strict=True,
            )
        ]
        weight = Image.fromarray(mask.astype(np.uint8) * 255).resize(
            (columns.stop - columns.start, rows.stop - rows.start),
            Image.Resampling.BILINEAR,
            (source[0], source[1], source[2], source[3]),
        )
        weight = weight.filter(ImageFilter.BoxBlur([max(factor - 1, 0) / 2 for factor in scale]))
        better = np.asarray(weight) > best[rows, columns]
        best[rows, columns][better] = np.asarray(weight)[better]
        resized[rows, columns][better] = index
    return resized


def _extent(occupied: Bool[np.ndarray, "n"], scale: float) -> slice:
    """Returns the range that class pixels can reach along one side after resizing."""
    first, last = np.flatnonzero(occupied)[[0, -1]]
    return slice(
        max(int((first - 2) * scale) - 2, 0),
        min(int((last + 3) * scale) + 2, round(len(occupied) * scale)),
    )


def _contours(fine: Labels, side: int) -> Image.Image:
    """Returns the opacity (8 bits) of the lines between regions at every pixel."""
    edge = np.zeros(fine.shape, bool)
    down, across = fine[1:] != fine[:-1], fine[:, 1:] != fine[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    contour = Image.fromarray(edge.astype(np.uint8) * _CONTOUR)
    if side >= _SMALLEST:
        contour = contour.filter(ImageFilter.MaxFilter(3))
    return contour.reduce(_FINER)
