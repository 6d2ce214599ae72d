"""Draws one picture that shows how a model interprets an image, selected by picture name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from dinotxt_jax import visualize
from dinotxt_jax.errors import UserError, check_choice
from dinotxt_jax.inference.model import Model
from dinotxt_jax.inference.results import Segmentation
from dinotxt_jax.storage.addresses import to_address
from dinotxt_jax.storage.files import check_no_folder, new_file

SEGMENTED = ("overlay", "heat")  # pictures that show a segmentation
PICTURES = (*SEGMENTED, "similarity", "pca")
# Short side, in pixels, for the patch token PCA: more patches give a finer picture.
_PCA_SIZE = 672

Segment = Callable[[Image.Image, Sequence[str]], Segmentation]


def check_picture(picture: str, names: Sequence[str]) -> None:
    """Raises `UserError` for an unknown picture, or for names that do not suit the picture."""
    check_choice("--picture", picture, PICTURES)
    if picture != "pca" and not names:
        raise UserError('--classes is missing, expected names such as "dog; grass"; give them.')
    if picture == "similarity" and len(names) > 1:
        raise UserError(
            f"--classes names {len(names)} classes, but --picture=similarity shows one phrase; "
            "give one, or take --picture=heat."
        )


def draw_picture(
    model: Model, image: Image.Image, names: Sequence[str], picture: str, segment: Segment
) -> tuple[Image.Image, Segmentation | None]:
    """Returns the picture and, for overlay and heat, the segmentation that it shows (else None).

    Args:
        model: the model.
        image: upright RGB.
        names: classes (overlay, heat) or one phrase (similarity); pca needs none.
        picture: one of `PICTURES`: "overlay" (the best class of every pixel), "heat" (the scores
            of every class), "similarity" (to one phrase) or "pca" (patch tokens as colours).
        segment: (image, classes) -> segmentation, for overlay and heat.
    """
    if picture == "pca":
        return visualize.patch_pca(model.patch_tokens(image, _PCA_SIZE), image), None
    if picture == "similarity":
        return visualize.similarity_map(image, model.similarity(image, names[0]), names[0]), None
    segmentation = segment(image, names)
    return (
        segmentation.overlay() if picture == "overlay" else segmentation.heat_maps()
    ), segmentation


def check_file(path: str, endings: Sequence[str] = (".png", ".jpg", ".jpeg", ".webp")) -> None:
    """Raises `UserError` if the file suffix is not in `endings`, or if the path is a folder."""
    if to_address(path).suffix.lower() not in endings:
        raise UserError(f"{path} ends in none of {', '.join(endings)}; name one of these.")
    check_no_folder(to_address(path))


def write_picture(picture: Image.Image, path: str) -> None:
    """Writes a picture; the file appears only when it is complete."""
    with new_file(to_address(path)) as partial:
        picture.save(partial)
