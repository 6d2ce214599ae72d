"""Input checks for pictures: photos, label maps and numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import shortened
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError

NONE = -1  # marks pixels without a class in checked label maps

Photo = Image.Image | UInt8[np.ndarray, "h w 3"]


def checked_photo(image: Photo) -> Image.Image:
    """Returns a photo as upright RGB.

    Raises:
        UserError: the photo is neither a PIL image nor uint8 [h w 3], or is empty.
    """
    if not isinstance(image, Image.Image | np.ndarray):
        raise UserError(
            f"the photo is {shortened(image)}, expected an image of PIL or an array uint8 [h w 3]; "
            "open it first."
        )
    try:
        photo = decode_image(image)
    except BadImageError as error:
        raise UserError(
            f"the photo cannot be drawn ({error}), expected an image of PIL or an array uint8 "
            "[h w 3]; convert it."
        ) from error
    if 0 in photo.size:
        raise UserError(
            f"the photo has {photo.width} x {photo.height} pixels, expected at least one; give "
            "another."
        )
    return photo


def checked_labels(
    labels: Int[np.ndarray, "h w"], photo: Image.Image, classes: int, ignored: int, name: str
) -> Int[np.ndarray, "h w"]:
    """Returns the class index for every pixel in a photo, `NONE` where there is no class.

    Raises:
        UserError: labels are not integers, have another size, or belong to an unnamed class.
    """
    label_map = np.asarray(labels)
    if label_map.shape != (photo.height, photo.width) or not np.issubdtype(
        label_map.dtype, np.integer
    ):
        raise UserError(
            f"{name} is an array {label_map.dtype}{list(label_map.shape)}, expected integers of "
            f"the photo's size [{photo.height}, {photo.width}]; resize it (by nearest neighbours)."
        )
    labelled = label_map != ignored
    unknown = label_map[labelled & ((label_map < 0) | (label_map >= classes))]
    if len(unknown):
        raise UserError(
            f"{name} holds the index {unknown.min()}, expected 0 to {classes - 1} (there are "
            f"{classes} class names) or {ignored} for none; correct it or name more classes."
        )
    return np.where(labelled, label_map.astype(np.int32), NONE)


def checked_alpha(alpha: float) -> float:
    """Returns the opacity `alpha` for colours over a photo.

    Raises:
        UserError: `alpha` is not between 0 and 1.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is {alpha}, expected a number from 0 to 1; correct it.")
    return alpha


def checked_numbers(
    values: Float[np.ndarray, "..."], axes: Sequence[str], name: str
) -> Float[np.ndarray, "..."]:
    """Returns finite numbers as float32, with one axis for each name.

    Raises:
        UserError: the number of axes differs, an axis is empty, or values are not numbers or not
            finite.
    """
    try:
        numbers = np.asarray(values).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} is {shortened(values)}, expected an array of numbers [{' '.join(axes)}]; "
            "convert it."
        ) from error
    if numbers.ndim != len(axes) or numbers.size == 0:
        raise UserError(
            f"{name} has the shape {list(numbers.shape)}, expected [{' '.join(axes)}] with at "
            "least one of each; reshape it."
        )
    if not np.isfinite(numbers).all():
        raise UserError(
            f"{name} holds {int((~np.isfinite(numbers)).sum())} numbers that are not finite, "
            "expected none; find out where they come from."
        )
    return numbers
