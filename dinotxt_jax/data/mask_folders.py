"""Segmentation data sets in the folder layouts in which they were published (`mask_layouts`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinotxt_jax.data.examples import nothing_left
from dinotxt_jax.data.mask_layouts import MASK_LAYOUTS, MaskLayout
from dinotxt_jax.data.masks import MaskFiles
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.data.texts import read_list
from dinotxt_jax.data.transforms import view_decoder
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig


def _open(config: DataConfig, section: str) -> MaskFiles:
    """Opens the data set named `config.name`; `config.classes` may rename the classes."""
    layout = MASK_LAYOUTS.get(config.name)
    if layout is None:
        raise UserError(
            f"{section}.name is {config.name!r}, which is not a known mask data set; choose "
            f"among {', '.join(MASK_LAYOUTS)}."
        )
    names = layout.class_names()
    if config.classes:
        renamed = read_list(config.classes, f"{section}.classes")
        if len(renamed) != len(names):
            raise UserError(
                f"{section}.classes names {len(renamed)} classes, but {config.name} has "
                f"{len(names)}; give one name per class, in index order."
            )
        names = renamed
    if config.split and not layout.split:
        raise UserError(
            f"{section}.split is {config.split!r}, but {config.name} has no splits; leave it empty."
        )
    # `config.path` is the data set root or the parent folder.
    path = to_address(config.path)
    root = path / layout.folder if (path / layout.folder).is_dir() else path
    split = config.split or layout.split
    templates = _templates(root, layout, split)
    if templates is None:
        raise _not_found(config, root, layout, section)
    pairs = _pairs(root, templates, layout.split_list, split, section)
    to_indices = functools.partial(layout.to_indices, section=section)
    background = 0 if layout.background else None
    return MaskFiles(root, pairs, to_indices, names, background, view_decoder(config))


def _templates(root: Address, layout: MaskLayout, split: str) -> tuple[str, str] | None:
    """Returns the first image and mask templates whose folders exist, or None if one is missing."""

    def exists(template: str) -> bool:
        return (root / _folder(template, split)).is_dir()

    image, mask = (next(filter(exists, ts), "") for ts in (layout.images, layout.masks))
    return (image, mask) if image and mask else None


def _folder(template: str, split: str) -> str:
    return template.partition("{name}")[0].format(split=split)


def _pairs(
    root: Address, templates: tuple[str, str], split_list: str, split: str, section: str
) -> list[tuple[str, str]]:
    """Returns (image file, mask file) for each image in a split, relative to the root.

    Raises:
        UserError: there is no image, or an image or mask file does not exist.
    """
    image, mask = templates
    names: Sequence[str]
    if split_list:
        names = _listed(root / split_list.format(split=split), split, section)
    else:
        folder, ending = root / _folder(image, split), image.partition("{name}")[2]
        files = [file.relative_to(folder).as_posix() for file in folder.rglob(f"*{ending}")]
        names = sorted(file.removesuffix(ending) for file in files)
        if not names:
            raise nothing_left(folder, "", set(), section)
    pairs = [
        (image.format(split=split, name=name), mask.format(split=split, name=name))
        for name in names
    ]
    for image_file, mask_file in pairs:
        for file, expected in (
            (image_file, f"an image in the split {split}; restore it"),
            (mask_file, f"the mask for {image_file}; add it, or remove the image"),
        ):
            if not (root / file).is_file():
                raise UserError(f"{root / file} is missing, expected {expected}.")
    return pairs


def _listed(file: Address, split: str, section: str) -> tuple[str, ...]:
    """Returns the image names in a split list file."""
    if not file.is_file():
        split_files = ", ".join(sorted(other.stem for other in file.parent.glob(f"*{file.suffix}")))
        advice = (
            f"correct {section}.split (there are {split_files})" if split_files else "restore it"
        )
        raise UserError(
            f"{file} is missing, expected the image names in the split {split!r}; {advice}."
        )
    return read_list(str(file), f"{section}.split")


def _not_found(config: DataConfig, root: Address, layout: MaskLayout, section: str) -> UserError:
    """Returns the error for missing split folders; the message names the splits that exist."""
    above = [image.partition("{split}")[0] for image in layout.images if "{split}" in image]
    folders = [entry for place in above for entry in (root / place).glob("*/")]
    splits = sorted({entry.name for entry in folders if _templates(root, layout, entry.name)})
    if splits:
        return UserError(
            f"{config.path} has no split {config.split or layout.split!r} for {config.name}, only "
            f"{', '.join(splits)}; correct {section}.split."
        )
    return UserError(
        f"{config.path!r} is not the folder of {config.name}, expected {layout.about}; correct "
        f"{section}.path."
    )


MASK_FOLDERS = SourceKind(reads=("path", "name", "split", "classes"), masks=_open)
