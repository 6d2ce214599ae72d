"""Lists the files that a path refers to: data files, and images in folders."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import logging

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, AddressLike, is_remote, to_address
from dinotxt_jax.storage.retries import retried

_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_ENDINGS = ", ".join(sorted(_IMAGES))


def data_files(path: AddressLike, ending: str, title: str, setting: str) -> list[Address]:
    """Returns the file at a path, or all files in a folder or matching a glob, sorted by name.

    Args:
        path: a file, a folder or a glob.
        ending: substring that file names in a folder must contain, such as ".tar".
        title: the file format's name, for the message.
        setting: the settings key for the path, for the message.

    Raises:
        UserError: there is no such file.
    """
    address = to_address(path)
    if retried(address.is_dir):
        files = [file for file in address.iterdir() if fnmatch.fnmatch(file.name, f"*{ending}*")]
    elif retried(address.is_file):
        files = [address]
    else:
        files = _matches(address)
    if not files:
        raise UserError(
            f"no {title} file was found at {path}, expected a file, a folder of *{ending} files "
            f"or a glob; correct {setting}."
        )
    return sorted(files)


def _matches(address: Address) -> list[Address]:
    """Returns the files that match a glob; any path component may contain * ? [ ]."""
    if not is_remote(address):
        return [Path(file) for file in glob.glob(str(address))]
    pattern = re.search(r"[^/]*[*?[].*", str(address))
    if pattern is None:
        return []
    return list(to_address(str(address)[: pattern.start()]).glob(pattern[0]))


def images_below(folders: Iterable[Address], where: object) -> list[list[Address]]:
    """Lists the image files in each folder, recursively, selected by file ending and sorted.

    Logs a single warning that counts the files with other endings, except hidden files.

    Args:
        folders: the folders.
        where: a common name for all folders, used in messages.

    Raises:
        UserError: the folders contain files, but no image.
    """
    images: list[list[Address]] = []
    skipped: Counter[str] = Counter()
    for folder in folders:
        images.append([])
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in _IMAGES:
                images[-1].append(file)
            elif not file.name.startswith(".") and file.is_file():
                skipped[file.suffix.lower() or "without ending"] += 1
    if not skipped:
        return images
    counts = ", ".join(f"{count} {ending}" for ending, count in skipped.most_common(8))
    if not any(images):
        raise UserError(
            f"{where} holds no readable image, only other files ({counts}), expected {_ENDINGS}; "
            "convert the images, or correct the path."
        )
    number = skipped.total()
    unread = (
        "1 file is not read because of its ending"
        if number == 1
        else f"{number} files are not read because of their endings"
    )
    logging.warning("%s: %s (%s); images end in %s", where, unread, counts, _ENDINGS)
    return images


def image_files(paths: Sequence[str]) -> list[Address]:
    """Returns the named image files, and all image files found recursively in named folders.

    Raises:
        UserError: a path does not exist, or no image is found.
    """
    if not paths:
        raise UserError("no image is named, expected paths to files or folders; add them.")
    addresses = [to_address(path) for path in paths]
    for address in addresses:
        if not address.exists():
            raise UserError(f"{address} does not exist, expected an image or a folder; correct it.")
    folders = [address for address in addresses if address.is_dir()]
    below = dict(zip(folders, images_below(folders, ", ".join(map(str, folders))), strict=True))
    files = [file for address in addresses for file in below.get(address, [address])]
    if not files:
        raise UserError(
            f"{', '.join(paths)} holds no file, expected images ({_ENDINGS}); name another folder."
        )
    return files
