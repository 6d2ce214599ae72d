"""Writes the plan, the quarantine file and the manifest (`data.manifests` reads them)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dinotxt_jax.config import IngestionConfig, flatten
from dinotxt_jax.config.ingestion import ENCODINGS
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.identity import data_identity, difference
from dinotxt_jax.data.manifests import FORMAT, FORMAT_VERSION, MANIFEST, PLAN
from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.job import IngestionJob
from dinotxt_jax.ingestion.shards import read_part, rejection
from dinotxt_jax.ingestion.statistics import PairStatistics
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import new_file, read_json, write_text
from dinotxt_jax.storage.retries import retried

QUARANTINE = "quarantine.jsonl"
_SCHEMA = {
    "container": "ArrayRecord, one msgpack map per record",
    "fields": {
        "image": f"bytes: an image file ({', '.join(ENCODINGS.values())} or another format that "
        "Pillow reads)",
        "captions": "list of str: at least one, none blank",
        "key": "str: name of the example",
        "columns": "list of str, optional: the column that each caption comes from",
    },
}
# Settings that do not change the stored examples: the source's location, reading speed, the limit
# on bad examples, and image preparation in training.
_WITHOUT_EFFECT = {
    "config.workers",
    *(
        f"config.data.{name}"
        for name in (
            "path",
            "image_root",
            "threads",
            "prefetch",
            "workers",
            "max_bad_fraction",
            "accept_changed",
            "augmentation",
            "resize",
            "crop_scale",
            "crop_ratio",
            "flip_probability",
        )
    ),
}


def ingestion_plan(config: IngestionConfig, source: Source) -> dict[str, Any]:
    """Builds the plan, which identifies the source and the settings that determine the output."""
    settings = {k: v for k, v in flatten(config).items() if k not in _WITHOUT_EFFECT}
    plan = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "source": data_identity(source, config.data.threads),
        "settings": settings,
    }
    read_back: dict[str, Any] = json.loads(json.dumps(plan))  # tuples become lists, as when stored
    return read_back


def check_same_plan(folder: Address, plan: dict[str, Any]) -> bool:
    """Returns whether the folder already contains this ingestion, finished or not.

    Raises:
        UserError: the folder contains another ingestion, or ArrayRecord files without a plan.
    """
    cure = "give another --output, or remove that folder"
    if not retried((folder / PLAN).is_file):
        _check_no_records(folder, cure)
        return False
    stored = read_json(folder / PLAN, "an ingestion plan", cure)
    if (stored.get("format"), stored.get("version")) != (FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{folder / PLAN} is not a plan that this dinotxt_jax version can read ({FORMAT}, "
            f"version {FORMAT_VERSION}); {cure}."
        )
    before, now = stored["settings"], plan["settings"]
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{folder} holds an ingestion with {key}={before.get(key)!r}, expected "
                f"{now.get(key)!r} as in this command; use the same settings, or {cure}."
            )
    if changed := difference(stored["source"], plan["source"]):
        raise UserError(
            f"{folder} holds an ingestion from another source ({changed}), expected the same "
            f"examples; {cure}."
        )
    return True


def _check_no_records(folder: Address, cure: str) -> None:
    if not retried(folder.is_dir):
        return
    present = next((file.name for file in folder.iterdir() if ".array_record" in file.name), None)
    if present is not None:
        raise UserError(
            f"{folder} holds other ArrayRecord files, such as {present}, expected a folder without "
            f"ArrayRecord files; {cure}."
        )


def write_plan(folder: Address, plan: dict[str, Any]) -> None:
    """Writes the plan; readers refuse the folder until the manifest exists."""
    write_text(folder / PLAN, json.dumps(plan, indent=2) + "\n")


def write_manifest(job: IngestionJob, plan: dict[str, Any]) -> None:
    """Sums all part files, then writes the quarantine file and finally the manifest.

    Raises:
        UserError: a part file is damaged, or too many examples cannot be stored.
    """
    statistics = PairStatistics()
    shards: list[dict[str, Any]] = []
    reason = ""
    counts = {"examples": 0, "records": 0, "duplicates": 0, "quarantined": 0}
    with new_file(job.folder / QUARANTINE) as partial, partial.open("w") as lines:
        for part in _parts(job):
            statistics.merge(part["statistics"])
            shards.append({key: part[key] for key in ("name", "records", "bytes", "sha256")})
            for name in ("examples", "records", "duplicates"):
                counts[name] += part[name]
            counts["quarantined"] += len(part["quarantined"])
            lines.writelines(json.dumps(entry) + "\n" for entry in part["quarantined"])
            if part["quarantined"] and not reason:
                reason = rejection(part["quarantined"][0])
    job.check_bad_fraction(counts["quarantined"], reason)
    data = job.config.data
    manifest = {
        **plan,
        "location": {"path": data.path, "image_root": data.image_root},
        "counts": counts,
        "quarantine": QUARANTINE,
        "schema": _SCHEMA,
        "statistics": statistics.to_json(),
        "shards": shards,
    }
    write_text(job.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _parts(job: IngestionJob) -> Iterator[dict[str, Any]]:
    for shard in job.shards:
        yield retried(lambda shard=shard: read_part(job, shard))  # type: ignore[misc]
