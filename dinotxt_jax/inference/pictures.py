"""One picture of what a model sees in an image, by the name of the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from dinotxt_jax import visualize
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference.model import Model
from dinotxt_jax.inference.results import Segmentation
from dinotxt_jax.storage.files import check_no_folder, new_file

SEGMENTED = ("overlay", "heat")  # pictures of a segmentation
PICTURES = (*SEGMENTED, "similarity", "pca")
# Of the short side for the components of patch tokens: more patches, a finer picture.
_PCA_SIZE = 672

Segment = Callable[[Image.Image, Sequence[str]], Segmentation]


def check_picture(picture: str, names: Sequence[str]) -> None:
    """Raises `UserError` for a picture that does not exist, or names that do not suit it."""
    if picture not in PICTURES:
        raise UserError(f"--picture={picture} is unknown; choose among {', '.join(PICTURES)}.")
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
    """The picture, and the segmentation that it shows if it shows one.

    Args:
        model: the model.
        image: upright RGB.
        names: classes (overlay, heat) or one phrase (similarity); pca needs none.
        picture: one of `PICTURES`: "overlay" (the best class of every pixel), "heat" (the scores
            of every class), "similarity" (of one phrase) or "pca" (patch tokens as colours).
        segment: (image, classes) -> segmentation, for overlay and heat.
    """
    if picture == "pca":
        return visualize.patch_pca(model.patch_tokens(image, _PCA_SIZE), image), None
    if picture == "similarity":
        return visualize.similarity_map(image, model.similarity(image, names[0]), names[0]), None
    found = segment(image, names)
    return (found.overlay() if picture == "overlay" else found.heat_maps()), found


def check_file(path: str, endings: Sequence[str] = (".png", ".jpg", ".jpeg", ".webp")) -> None:
    """Raises `UserError` for a file whose ending is not one of these, and for a folder."""
    if Path(path).suffix.lower() not in endings:
        raise UserError(f"{path} ends in none of {', '.join(endings)}; name one of these.")
    check_no_folder(Path(path))


def write(picture: Image.Image, path: str) -> None:
    """Writes a picture; the file appears when it is complete."""
    with new_file(Path(path)) as partial:
        picture.save(partial)
