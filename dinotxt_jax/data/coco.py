"""Caption data sets in the COCO format.

Files such as `captions_val2017.json` contain `images` (`id`, `file_name`) and `annotations`
(`image_id`, `caption`) for a single split.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from dinotxt_jax.data.caption_files import (
    CaptionFileSource,
    caption_file_source,
    filled_text,
    parsed_json,
    typed_field,
)
from dinotxt_jax.data.examples import SECTION, checked_captions
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import AddressLike, to_address

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig


def open_coco(
    path: AddressLike, *, image_root: AddressLike = "", split: str = "", section: str = SECTION
) -> CaptionFileSource:
    """Opens a COCO caption file; images, and each image's captions, keep the file order.

    Args:
        path: the caption file.
        image_root: the image folder (default: the folder that contains the caption file).
        split: must be "", because the file contains a single split.
        section: command-line name for these settings, for messages.

    Raises:
        UserError: the file is not a COCO caption file, a caption refers to an unknown image, or an
            image has no caption.
    """
    file = to_address(path)
    field = functools.partial(typed_field, section=section)
    text = functools.partial(filled_text, section=section)
    if split:
        raise UserError(
            f"{section}.split is {split!r}, but a COCO caption file holds a single split, "
            f"given by the file name; set --{section}.split= and {section}.path to the file for "
            "that split."
        )
    content = parsed_json(file, section)
    names: dict[int, str] = {}
    for number, image in enumerate(field(content, "images", list, file)):
        where = f"{file}, images[{number}]"
        identity = field(image, "id", int, where)
        if identity in names:
            raise UserError(
                f"{where}: the id {identity} occurs twice, expected it once; remove a copy."
            )
        names[identity] = text(image, "file_name", where)
    captions: dict[int, list[str]] = {identity: [] for identity in names}
    for number, annotation in enumerate(field(content, "annotations", list, file)):
        where = f"{file}, annotations[{number}]"
        identity = field(annotation, "image_id", int, where)
        if identity not in names:
            raise UserError(
                f"{where}: no image in the file has the image_id {identity}; correct or remove the "
                "annotation."
            )
        captions[identity].append(field(annotation, "caption", str, where))
    entries = [
        (name, checked_captions(captions[identity], f"{file}, image {identity} ({name})"))
        for identity, name in names.items()
    ]
    return caption_file_source(file, image_root, entries, section)


def _open(config: DataConfig, section: str) -> CaptionFileSource:
    return open_coco(config.path, image_root=config.image_root, split=config.split, section=section)


COCO = SourceKind(reads=("path", "image_root", "split"), captions=_open)
