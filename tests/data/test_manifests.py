"""ArrayRecord sources notice that ingested shards are missing, exchanged, or from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_sets import examples

from dinotxt_jax.config import DataConfig, IngestionConfig
from dinotxt_jax.data.array_records import ArrayRecordSource, write_array_record
from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.run import ingest

NAMES = [f"pairs-{shard:05d}-of-00003.array_record" for shard in range(3)]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes three shards of 4, 4 and 2 examples."""
    folder = tmp_path_factory.mktemp("ingested")
    write_array_record(folder / "source.array_record", examples(10))
    data = DataConfig(source="array_record", path=str(folder / "source.array_record"), threads=0)
    config = IngestionConfig(data=data, shard_size=4, workers=1)
    ingest(config, str(folder / "out"))
    return folder / "out"


@pytest.fixture
def folder(ingested: Path, tmp_path: Path) -> Path:
    """Returns a copy that a test may change."""
    return Path(shutil.copytree(ingested, tmp_path / "out"))


def test_whole_shards_are_read(folder: Path) -> None:
    for path in (folder, folder / "*.array_record", folder / "pairs-*"):
        source = ArrayRecordSource(path)
        assert [source[i] for i in range(len(source))] == examples(10)
    assert len(ArrayRecordSource(folder / NAMES[2])) == 2
    assert len(ArrayRecordSource(folder / "*-0000[01]-of-*")) == 8


def test_a_missing_shard_is_refused(folder: Path) -> None:
    (folder / NAMES[1]).unlink()
    for path in (folder, folder / "*.array_record", folder / "pairs-0000[01]*"):
        with pytest.raises(UserError, match=rf"lacks 1 of 3 shards .* such as {NAMES[1]}; restore"):
            ArrayRecordSource(path)
    assert len(ArrayRecordSource(folder / NAMES[0])) == 4
    assert len(ArrayRecordSource(folder / "pairs-0000[02]*")) == 6


def test_a_shard_with_other_contents_is_refused(folder: Path) -> None:
    write_array_record(folder / NAMES[0], examples(3))
    with pytest.raises(UserError, match=rf"{NAMES[0]} has \d+ bytes and 3 records, expected \d+"):
        ArrayRecordSource(folder)
    assert len(ArrayRecordSource(folder / NAMES[1])) == 4


def test_a_file_from_elsewhere_is_refused(folder: Path) -> None:
    write_array_record(folder / "more.array_record", examples(3))
    with pytest.raises(UserError, match=r"more.array_record is not among the 3 shards that"):
        ArrayRecordSource(folder)


def test_an_unfinished_ingestion_is_refused(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="holds an ingestion that has not finished, expected manif"):
        ArrayRecordSource(folder / NAMES[0])


def test_a_later_version_and_a_damaged_manifest_are_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(UserError, match="has version 2, expected 1; update dinotxt_jax"):
        ArrayRecordSource(folder)
    (folder / "manifest.json").write_text('{"format": ')
    with pytest.raises(UserError, match="manifest.json is not JSON"):
        ArrayRecordSource(folder)


def test_files_of_other_programs_with_the_same_names_are_ignored(tmp_path: Path) -> None:
    write_array_record(tmp_path / "a.array_record", examples(3))
    (tmp_path / "manifest.json").write_text('{"files": []}')
    assert len(ArrayRecordSource(tmp_path)) == 3
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "ingestion.json").write_text("{}")
    assert len(ArrayRecordSource(tmp_path)) == 3
