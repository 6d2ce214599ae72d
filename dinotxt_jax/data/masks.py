"""Images with index masks, for segmentation: a CSV of pairs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import nothing_left
from dinotxt_jax.data.labelled import FILE_COLUMNS
from dinotxt_jax.data.texts import read_list
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError

IGNORED = 255


class MaskSource:
    """Image files, each with a file of class indices a pixel (`IGNORED`: no class).

    `config.path` is a CSV with the columns `image` (or `file`, ...) and `mask`, both relative to
    `config.image_root`; `config.classes` names the classes by index.

    Attributes:
        class_names: one a class, in the order of the indices.

    Raises:
        UserError: missing or empty data, or no class names.
    """

    def __init__(self, config: DataConfig):
        path = Path(config.path)
        if not path.is_file():
            raise UserError(
                f"{path} is not a file, expected a CSV of images and masks; correct data.path."
            )
        if not config.classes:
            raise UserError(
                "data.classes is empty, expected the names of the classes that masks hold; set it "
                "to a text file with one a line."
            )
        self.class_names = read_list(config.classes, "data.classes")
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        columns = tuple(rows[0]) if rows else ()
        column = next((name for name in FILE_COLUMNS if name in columns), None)
        if column is None or "mask" not in columns:
            raise UserError(
                f"{path} has the columns {', '.join(columns) or '(none)'}, expected image and "
                "mask; correct it."
            )
        self._root = Path(config.image_root) if config.image_root else path.parent
        self._pairs = [
            (row[column], row["mask"])
            for row in rows
            if not config.split or row.get("split") == config.split
        ]
        if not self._pairs:
            raise nothing_left(path, config.split, {row.get("split") or "" for row in rows})

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """The name under which reports speak of an example."""
        return self._pairs[index][0]

    def load(self, index: int) -> tuple[Image.Image, Int[np.ndarray, "h w"]]:
        """An upright RGB image and its mask.

        Raises:
            UserError: a file that cannot be read, a mask of another size, or one with an index that
                no class has.
        """
        image_name, mask_name = self._pairs[index]
        try:
            image = decode_image((self._root / image_name).read_bytes())
        except (BadImageError, OSError) as error:
            raise UserError(
                f"{image_name} cannot be read ({error}); repair or remove it."
            ) from error
        try:
            mask = np.asarray(Image.open(io.BytesIO((self._root / mask_name).read_bytes())))
        except OSError as error:
            raise UserError(
                f"{mask_name}, the mask of {image_name}, cannot be read ({error}); repair or "
                "remove the pair."
            ) from error
        if mask.ndim != 2 or mask.shape != image.size[::-1]:
            raise UserError(
                f"{mask_name} has the shape {list(mask.shape)}, but {image_name} has "
                f"{list(image.size[::-1])} pixels, expected one class index a pixel; correct the "
                "pair."
            )
        mask = mask.astype(np.int32)
        outside = np.unique(
            mask[(mask != IGNORED) & ((mask < 0) | (mask >= len(self.class_names)))]
        )
        if outside.size:
            raise UserError(
                f"{mask_name} holds the index {outside[0]}, but there are {len(self.class_names)} "
                f"classes (0 to {len(self.class_names) - 1}, {IGNORED} for none); correct it, or "
                "data.classes."
            )
        return image, mask
