"""Lists the files that a path names: data files, and images in folders."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import logging

from dinotxt_jax.errors import UserError

_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_ENDINGS = ", ".join(sorted(_IMAGES))


def data_files(path: str, ending: str, title: str, section: str) -> list[str]:
    """Returns the file at a path, or the files in a folder or of a glob, sorted by name.

    Args:
        path: the path or the glob.
        ending: what the names in a folder hold, such as ".tar".
        title: the name of the file format, for the message.
        section: command-line name for the data settings, for the message.

    Raises:
        UserError: there is none.
    """
    if os.path.isdir(path):
        files = glob.glob(os.path.join(glob.escape(path), f"*{ending}*"))
    else:
        files = [path] if os.path.isfile(path) else glob.glob(path)
    if not files:
        raise UserError(
            f"no {title} file was found at {path}, expected a file, a folder of *{ending} files "
            f"or a glob; correct {section}.path."
        )
    return sorted(files)


def images_below(folders: Iterable[Path], where: object) -> list[list[Path]]:
    """Lists the image files in each folder, recursively, sorted and selected by file ending.

    One warning counts the files with other endings, except hidden files.

    Args:
        folders: the folders.
        where: one name for all folders together, used in messages.

    Raises:
        UserError: the folders have files, but no image.
    """
    images: list[list[Path]] = []
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


def image_files(paths: Sequence[str]) -> list[Path]:
    """Returns the named image files, and all image files found recursively in named folders.

    Raises:
        UserError: a path does not exist, or no image is found.
    """
    if not paths:
        raise UserError("no image is named, expected the paths of files or folders; add them.")
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist, expected an image or a folder; correct it.")
    folders = [path for path in map(Path, paths) if path.is_dir()]
    below = dict(zip(folders, images_below(folders, ", ".join(map(str, folders))), strict=True))
    files = [file for path in map(Path, paths) for file in below.get(path, [path])]
    if not files:
        raise UserError(
            f"{', '.join(paths)} holds no file, expected images ({_ENDINGS}); name another folder."
        )
    return files
