"""Caption data sets with Karpathy's splits.

`dataset_coco.json`, `dataset_flickr30k.json` and `dataset_flickr8k.json` by Karpathy and Li (2015)
contain `images`, each with `filename`, optionally `filepath` (a folder), `split` and `sentences`;
a sentence's field `raw` contains the text.
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
from dinotxt_jax.data.examples import SECTION, checked_captions, nothing_left
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.storage.addresses import AddressLike, to_address

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig


def open_karpathy(
    path: AddressLike, *, image_root: AddressLike = "", split: str = "", section: str = SECTION
) -> CaptionFileSource:
    """Opens a Karpathy caption file; images keep the file order.

    Args:
        path: the caption file.
        image_root: the folder that `filepath`, or `filename` alone, is relative to (default: the
            folder that contains the caption file).
        split: "train", "restval", "val" or "test", or several joined by + (papers usually train on
            "train+restval"; "train" does not include restval); "" keeps all images.
        section: command-line name for these settings, for messages.

    Raises:
        UserError: the file is not a Karpathy caption file, lacks a requested split, or has an image
            without a caption.
    """
    file = to_address(path)
    field = functools.partial(typed_field, section=section)
    text = functools.partial(filled_text, section=section)
    requested_splits = set(split.split("+")) if split else set()
    splits = set()
    entries = []
    for number, image in enumerate(field(parsed_json(file, section), "images", list, file)):
        where = f"{file}, images[{number}]"
        name = text(image, "filename", where)
        if "filepath" in image:
            name = f"{text(image, 'filepath', where)}/{name}"
        image_split = text(image, "split", where)
        splits.add(image_split)
        if not requested_splits or image_split in requested_splits:
            sentences = field(image, "sentences", list, where)
            raw = [field(sentence, "raw", str, where) for sentence in sentences]
            entries.append((name, checked_captions(raw, f"{where} ({name})")))
    for missing in sorted(requested_splits - splits):
        raise nothing_left(file, missing, splits, section)
    return caption_file_source(file, image_root, entries, section)


def _open(config: DataConfig, section: str) -> CaptionFileSource:
    return open_karpathy(
        config.path, image_root=config.image_root, split=config.split, section=section
    )


KARPATHY = SourceKind(reads=("path", "image_root", "split"), captions=_open)
