"""Reads the manifest next to ingested ArrayRecord shards, which lists the files and their contents.

`python -m dinotxt_jax.ingest` writes the plan first and the manifest last. A folder with a plan but
without a manifest is unfinished. `ingestion.manifest` writes both files.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, AddressLike, has_folders, to_address
from dinotxt_jax.storage.files import read_json
from dinotxt_jax.storage.retries import retried

MANIFEST, PLAN = "manifest.json", "ingestion.json"
FORMAT, FORMAT_VERSION = "dinotxt_jax image-text pairs", 1
_CURE = "run python -m dinotxt_jax.ingest with the same settings again, which writes it"


def read_manifest(folder: Address) -> dict[str, Any] | None:
    """Returns the manifest in a folder, or None if no ingestion has written to the folder.

    Raises:
        UserError: the ingestion is unfinished, or a later dinotxt_jax version wrote the manifest.
    """
    if retried((folder / MANIFEST).is_file):
        manifest = read_json(folder / MANIFEST, "a manifest", _CURE)
        if manifest.get("format") != FORMAT:
            return None  # written by another program
        if manifest.get("version") != FORMAT_VERSION:
            raise UserError(
                f"{folder / MANIFEST} has version {manifest.get('version')}, expected "
                f"{FORMAT_VERSION}; update dinotxt_jax, or ingest the data again."
            )
        return manifest
    if not retried((folder / PLAN).is_file):
        return None
    plan = read_json(folder / PLAN, "an ingestion plan", _CURE)
    if plan.get("format") != FORMAT:
        return None
    raise UserError(
        f"{folder} holds an ingestion that has not finished, expected {MANIFEST} next to the "
        f"shards; {_CURE}."
    )


def expected_shards(path: AddressLike, files: Sequence[Address]) -> dict[Address, dict[str, Any]]:
    """Returns the manifest entry for each file in a source that has a manifest.

    Args:
        path: the file, folder or glob that the user set.
        files: the files that exist there.

    Raises:
        UserError: a folder or glob lacks a shard, or has a file that the manifest does not list.
    """
    expected: dict[Address, dict[str, Any]] = {}
    for folder in sorted({file.parent for file in files if has_folders(file)}):
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        shards = {folder / shard["name"]: shard for shard in manifest["shards"]}
        present = {file for file in files if file.parent == folder}
        # `path` is the folder itself, a glob, or a single file in the folder.
        address = to_address(path)
        pattern = f"{address}/*" if address == folder else str(address)
        requested = {file for file in shards if fnmatch.fnmatch(str(file), pattern)}
        if missing := sorted(requested - present):
            raise UserError(
                f"{folder} lacks {len(missing)} of {len(shards)} shards that {MANIFEST} lists, "
                f"such as {missing[0].name}; restore the files, or ingest the data again."
            )
        if unknown := sorted(present - shards.keys()):
            raise UserError(
                f"{unknown[0]} is not among the {len(shards)} shards that {MANIFEST} lists; move "
                "it to another folder."
            )
        expected |= {file: shards[file] for file in present}
    return expected


def check_shard(file: Address, copy: Path, records: int, shard: Mapping[str, Any]) -> None:
    """Compares a shard's size and number of records with the manifest.

    Args:
        file: the shard, for the message.
        copy: the shard's local copy.
        records: number of records in the copy.
        shard: the manifest entry.

    Raises:
        UserError: size or record count differ.
    """
    size = copy.stat().st_size
    if (size, records) != (shard["bytes"], shard["records"]):
        raise UserError(
            f"{file} has {size} bytes and {records} records, expected {shard['bytes']} and "
            f"{shard['records']} as in {MANIFEST}; restore it, or run the ingestion again, which "
            "rewrites it."
        )
