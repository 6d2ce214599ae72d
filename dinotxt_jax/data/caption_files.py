"""Caption sets in the files they are published in: Karpathy's splits, and COCO's own format.

`dataset_coco.json`, `dataset_flickr30k.json` and `dataset_flickr8k.json` of Karpathy and Li (2015)
hold `images`, each with `filename`, perhaps `filepath` (a folder), `split` and `sentences`, of
which `raw` is the text. COCO's `captions_val2017.json` and the like hold `images` (`id`,
`file_name`) and `annotations` (`image_id`, `caption`), for one split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinotxt_jax.data.examples import (
    Example,
    checked_captions,
    folder_of_images,
    nothing_left,
    read_image,
    shortened,
)
from dinotxt_jax.errors import UserError

_KINDS = {str: "a text", int: "a whole number", list: "a list"}


class CaptionFileSource:
    """Image files and their captions.

    Args:
        entries: path of each image relative to `root`, and its captions.
        root: the folder of the images.
    """

    def __init__(self, entries: Sequence[tuple[str, tuple[str, ...]]], root: Path) -> None:
        self._entries = entries
        self._root = root

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        name, captions = self._entries[index]
        return Example(read_image(self._root / name, name), captions, name)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._entries[index][1]


def open_karpathy(
    path: str | Path, *, image_root: str | Path = "", split: str = ""
) -> CaptionFileSource:
    """Opens one of Karpathy's files, the images in its order.

    Args:
        path: the file.
        image_root: the folder that `filepath`, or `filename` alone, is relative to (default: the
            file's own).
        split: "train", "restval", "val" or "test"; several joined by + ("train+restval" is what
            others train on; "train" alone has no restval); "" keeps all.

    Raises:
        UserError: not such a file, a split it lacks, or an image without a caption.
    """
    file = Path(path)
    wanted = set(split.split("+")) if split else set()
    splits = set()
    entries = []
    for number, image in enumerate(_field(_parsed(file), "images", list, file)):
        where = f"{file}, images[{number}]"
        name = _text(image, "filename", where)
        if "filepath" in image:
            name = f"{_text(image, 'filepath', where)}/{name}"
        own = _text(image, "split", where)
        splits.add(own)
        if not wanted or own in wanted:
            sentences = _field(image, "sentences", list, where)
            raw = [_field(sentence, "raw", str, where) for sentence in sentences]
            entries.append((name, checked_captions(raw, f"{where} ({name})")))
    for missing in sorted(wanted - splits):
        raise nothing_left(file, missing, splits)
    return _source(file, image_root, entries)


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
    content = _parsed(file)
    names: dict[int, str] = {}
    for number, image in enumerate(_field(content, "images", list, file)):
        where = f"{file}, images[{number}]"
        identity = _field(image, "id", int, where)
        if identity in names:
            raise UserError(
                f"{where}: the id {identity} occurs twice, expected it once; remove one."
            )
        names[identity] = _text(image, "file_name", where)
    captions: dict[int, list[str]] = {identity: [] for identity in names}
    for number, annotation in enumerate(_field(content, "annotations", list, file)):
        where = f"{file}, annotations[{number}]"
        identity = _field(annotation, "image_id", int, where)
        if identity not in names:
            raise UserError(
                f"{where}: the image_id {identity} is that of no image in the file; correct or "
                "remove the annotation."
            )
        captions[identity].append(_field(annotation, "caption", str, where))
    entries = [
        (name, checked_captions(captions[identity], f"{file}, image {identity} ({name})"))
        for identity, name in names.items()
    ]
    return _source(file, image_root, entries)


def _source(
    file: Path, image_root: str | Path, entries: Sequence[tuple[str, tuple[str, ...]]]
) -> CaptionFileSource:
    if not entries:
        raise nothing_left(file, "", set())
    return CaptionFileSource(entries, folder_of_images(file, image_root))


def _parsed(file: Path) -> Any:
    if not file.is_file():
        raise UserError(
            f"{file} is not a file, expected one of captions; correct config.data.path."
        )
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is not JSON ({error}), expected a caption file as it was published; get it "
            "again, or correct config.data.path."
        ) from error


def _field(holder: Any, key: str, kind: type, where: object) -> Any:
    """A field of a JSON object, of one type."""
    if not isinstance(holder, Mapping):
        raise UserError(
            f"{where}: there is {shortened(holder)}, expected an object with {key}; correct the "
            "file, or config.data.source."
        )
    value = holder.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = shortened(value) if key in holder else "missing"
        raise UserError(
            f"{where}: the field {key} is {found}, expected {_KINDS[kind]}; correct the file, or "
            "config.data.source."
        )
    return value


def _text(holder: Any, key: str, where: object) -> str:
    """A field that is a text with something in it."""
    text = _field(holder, key, str, where)
    if not text:
        raise UserError(f"{where}: the field {key} is empty, expected a text; correct the file.")
    return text
