"""Pictures that show the first three principal components of patch tokens as colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from dinotxt_jax.errors import UserError
from dinotxt_jax.visualize.colours import FAINT
from dinotxt_jax.visualize.inputs import Photo, checked_numbers, checked_photo
from dinotxt_jax.visualize.page import (
    PAGE,
    TEXT,
    Tile,
    checked_columns,
    enlarged,
    grid,
    line,
    page_of,
    panel_side,
    sized,
)

_RANGE = (1, 99)  # percentiles that are mapped to 0 and 1
# Fractions: the first component's variance times _NOISE plus the squared mean times _MEAN_NOISE
# bounds rounding errors; a variance below that bound is only rounding.
_NOISE, _MEAN_NOISE = 1e-10, 1e-13


def patch_pca(
    patches: Float[np.ndarray, "*n gh gw d"],
    images: Photo | Sequence[Photo] | None = None,
    *,
    columns: int = 2,
) -> Image.Image:
    """Draws the first three principal components of patch tokens as red, green and blue.

    All images share one PCA, so that equal colours mean similar patches. Each component is scaled
    from the 1st to the 99th percentile, and the sign is chosen to make the largest loading
    positive.

    Args:
        patches: tokens of one image [gh gw d] or of several images [n gh gw d].
        images: the photo or photos. Each is drawn next to the components, which are resized
            bicubically to the photo size.
        columns: number of images next to each other.

    Raises:
        UserError: tokens are not finite, the number of photos differs from the number of images, or
            a photo is unusable.
    """
    several = np.ndim(patches) == 4
    axes = ("n", "gh", "gw", "d") if several else ("gh", "gw", "d")
    tokens = checked_numbers(patches, axes, "patches")
    tokens = tokens if several else tokens[None]
    image_list = _listed(images)
    if image_list is not None and len(image_list) != len(tokens):
        raise UserError(
            f"there are {len(image_list)} photos and patches of {len(tokens)} images, expected "
            "equal numbers; correct one of them."
        )
    columns = checked_columns(columns, len(tokens))
    each = 1 if image_list is None else 2
    side = panel_side(each * columns)
    unit, explained = _components(tokens)
    tiles = []
    for number, components in enumerate(unit):
        if image_list is None:
            height, width = components.shape[:2]
            size = sized(Image.new("L", (width, height)), side).size
        else:
            photo = sized(checked_photo(image_list[number]), side)
            tiles.append(Tile(photo))
            size = photo.size
        tiles.append(Tile(_coloured(components, size)))
    panels = grid(tiles, each * columns)
    shares = ", ".join(f"{100 * share:.0f}%" for share in explained)
    note = f"patch tokens: three principal components as red, green, blue ({shares} of variance)"
    return page_of([panels, line(note, max(panels.width, PAGE // 2), TEXT * 5 // 6, FAINT)])


def _listed(images: Photo | Sequence[Photo] | None) -> list[Photo] | None:
    if images is None:
        return None
    many = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
    return list(images) if many else [images]  # type: ignore[arg-type, list-item]


def _components(
    tokens: Float[np.ndarray, "n gh gw d"],
) -> tuple[Float[np.ndarray, "n gh gw 3"], Float[np.ndarray, "3"]]:
    """Returns percentile-scaled components (0.5 where there is no variance) and variance shares."""
    width = tokens.shape[-1]
    mean = tokens.mean(axis=(0, 1, 2), dtype=np.float64)
    covariance = np.zeros((width, width))
    for image in tokens:  # one by one: all images in double precision would take much memory
        centred = image.reshape(-1, width) - mean
        covariance += centred.T @ centred
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1][:3], directions[:, ::-1][:, :3]
    colours = np.full((*tokens.shape[:-1], 3), 0.5)
    count = tokens.size // width
    rounding = _NOISE * variances[0] + _MEAN_NOISE * count * (mean @ mean)
    for index, variance in enumerate(variances):
        if variance <= rounding:
            continue
        direction = directions[:, index]
        direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
        values = (tokens - mean.astype(np.float32)) @ direction.astype(np.float32)
        low, high = np.percentile(values, _RANGE)
        if high > low:
            colours[..., index] = (values - low) / (high - low)
    total = np.trace(covariance)
    explained = np.zeros(3)
    if total > rounding:
        explained[: len(variances)] = np.maximum(variances, 0) / total
    return colours, explained


def _coloured(components: Float[np.ndarray, "gh gw 3"], size: tuple[int, int]) -> Image.Image:
    """Enlarges components before clipping them, so that outliers do not leave flat spots."""
    bands = [enlarged(components[..., band], size, Image.Resampling.BICUBIC) for band in range(3)]
    return Image.fromarray(np.round(255 * np.clip(np.stack(bands, -1), 0, 1)).astype(np.uint8))
