"""Runs a complete ingestion: checks, both stages, and the manifest."""

from __future__ import annotations

from typing import Any

from dinotxt_jax.config import IngestionConfig, check
from dinotxt_jax.config.ingestion import NONE
from dinotxt_jax.data.examples import check_images_found
from dinotxt_jax.data.manifests import PLAN, read_manifest
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.duplicates import has_duplicates_of_all, remove_hashes
from dinotxt_jax.ingestion.job import PART_FOLDER, IngestionJob
from dinotxt_jax.ingestion.local import IngestionRunner, run_in_processes
from dinotxt_jax.ingestion.manifest import (
    check_same_plan,
    ingestion_plan,
    write_manifest,
    write_plan,
)
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.team import Team
from dinotxt_jax.storage.addresses import Address, is_remote, to_output
from dinotxt_jax.storage.locks import RunLock


def ingest(
    config: IngestionConfig, output: str, runner: IngestionRunner = run_in_processes
) -> dict[str, Any]:
    """Copies a source into ArrayRecord shards, or continues, checks and repairs an earlier copy.

    If several processes were started together, all must call this with the same settings.

    Args:
        config: the settings.
        output: the folder for the shards, local or in a bucket.
        runner: runs the stages, on this machine or on a cluster.

    Returns:
        The manifest.

    Raises:
        UserError: the settings or the source are invalid, or the folder contains other files (in
            these cases nothing was written); or too many examples cannot be stored.
    """
    check(config)
    folder = to_output(output, "--output")
    if folder.is_file():
        raise UserError(f"{folder} is a file, expected a folder for shards; correct --output.")
    with processes.together():
        source = open_source(config.data)
        check_images_found(source, config.data)
        plan = ingestion_plan(config, source)
        is_known = check_same_plan(folder, plan)
    processes.check_same({**plan["settings"], "examples in config.data": plan["source"]})
    job = IngestionJob(config, str(folder), len(source))
    lock, team = RunLock(folder), Team()

    def start() -> None:
        (folder / PART_FOLDER).mkdir(parents=True, exist_ok=True)
        lock.acquire()
        _remove_partial(folder)
        if not is_known:
            write_plan(folder, plan)

    def finish() -> None:
        lock.check()
        remove_hashes(job)
        write_manifest(job, plan)

    try:
        team.only_first(start)
        processes.check_shared(folder / PLAN)
        is_finding = team.first(
            lambda: config.deduplicate != NONE and not has_duplicates_of_all(job)
        )
        runner(job, source, is_finding)
        team.only_first(finish)
    finally:
        if processes.is_first():
            lock.release()
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def _remove_partial(folder: Address) -> None:
    """Deletes unfinished files from a killed run; interrupted uploads to buckets leave no files."""
    for place in () if is_remote(folder) else (folder, folder / PART_FOLDER):
        for file in place.glob(".partial-*"):
            file.unlink(missing_ok=True)
