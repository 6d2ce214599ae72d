"""Lists the files that a path names: data files, and images in folders."""

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
    """Returns the file at an address, or the files in a folder or of a glob, sorted by name.

    Args:
        path: the address or the glob.
        ending: what the names in a folder hold, such as ".tar".
        title: the name of the file format, for the message.
        setting: the setting that holds the path, for the message.

    Raises:
        UserError: there is none.
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
    """Returns the files that match an address with the characters * ? [ ] in any part."""
    if not is_remote(address):
        return [Path(file) for file in glob.glob(str(address))]
    pattern = re.search(r"[^/]*[*?[].*", str(address))
    if pattern is None:
        return []
    return list(to_address(str(address)[: pattern.start()]).glob(pattern[0]))


def images_below(folders: Iterable[Address], where: object) -> list[list[Address]]:
    """Lists the image files in each folder, recursively, sorted and selected by file ending.

    One warning counts the files with other endings, except hidden files.

    Args:
        folders: the folders.
        where: one name for all folders together, used in messages.

    Raises:
        UserError: the folders have files, but no image.
    """
    images: list[list[Address]] = []
    others: Counter[str] = Counter()
    for folder in folders:
        images.append([])
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in _IMAGES:
                images[-1].append(file)
            elif not file.name.startswith(".") and file.is_file():
                others[file.suffix.lower() or "without ending"] += 1
    if not others:
        return images
    counts = ", ".join(f"{count} {ending}" for ending, count in others.most_common(8))
    if not any(images):
        raise UserError(
            f"{where} holds no image that can be read, only other files ({counts}), expected "
            f"{_ENDINGS}; convert the images, or correct the path."
        )
    logging.warning(
        "%s: %d files are not read because of their endings (%s); images end in %s",
        *(where, others.total(), counts, _ENDINGS),
    )
    return images


def image_files(paths: Sequence[str]) -> list[Address]:
    """Returns the named image files, and all image files found recursively in named folders.

    Raises:
        UserError: a path does not exist, or no image is found.
    """
    if not paths:
        raise UserError("no image is named, expected the paths of files or folders; add them.")
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
