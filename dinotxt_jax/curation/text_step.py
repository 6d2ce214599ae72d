"""The step `text`: balances a pool over metadata entries, by its captions.

The output folder holds

    kept.npz      the list for config.data.kept; written last
    entries.tsv   each entry with its captions before and after
    summary.json  numbers and thresholds
    plan.json     the pool, the metadata and the settings that decide what matches
    matches/      the matches of each range of the pool; another threshold or target uses them again
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dinotxt_jax.config import CurationConfig, flatten
from dinotxt_jax.curation.balancing import (
    SparseCounts,
    merge,
    probabilities,
    sample,
    thresholds_by_language,
)
from dinotxt_jax.curation.metadata import Metadata, read_metadata
from dinotxt_jax.curation.runners import RangeRunner, TextRunner
from dinotxt_jax.curation.text_job import (
    DRAWS,
    MATCHES,
    RangeAction,
    TextJob,
    TextWorker,
    read_factors,
    read_matched,
    read_npz,
    write_npz,
)
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.identity import data_identity, difference
from dinotxt_jax.data.kept import write_kept
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.progress import progress_bar, watched
from dinotxt_jax.runtime.team import Team
from dinotxt_jax.storage.addresses import Address, remove_folder
from dinotxt_jax.storage.files import new_file, read_json, write_text
from dinotxt_jax.storage.locks import RunLock
from dinotxt_jax.storage.retries import retried

KEPT, ENTRIES, SUMMARY, PLAN = "kept.npz", "entries.tsv", "summary.json", "plan.json"
COLUMNS = ("entry", "language", "before", "after", "probability")
_FORMAT = "dinotxt_jax text balance 1"


class _Counted(NamedTuple):
    """Numbers about the pool: captions and threshold per entry, matched and unreadable examples."""

    counts: Int64[np.ndarray, " e"]
    thresholds: Int64[np.ndarray, " e"]
    matched: int
    unreadable: int


def balance_text(
    config: CurationConfig, arguments: Sequence[str], output: Address, runner: TextRunner
) -> str:
    """Balances a pool; returns a sentence about the result.

    If several processes were started together, all must call it with the same settings; each works
    on its share of the ranges.

    Args:
        config: the pool, `balance`, `target` and `seed`.
        arguments: the metadata.
        output: the folder to write; an earlier, interrupted run in it is continued.
        runner: runs the work on ranges, on this machine or on others.

    Raises:
        UserError: the pool or the metadata cannot be used, the folder holds another run, or fewer
            examples than `target` match an entry.
    """
    if len(arguments) != 1:
        raise UserError(
            f"{len(arguments)} paths are given, expected the metadata after text; write it with "
            "python -m dinotxt_jax.curate metadata."
        )
    with processes.together():
        if retried(output.is_file):
            raise UserError(f"{output} is a file, expected a folder for results; correct --output.")
        metadata = read_metadata(arguments[0])
        source = open_source(config.data)
        if config.target > len(source):
            raise UserError(
                f"config.target is {config.target}, expected at most the {len(source)} examples of "
                "config.data; lower it."
            )
        plan = _plan(config, metadata, data_identity(source, config.data.threads))
    processes.check_same(
        {
            "examples in config.data": plan["pool"],
            "metadata": plan["metadata"],
            "config.seed": config.seed,
            "config.target": config.target,
            **flatten(config.balance, "config.balance"),
        }
    )
    job = TextJob(config, arguments[0], str(output), len(source))
    return _balanced(job, source, metadata, plan, runner)


def _balanced(
    job: TextJob, source: Source, metadata: Metadata, plan: dict[str, Any], runner: TextRunner
) -> str:
    """Runs all stages; returns a sentence about the result."""
    lock, team = RunLock(job.folder), Team()

    def start() -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        _check_plan(job.folder, plan)

    def finish() -> str:
        assert counted is not None  # the first process
        lock.check()
        return _finished(job, metadata, counted, plan["pool"])

    try:
        team.only_first(start)
        processes.check_shared(job.folder / PLAN)
        with runner(job, source) as run:
            _in_ranges(job, team, run, TextWorker.match, MATCHES, "matching")
            counted = team.only_first(lambda: _counted(job, metadata))
            _in_ranges(job, team, run, TextWorker.draw, DRAWS, "drawing")
        return team.first(finish)
    finally:
        if processes.is_first():
            lock.release()


def _finished(job: TextJob, metadata: Metadata, counted: _Counted, pool: Mapping[str, Any]) -> str:
    """Writes the results; returns a sentence about them."""
    numbers = _write_results(job, metadata, counted, _kept(job), pool)
    remove_folder(job.folder / DRAWS)
    return (
        f"{job.folder}: {numbers['kept']} of {numbers['examples']} examples are kept; "
        f"{numbers['matched']} match an entry."
    )


def _plan(config: CurationConfig, metadata: Metadata, pool: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "pool": dict(pool),
        "metadata": metadata.fingerprint,
        "seed": config.seed,
        "range_size": config.balance.range_size,
    }


def _check_plan(folder: Address, plan: dict[str, Any]) -> None:
    """Writes the plan, or compares it with the one that the folder holds.

    Raises:
        UserError: the folder holds the results for something else.
    """
    file, cure = folder / PLAN, "give another --output, or remove that folder"
    if not retried(file.is_file):
        write_text(file, json.dumps(plan, indent=2) + "\n")
        return
    stored = read_json(file, "the plan of a balancing", cure)
    if stored.keys() != plan.keys() or stored["format"] != _FORMAT:
        raise UserError(f"{file} is no plan of this version ({_FORMAT}); {cure}.")
    if changes := difference(stored["pool"], plan["pool"]):
        raise UserError(f"{folder} was made for another pool: {changes}; {cure}.")
    if stored["metadata"] != plan["metadata"]:
        raise UserError(f"{folder} was made with other metadata; {cure}.")
    for name, key in (("seed", "config.seed"), ("range_size", "config.balance.range_size")):
        if stored[name] != plan[name]:
            raise UserError(
                f"{folder} was made with {key}={stored[name]}, expected {plan[name]} as in this "
                f"command; set {key}={stored[name]}, or {cure}."
            )


def _in_ranges(
    job: TextJob, team: Team, run: RangeRunner, action: RangeAction, kind: str, title: str
) -> None:
    """Runs an action for the ranges without a file, and waits for the other processes."""
    mine, absent = team.mine(job.ranges), set(job.missing(kind))
    missing = [number for number in mine if number in absent]
    total, left = (sum(len(job.span(number)) for number in part) for part in (mine, missing))
    with progress_bar(total, total - left, "example", title, unit_scale=True) as bar:
        for examples in run(action, missing):
            bar.update(examples)
    team.wait()


def _counted(job: TextJob, metadata: Metadata) -> _Counted:
    """Adds up the counts of all ranges, and stores the thresholds for the draws.

    Raises:
        UserError: no caption matches.
    """
    matched = unreadable = 0

    def parts() -> Iterator[SparseCounts]:
        nonlocal matched, unreadable
        for number in watched(job.ranges, "range", "counting"):
            part = read_matched(job, number)
            matched += int((part.matches.lengths > 0).sum())
            unreadable += part.unreadable
            yield part.counted, part.counts

    counts = merge(parts(), len(metadata.entries))
    if not matched:
        raise UserError(
            f"no caption of the pool matches an entry of {job.metadata}, expected many; give "
            "metadata in the language of the captions, or correct config.data."
        )
    thresholds = _thresholds(job.config, metadata, counts)
    _write_thresholds(job, counts / thresholds)
    return _Counted(counts, thresholds, matched, unreadable)


def _thresholds(
    config: CurationConfig, metadata: Metadata, counts: Int64[np.ndarray, " e"]
) -> Int64[np.ndarray, " e"]:
    """Returns the threshold t of each entry: that of its language."""
    settings, starts = config.balance, metadata.starts
    by_language = thresholds_by_language(
        np.split(counts, starts[1:-1]), settings.tail_share, 0, settings.threshold
    )
    return np.repeat(np.array(by_language, np.int64), np.diff(starts))


def _write_thresholds(job: TextJob, excess: Float64[np.ndarray, " e"]) -> None:
    """Stores count / t; removes draws that an interrupted run has made with other thresholds."""
    file = job.thresholds_file
    if retried(file.is_file) and np.array_equal(read_npz(file)["excess"], excess):
        return
    remove_folder(file.parent)
    write_npz(file, excess=excess)


def _kept(job: TextJob) -> Bool[np.ndarray, " n"]:
    """Returns which examples are kept: 1 byte per example, and 8 more with a target."""
    target = job.config.target
    values = np.zeros(job.examples, np.float64 if target else bool)
    for number in watched(job.ranges, "range", "reading draws"):
        span, factors = job.span(number), read_factors(job, number)
        values[span.start : span.stop] = factors if target else sample(factors)
    return sample(values, target) if target else values


def _write_results(
    job: TextJob,
    metadata: Metadata,
    counted: _Counted,
    is_kept: Bool[np.ndarray, " n"],
    pool: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes all files; returns the summary."""
    folder, config = job.folder, job.config
    (folder / KEPT).unlink(missing_ok=True)
    after = np.zeros(len(counted.counts), np.int64)
    for number in watched(job.ranges, "range", "counting kept captions"):
        span, part = job.span(number), read_matched(job, number)
        rows = np.repeat(is_kept[span.start : span.stop], part.matches.lengths)
        after += np.bincount(part.matches.entries[rows], minlength=len(after))
    _write_entries(folder / ENTRIES, metadata, counted, after)
    numbers = {
        "examples": job.examples,
        "kept": int(is_kept.sum()),
        "matched": counted.matched,
        "unreadable": counted.unreadable,
        "target": config.target,
        "thresholds": {
            language: int(counted.thresholds[start])
            for language, start in zip(metadata.languages, metadata.starts, strict=False)
        },
    }
    write_text(folder / SUMMARY, json.dumps(numbers, indent=2) + "\n")
    origin = {"text": {"metadata": metadata.fingerprint, "seed": config.seed, **numbers}}
    write_kept(folder / KEPT, is_kept.view(np.uint8), pool, origin)
    return numbers


def _write_entries(
    file: Address, metadata: Metadata, counted: _Counted, after: Int64[np.ndarray, " e"]
) -> None:
    """Writes the table of entries."""
    languages = np.repeat(metadata.languages, np.diff(metadata.starts))
    chances = probabilities(counted.counts, t=counted.thresholds)
    with new_file(file) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("\t".join(COLUMNS) + "\n")
        for row in zip(metadata.entries, languages, counted.counts, after, chances, strict=True):
            entry, language, captions, kept, chance = row
            stream.write(f"{entry}\t{language}\t{captions}\t{kept}\t{chance:.6g}\n")
