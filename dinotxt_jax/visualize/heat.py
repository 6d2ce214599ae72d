"""Heat maps over a photo, for classes or for one free phrase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from dinotxt_jax.errors import UserError
from dinotxt_jax.visualize.colours import heat_colours
from dinotxt_jax.visualize.inputs import Photo, checked_numbers, checked_photo
from dinotxt_jax.visualize.legend import scale_bar
from dinotxt_jax.visualize.page import (
    GAP,
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
from dinotxt_jax.visualize.text import numbers_between, one_line

_COVER = 0.72  # opacity of the heat map over the photo


def heat_maps(
    image: Photo,
    scores: Float[np.ndarray, "h w c"],
    class_names: Sequence[str],
    *,
    columns: int = 4,
    score_name: str = "score",
) -> Image.Image:
    """Draws the photo and, for every class, the scores over it, all on one scale from min to max.

    Args:
        image: the photo, PIL or uint8 [h w 3].
        scores: class scores for patches or pixels; any grid that covers the photo. The grid is
            resized bilinearly to the photo size.
        class_names: one name per class; each tile title gives the class name and the largest score.
        columns: number of tiles next to each other; the photo is one tile.
        score_name: name for the scores at the colour bar, such as "cosine similarity".

    Raises:
        UserError: scores are not finite or have another number of classes, or the photo is
            unusable.
    """
    photo = checked_photo(image)
    values = checked_numbers(scores, ("h", "w", "c"), "scores")
    if values.shape[-1] != len(class_names):
        raise UserError(
            f"there are scores for {values.shape[-1]} classes and {len(class_names)} class names, "
            "expected equal numbers; correct one of them."
        )
    columns = checked_columns(columns, len(class_names) + 1)
    smaller = sized(photo, panel_side(columns))
    low, high = float(values.min()), float(values.max())
    written = numbers_between(low, high)
    tiles = [Tile(smaller, "photo")]
    for index, most in enumerate(values.max(axis=(0, 1))):
        name = one_line(class_names[index], f"class {index}")
        heated = _heated(smaller, values[..., index], low, high)
        tiles.append(Tile(heated, name, f"max {written(float(most))}"))
    panels = grid(tiles, columns)
    title = f"{one_line(score_name, 'score')}, one scale for all classes"
    return page_of([panels, scale_bar(low, high, title, panels.width)], GAP * 3 // 2)


def similarity_map(image: Photo, similarity: Float[np.ndarray, "h w"], phrase: str) -> Image.Image:
    """Draws the photo and a heat map of the similarity to a phrase, with the phrase as the title.

    Args:
        image: the photo, PIL or uint8 [h w 3].
        similarity: cosine similarities for patches or pixels; any grid that covers the photo. The
            grid is resized bilinearly to the photo size.
        phrase: the search phrase.

    Raises:
        UserError: similarities are not finite, or the photo is unusable.
    """
    photo = checked_photo(image)
    values = checked_numbers(similarity, ("h", "w"), "similarity")
    smaller = sized(photo, panel_side(2))
    low, high = float(values.min()), float(values.max())
    panels = grid([Tile(smaller), Tile(_heated(smaller, values, low, high))], 2)
    looked_for = one_line(phrase, "phrase")
    title = line(f"“{looked_for}”", panels.width, TEXT * 3 // 2)
    return page_of([title, panels, scale_bar(low, high, "cosine similarity", panels.width)])


def _heated(
    photo: Image.Image, values: Float[np.ndarray, "h w"], low: float, high: float
) -> Image.Image:
    """Draws values from `low` to `high` as colours over the greyed photo."""
    unit = (values.astype(np.float64) - low) / (high - low) if high > low else 0.0 * values
    colours = Image.fromarray(heat_colours(enlarged(unit, photo.size)))
    return Image.blend(photo.convert("L").convert("RGB"), colours, _COVER)
