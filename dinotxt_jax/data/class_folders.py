"""Image folders, one per class, named by WordNet ID, by label, or by class name."""

from __future__ import annotations

from collections.abc import Sequence
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
from dinotxt_jax.data.examples import image_bytes, nothing_left
from dinotxt_jax.data.file_lists import images_below
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig


def read_class_folders(
    path: Address, names: Sequence[str], section: str
) -> tuple[list[LabelledImage], Sequence[str]]:
    """Returns the images in the folders below `path`, and the class names.

    With `names`, a folder's label depends on the folder names:
    - by number: the number is the label;
    - by WordNet ID, if `names` has ImageNet's 1000 entries: the ID selects the ImageNet class, and
      only classes that have a folder are kept;
    - otherwise: the folders are the classes in sorted folder name order.
    Without `names`, the folder names are the class names.

    Raises:
        UserError: `path` has no folder, or the folders do not match the names.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder, expected a folder that contains one folder for each class; "
            f"correct {section}.path."
        )
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    if not folders:
        if not any(path.iterdir()):
            raise nothing_left(path, "", set(), section)
        raise UserError(
            f"{path} holds files but no folders, expected one folder for each class with the "
            f"class's images; move the images into such folders, or correct {section}.path."
        )
    labels, names = _labels(path, [folder.name for folder in folders], names, section)
    entries = [
        LabelledImage(file, (label,), str(file.relative_to(path)))
        for label, files in zip(labels, images_below(folders, path), strict=True)
        for file in files
    ]
    return entries, names


def _labels(
    path: Address, folders: Sequence[str], names: Sequence[str], section: str
) -> tuple[Sequence[int], Sequence[str]]:
    """Returns a label for each folder, and the class names; `folders` are sorted by name."""
    if not names:
        return range(len(folders)), readable_names(folders, path, section)
    if any(map(is_number, folders)):
        return _by_number(path, folders, len(names), section), names
    if any(map(is_wnid, folders)) and len(names) == len(imagenet_labels()):
        unknown_ids = [folder for folder in folders if folder not in imagenet_labels()]
        if not unknown_ids:
            # ImageNet labels are ordered by WordNet id, so sorted folders are in label order.
            folder_names = [names[imagenet_labels()[folder]] for folder in folders]
            logging.info("%s has %d of ImageNet's %d classes", path, len(folder_names), len(names))
            return range(len(folders)), folder_names
        if tuple(names) == imagenet_names():
            raise UserError(
                f"{path} has the folder {unknown_ids[0]}, which is not the WordNet ID of any of "
                f"ImageNet's {len(names)} classes, next to folders named by ID; remove it, or set "
                f"{section}.classes to your own list with a name for each folder."
            )
    if len(names) != len(folders):
        raise UserError(
            f"{path} has {len(folders)} folders, but {section}.classes names {len(names)} "
            "classes; name a class for each folder, in sorted folder name order, or set "
            f"--{section}.classes= to use the folder names as class names."
        )
    return range(len(folders)), names


def _by_number(path: Address, folders: Sequence[str], classes: int, section: str) -> list[int]:
    not_numbers = [folder for folder in folders if not is_number(folder)]
    if not_numbers:
        raise UserError(
            f"{path} has the folder {not_numbers[0]} next to folders named by number, expected "
            f"only class numbers from {section}.classes; rename or remove it."
        )
    return [checked_label(int(folder), classes, f"{path / folder}", section) for folder in folders]


def _read(config: DataConfig, names: Sequence[str], section: str) -> LabelledImages:
    return LabelledImages(
        *read_class_folders(to_address(config.path), names, section), load=image_bytes
    )


FOLDER = SourceKind(reads=("path", "classes", "only"), labels=_read)
