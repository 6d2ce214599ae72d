"""TFDS data sets in buckets: copies a split's files, because TFDS only opens local paths.

DATA_DIR/NAME[/CONFIG]/VERSION/dataset_info.json, features.json, NAME-SPLIT.array_record-*
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.object_cache import files_folder, local_copies
from dinotxt_jax.storage.retries import retried

_INFO = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SHARD = re.compile(r"-(?P<split>[^-]+)\.(array_record|riegeli)-\d+-of-\d+$")


def copied_data_set(data_dir: Address, name: str, split: str, section: str) -> Path:
    """Returns a local folder with a data set's metadata and the shards for a split.

    Args:
        data_dir: the folder with all data sets, in a bucket.
        name: NAME or NAME/CONFIG, optionally with :VERSION (default: the newest version).
        split: a split, a part such as train[:10%], a sum such as train+test, or all.
        section: command-line name for these settings, for messages.

    Raises:
        UserError: the data set does not exist, or exceeds the size limit for local copies.
    """
    folder = _version_folder(data_dir, name, section)
    requested_splits = set(re.findall(r"\w+", re.sub(r"\[[^]]*\]", "", split)))
    files = [file for file in retried(lambda: list(folder.iterdir())) if retried(file.is_file)]
    needed = [
        file
        for file in files
        if (shard := _SHARD.search(file.name)) is None or requested_splits & {shard["split"], "all"}
    ]
    copies = local_copies(needed, f"{section}.path")
    # TFDS expects all files in a single folder, so link the copies there. Links do not count
    # towards the size limit for local copies.
    digest = hashlib.sha256("\n".join(map(str, copies)).encode()).hexdigest()[:32]
    together = files_folder().parent / "tfds" / digest / folder.parent.name / folder.name
    together.mkdir(parents=True, exist_ok=True)
    for file, copy in zip(needed, copies, strict=True):
        link = together / file.name
        if not link.is_symlink():
            partial = together / f".{file.name}.{os.getpid()}"
            partial.unlink(missing_ok=True)
            partial.symlink_to(copy.absolute())
            partial.replace(link)  # atomic, since another process may make the same link
    return together


def _version_folder(data_dir: Address, name: str, section: str) -> Address:
    """Returns the folder for the version in `name`, or for the newest version.

    Raises:
        UserError: this version does not exist, or there is no version.
    """
    path, _, version = name.partition(":")
    folder = data_dir / path
    names = [child.name for child in retried(lambda: list(folder.iterdir()))] if _is(folder) else []
    versions = [child for child in names if _VERSION.fullmatch(child)]
    chosen = version or max(versions, key=lambda text: [*map(int, text.split("."))], default="")
    if not chosen or not retried((folder / chosen / _INFO).is_file):
        choices = ", ".join(sorted(names)) or "nothing"
        raise UserError(
            f"{folder} holds {choices}, expected a folder named after a version"
            f"{f' ({version})' if version else ''} with {_INFO}; run tfds build {path} "
            f"--file_format=array_record, or correct {section}.name or path."
        )
    return folder / chosen


def _is(folder: Address) -> bool:
    """Returns whether the folder exists."""
    return bool(retried(folder.is_dir))
