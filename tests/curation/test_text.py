"""Balancing a pool: equal kept sets for any workers, order and interruption, and bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
from small_sets import write_index

from dinotxt_jax import UserError
from dinotxt_jax.config import CurationConfig, DataConfig
from dinotxt_jax.config.curation import BalanceConfig
from dinotxt_jax.curation.languages import LanguageIdentifier
from dinotxt_jax.curation.metadata import Metadata, write_metadata
from dinotxt_jax.curation.report_text import read_entry_counts
from dinotxt_jax.curation.runners import in_processes
from dinotxt_jax.curation.text_job import MetadataMatcher, TextJob, candidate
from dinotxt_jax.curation.text_step import ENTRIES, KEPT, SUMMARY, balance_text
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.kept import read_kept
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.storage.addresses import Address

ANIMALS = ["dog", "cat", "horse", "cow", "sheep", "zebra", "okapi", "quokka"]
PAIRS = 600


def captions() -> list[str]:
    """Returns captions with animals by Zipf's law, and some without."""
    chances = 1 / np.arange(1, len(ANIMALS) + 1) ** 2
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(ANIMALS), (PAIRS, 2), p=chances / chances.sum())
    texts = [f"photo {n}: a {ANIMALS[a]} and a {ANIMALS[b]}" for n, (a, b) in enumerate(drawn)]
    return ["nothing known" if n % 10 == 0 else text for n, text in enumerate(texts)]


def write_pool(folder: Path, texts: list[Any]) -> DataConfig:
    folder.mkdir(exist_ok=True)
    lines = [{"image": f"{n}.png", "captions": text} for n, text in enumerate(texts)]
    return DataConfig(source="jsonl", path=str(write_index(folder, *lines)), threads=2)


@pytest.fixture
def metadata(tmp_path: Path) -> str:
    (tmp_path / "animals.txt").write_text("\n".join([*ANIMALS, "unicorn"]) + "\n")
    return str(tmp_path / "animals.txt")


@pytest.fixture
def config(tmp_path: Path) -> CurationConfig:
    balance = BalanceConfig(range_size=70, threshold=20)
    data = write_pool(tmp_path / "pool", captions())
    return CurationConfig(data=data, workers=1, balance=balance)


def kept_keys(config: CurationConfig, folder: Path) -> set[str]:
    source = open_source(dataclasses.replace(config.data, kept=str(folder / KEPT)))
    return {source.key(index) for index in range(len(source))}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_a_pool_is_balanced(config: CurationConfig, metadata: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = balance_text(config, [metadata], out, in_processes)
    counts = read_entry_counts(out / ENTRIES)
    texts = captions()
    assert counts.before.tolist() == [sum(f" {a} " in f"{t} " for t in texts) for a in ANIMALS] + [
        0
    ]
    keys = kept_keys(config, out)
    kept = [text for n, text in enumerate(texts) if f"{n}.png" in keys]
    assert counts.after.tolist() == [sum(f" {a} " in f"{t} " for t in kept) for a in ANIMALS] + [0]
    assert f"{len(keys)} of 600 examples are kept; 540 match an entry." in message
    # Rare animals keep all captions; "dog" keeps about 20, and those that "cat" and others keep.
    rare = counts.before < 20
    assert rare.sum() > 2
    assert (counts.after[rare] == counts.before[rare]).all()
    assert counts.after[0] < counts.before[0] / 3
    assert not any("nothing" in text for text in kept)
    summary = json.loads((out / SUMMARY).read_text())
    assert summary["thresholds"] == {"animals": 20}
    assert sorted(file.name for file in out.iterdir() if file.name[0] != ".") == [
        *("entries.tsv", "kept.npz", "matches", "plan.json", "summary.json")
    ]


def test_processes_ranges_and_order_do_not_change_the_kept_set(
    config: CurationConfig, metadata: str, tmp_path: Path
) -> None:
    balance_text(config, [metadata], tmp_path / "one", in_processes)
    balance_text(dataclasses.replace(config, workers=2), [metadata], tmp_path / "two", in_processes)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    expected = kept_keys(config, tmp_path / "one")
    balance = dataclasses.replace(config.balance, range_size=600)
    balance_text(
        dataclasses.replace(config, balance=balance), [metadata], tmp_path / "large", in_processes
    )
    assert kept_keys(config, tmp_path / "large") == expected
    # The same pairs in another order.
    lines = Path(config.data.path).read_text().splitlines()
    Path(config.data.path).write_text("\n".join(lines[::-1]))
    balance_text(config, [metadata], tmp_path / "reverse", in_processes)
    assert kept_keys(config, tmp_path / "reverse") == expected
    seed = dataclasses.replace(config, seed=1)
    balance_text(seed, [metadata], tmp_path / "seed", in_processes)
    assert kept_keys(config, tmp_path / "seed") != expected


def test_targets_are_exact_and_use_the_stored_matches_again(
    config: CurationConfig, metadata: str, tmp_path: Path
) -> None:
    before: set[str] = set()
    times: list[dict[Path, int]] = []
    for target in (50, 200, 540):
        out = tmp_path / "out"
        balance_text(dataclasses.replace(config, target=target), [metadata], out, in_processes)
        keys = kept_keys(config, out)
        assert len(keys) == target
        assert before < keys
        before = keys
        times.append({file: file.stat().st_mtime_ns for file in (out / "matches").iterdir()})
    assert len(times[0]) == 9
    assert times[0] == times[1] == times[2]
    with pytest.raises(UserError, match=r"541, expected at most the 540 of 600 examples whose cap"):
        balance_text(dataclasses.replace(config, target=541), [metadata], out, in_processes)
    with pytest.raises(UserError, match=r"target is 601, expected at most the 600 examples of con"):
        balance_text(
            dataclasses.replace(config, target=601), [metadata], tmp_path / "no", in_processes
        )
    assert not (tmp_path / "no").exists()


class _InterruptedError(Exception):
    pass


def interrupted(after: int) -> Callable[..., AbstractContextManager[Any]]:
    """Returns a runner that fails after some ranges, in each stage in reverse order."""

    @contextmanager
    def runner(job: TextJob, source: Any) -> Iterator[Any]:
        with in_processes(job, source) as run:

            def some(action: Any, ranges: list[int]) -> Iterator[int]:
                yield from run(action, ranges[::-1][:after])
                if len(ranges) > after:
                    raise _InterruptedError

            yield some

    return runner


def test_an_interrupted_run_continues_to_the_same_bytes(
    config: CurationConfig, metadata: str, tmp_path: Path
) -> None:
    balance_text(config, [metadata], tmp_path / "whole", in_processes)
    out = tmp_path / "out"
    for kind, count in (("matches", 5), ("draws", 6)):
        with pytest.raises(_InterruptedError):
            balance_text(config, [metadata], out, interrupted(5))
        if kind == "draws":  # an earlier call has completed the matches
            assert len(list((out / "matches").iterdir())) == 9
        assert len(list((out / kind).iterdir())) == count
        assert not (out / KEPT).exists()
    # The rest is drawn with another threshold: nothing of the first draws may be used.
    other = dataclasses.replace(config.balance, threshold=50)
    changed = dataclasses.replace(config, balance=other)
    balance_text(changed, [metadata], out, in_processes)
    balance_text(changed, [metadata], tmp_path / "changed", in_processes)
    assert contents(out) == contents(tmp_path / "changed")
    balance_text(config, [metadata], out, in_processes)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", ["pool", "captions", "metadata", "seed", "range_size"])
def test_a_folder_for_something_else_is_refused(
    change: str, config: CurationConfig, metadata: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    balance_text(config, [metadata], out, in_processes)
    before = contents(out)
    message = {
        "pool": r"was made for another pool: 600 examples there, 599 here; give another --output",
        "captions": r"another pool: 600 examples, but in another order or with other keys or capti",
        "metadata": r"was made with other metadata; give another --output, or remove that folder",
        "seed": r"was made with config.seed=0, expected 7 as in this command; set config.seed=0",
        "range_size": r"was made with config.balance.range_size=70, expected 71 as in this command",
    }[change]
    if change == "pool":
        lines = Path(config.data.path).read_text().splitlines()
        Path(config.data.path).write_text("\n".join(lines[1:]))
    elif change == "captions":  # the same keys
        lines = Path(config.data.path).read_text().splitlines()
        lines[7] = json.dumps(json.loads(lines[7]) | {"captions": "another caption"})
        Path(config.data.path).write_text("\n".join(lines) + "\n")
    elif change == "metadata":
        Path(metadata).write_text("dog\n")
    elif change == "seed":
        config = dataclasses.replace(config, seed=7)
    else:
        config = dataclasses.replace(config, balance=BalanceConfig(range_size=71))
    with pytest.raises(UserError, match=message):
        balance_text(config, [metadata], out, in_processes)
    assert contents(out) == before


def test_damaged_matches_are_named(config: CurationConfig, metadata: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    balance_text(config, [metadata], out, in_processes)
    before = contents(out)
    file = out / "matches" / "000003.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"000003.npz is damaged or missing .*; remove it and run"):
        balance_text(config, [metadata], out, in_processes)
    file.unlink()
    balance_text(config, [metadata], out, in_processes)
    assert contents(out) == before


def test_a_pool_without_any_match_is_refused(config: CurationConfig, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("unicorn\n")
    with pytest.raises(UserError, match=r"no caption of the pool matches an entry of .*other.txt"):
        balance_text(config, [str(tmp_path / "other.txt")], tmp_path / "out", in_processes)
    assert not (tmp_path / "out" / KEPT).exists()


def test_a_damaged_plan_is_named(config: CurationConfig, metadata: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for content, message in (("{", "is not JSON"), ('{"format": 1}', "is no plan of this version")):
        (tmp_path / "out" / "plan.json").write_text(content)
        with pytest.raises(UserError, match=rf"plan.json {message} .*; give another --output, or"):
            balance_text(config, [metadata], tmp_path / "out", in_processes)


def test_wrong_paths_end_in_a_sentence(
    config: CurationConfig, metadata: str, tmp_path: Path
) -> None:
    for arguments, message in (
        ([], r"0 paths are given, expected the metadata after text"),
        ([metadata, metadata], r"2 paths are given"),
        ([str(tmp_path / "no")], r"there is no metadata in .*curate metadata --output="),
    ):
        with pytest.raises(UserError, match=message):
            balance_text(config, arguments, tmp_path / "out", in_processes)
    with pytest.raises(UserError, match=r"animals.txt is a file, expected a folder for results"):
        balance_text(config, [metadata], Path(metadata), in_processes)
    assert not (tmp_path / "out").exists()


def test_an_example_with_several_captions_is_one_candidate() -> None:
    texts = ["a dog", "a cat", "a cow"]
    drawn = [candidate(f"key {n}", texts, 0) for n in range(600)]
    chosen = [pair.caption for pair in drawn]
    assert all(140 < chosen.count(text) < 260 for text in texts)  # 200, and five deviations of 11.5
    assert [candidate(f"key {n}", texts[::-1], 0) for n in range(600)] == drawn
    assert candidate("key", ["a dog"], 0) == candidate("key", ["a dog"] * 2, 0)
    assert candidate("a", ["b"], 0).name != candidate("", ["ab"], 0).name


def test_examples_that_cannot_be_read_are_counted_and_dropped(
    config: CurationConfig, metadata: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dinotxt_jax.curation.text_step as step

    source = open_source(config.data)

    class Damaged:
        def __len__(self) -> int:
            return len(source)

        def key(self, index: int) -> str:
            if index % 100 == 5:
                raise BadImageError("damaged")
            return source.key(index)

        def captions(self, index: int) -> tuple[str, ...]:
            return source.captions(index)

    monkeypatch.setattr(step, "open_source", lambda config: Damaged())
    balance_text(config, [metadata], tmp_path / "out", in_processes)
    assert json.loads((tmp_path / "out" / SUMMARY).read_text())["unreadable"] == 6
    rows = read_kept(tmp_path / "out" / KEPT, "x").rows.counts(600)
    assert rows[5::100].sum() == 0


def test_captions_match_the_list_of_their_language() -> None:
    metadata = Metadata(("en", "de"), (("garden", "the"), ("Garten", "garden")))
    texts = [
        "the children are playing in the garden",
        "die Kinder spielen im Garten oder garden",
        "les enfants jouent dans le jardin garden",
    ]
    identify = LanguageIdentifier(metadata.languages)
    assert [identify(text) for text in texts] == ["en", "de", "other"]
    matches = MetadataMatcher(metadata).match(texts)
    assert [matches.of(row) for row in range(3)] == [[0, 1], [2, 3], []]
    with pytest.raises(UserError, match=r"list for the language 'xx', expected one of ace, af"):
        MetadataMatcher(Metadata(("en", "xx"), (("a",), ("b",))))


def test_each_language_has_a_threshold(tmp_path: Path) -> None:
    english = [f"the children are playing in the garden with number {n % 20}" for n in range(40)]
    german = [f"die Kinder spielen im Garten mit der Nummer {n}" for n in range(8)]
    lists = {"en": {"x": ["garden", "19"]}, "de": {"x": ["Garten", "7"]}}
    write_metadata(tmp_path / "metadata", lists, {})
    config = CurationConfig(
        data=write_pool(tmp_path / "pool", english + german),
        workers=1,
        balance=BalanceConfig(tail_share=0.1),
    )
    balance_text(config, [str(tmp_path / "metadata")], tmp_path / "out", in_processes)
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())
    # Rare entries: in English one with two captions, in German one with a single caption.
    assert summary["thresholds"] == {"en": 2, "de": 1}
    counts = read_entry_counts(tmp_path / "out" / ENTRIES)
    assert counts.entries == ["garden (en)", "19 (en)", "Garten (de)", "7 (de)"]
    assert counts.before.tolist() == [40, 2, 8, 1]


@pytest.mark.slow
def test_a_killed_worker_ends_in_a_sentence(
    config: CurationConfig, metadata: str, tmp_path: Path
) -> None:
    @contextmanager
    def runner(job: TextJob, source: Any) -> Iterator[Any]:
        with in_processes(job, source) as run:
            yield lambda action, ranges: run(_end, ranges)

    two = dataclasses.replace(config, workers=2)
    with pytest.raises(
        UserError, match=r"a worker process was killed, .*; lower config.workers or"
    ):
        balance_text(two, [metadata], tmp_path / "out", runner)
    assert not (tmp_path / "out" / KEPT).exists()
    balance_text(config, [metadata], tmp_path / "out", in_processes)
    assert len(kept_keys(config, tmp_path / "out")) > 0


def _end(_: Any, number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.slow
def test_a_killed_command_continues(config: CurationConfig, metadata: str, tmp_path: Path) -> None:
    arguments = [
        *("-m", "dinotxt_jax.curate", "text", metadata, f"--output={tmp_path / 'out'}"),
        *("--config.data.source=jsonl", f"--config.data.path={config.data.path}"),
        *("--config.balance.range_size=3", "--config.balance.threshold=20", "--config.workers=1"),
    ]
    env = commands.environment(DINOTXT_CACHE=str(tmp_path / "cache"))
    process = commands.Process(
        arguments, cwd=tmp_path, env=env, stdout=tmp_path / "log", stderr=tmp_path / "errors"
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("out/matches/[0-9]*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, (tmp_path / "errors").read_text()
    process.kill()
    process.wait(10)
    assert not (tmp_path / "out" / KEPT).exists()
    done = {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/matches/[0-9]*")}
    result = commands.run(arguments, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert "of 600 examples are kept; 540 match an entry." in result.stdout
    assert {file: file.stat().st_mtime_ns for file in done} == done
    balance_text(config, [metadata], tmp_path / "whole", in_processes)
    assert kept_keys(config, tmp_path / "out") == kept_keys(config, tmp_path / "whole")


@pytest.mark.slow
def test_a_bucket_gets_the_same_files_as_a_folder(
    config: CurationConfig, metadata: str, tmp_path: Path, bucket: Address
) -> None:
    balance_text(config, [metadata], tmp_path / "out", in_processes)
    local = contents(tmp_path / "out")
    (bucket / "animals.txt").write_text(Path(metadata).read_text())
    for _ in range(2):
        balance_text(config, [str(bucket / "animals.txt")], bucket / "out", in_processes)
        assert {name: (bucket / "out" / name).read_bytes() for name in local} == local
        assert not (bucket / "out" / "draws").exists()
        (bucket / "out" / "matches" / "000001.npz").unlink()
