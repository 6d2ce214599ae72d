"""A folder a class: folders named by WordNet id, by label, or by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging

from dinotxt_jax.data.class_labels import (
    LabelledImage,
    LabelledImages,
    checked_label,
    imagenet_labels,
    imagenet_names,
    is_number,
    is_wnid,
    readable_names,
)
from dinotxt_jax.data.examples import image_bytes, images_below
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.errors import UserError

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig


def read_class_folders(
    path: Path, names: Sequence[str]
) -> tuple[list[LabelledImage], Sequence[str]]:
    """The images below the folders in `path`, and the names of the classes.

    With `names`, folders named by numbers have these labels; folders named by WordNet id, with the
    1000 names of ImageNet, have that class, and the classes are those that have a folder; all
    others are the classes in the order of their names. Without, folders name their classes.

    Raises:
        UserError: no folder there, or folders that do not fit the names.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder, expected one with a folder a class; correct data.path."
        )
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    labels, names = _labels(path, [folder.name for folder in folders], names)
    entries = [
        LabelledImage(file, (label,), str(file.relative_to(path)))
        for label, folder in zip(labels, folders, strict=True)
        for file in images_below(folder)
    ]
    return entries, names


def _labels(
    path: Path, folders: Sequence[str], names: Sequence[str]
) -> tuple[Sequence[int], Sequence[str]]:
    """The label of each folder, these being in the order of their names, and the class names."""
    if not names:
        return range(len(folders)), readable_names(folders, path)
    if any(map(is_number, folders)):
        return _by_number(path, folders, len(names)), names
    if any(map(is_wnid, folders)) and len(names) == len(imagenet_labels()):
        strange = [folder for folder in folders if folder not in imagenet_labels()]
        if not strange:
            # The order of WordNet ids is that of ImageNet's labels.
            own = [names[imagenet_labels()[folder]] for folder in folders]
            logging.info("%s has %d of ImageNet's %d classes", path, len(own), len(names))
            return range(len(folders)), own
        if tuple(names) == imagenet_names():
            raise UserError(
                f"{path} has the folder {strange[0]}, which is no WordNet id of ImageNet's "
                f"{len(names)} classes, beside folders named by such; remove it, or name its "
                "class in a list of its own for data.classes."
            )
    if len(names) != len(folders):
        raise UserError(
            f"{path} has {len(folders)} folders, but data.classes names {len(names)} classes; "
            "name one a folder, in the order of the folders' names."
        )
    return range(len(folders)), names


def _by_number(path: Path, folders: Sequence[str], classes: int) -> list[int]:
    named = [folder for folder in folders if not is_number(folder)]
    if named:
        raise UserError(
            f"{path} has the folder {named[0]} beside folders named by numbers, expected the "
            "number of a class in data.classes for each; rename or remove it."
        )
    return [checked_label(int(folder), classes, f"{path / folder}") for folder in folders]


def _read(config: DataConfig, names: Sequence[str]) -> LabelledImages:
    return LabelledImages(*read_class_folders(Path(config.path), names), load=image_bytes)


FOLDER = SourceKind(reads=("path", "classes", "only"), labels=_read)
