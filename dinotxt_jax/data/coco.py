"""Caption sets in COCO's own format.

`captions_val2017.json` and the like hold `images` (`id`, `file_name`) and `annotations`
(`image_id`, `caption`) of one split.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dinotxt_jax.data.caption_files import (
    CaptionFileSource,
    caption_file_source,
    filled_text,
    parsed_json,
    typed_field,
)
from dinotxt_jax.data.examples import checked_captions
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.errors import UserError

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig


def open_coco(
    path: str | Path, *, image_root: str | Path = "", split: str = ""
) -> CaptionFileSource:
    """Opens a COCO caption file, the images and the captions of each in its order.

    Args:
        path: the file.
        image_root: the folder of the images (default: the file's own).
        split: must be "": the file is of one split.

    Raises:
        UserError: not such a file, a caption of an unknown image, or an image without a caption.
    """
    file = Path(path)
    if split:
        raise UserError(
            f"config.data.split is {split!r}, but {file} is of one split, which its name says; set "
            "split to '' and path to the file that is wanted."
        )
    content = parsed_json(file)
    names: dict[int, str] = {}
    for number, image in enumerate(typed_field(content, "images", list, file)):
        where = f"{file}, images[{number}]"
        identity = typed_field(image, "id", int, where)
        if identity in names:
            raise UserError(
                f"{where}: the id {identity} occurs twice, expected it once; remove one."
            )
        names[identity] = filled_text(image, "file_name", where)
    captions: dict[int, list[str]] = {identity: [] for identity in names}
    for number, annotation in enumerate(typed_field(content, "annotations", list, file)):
        where = f"{file}, annotations[{number}]"
        identity = typed_field(annotation, "image_id", int, where)
        if identity not in names:
            raise UserError(
                f"{where}: the image_id {identity} is that of no image in the file; correct or "
                "remove the annotation."
            )
        captions[identity].append(typed_field(annotation, "caption", str, where))
    entries = [
        (name, checked_captions(captions[identity], f"{file}, image {identity} ({name})"))
        for identity, name in names.items()
    ]
    return caption_file_source(file, image_root, entries)


def _open(config: DataConfig) -> CaptionFileSource:
    return open_coco(config.path, image_root=config.image_root, split=config.split)


COCO = SourceKind(reads=("path", "image_root", "split"), captions=_open)
