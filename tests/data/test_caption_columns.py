"""Several caption columns in every source that has columns."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_sets import png, prepare_tfds

from dinotxt_jax import UserError
from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import ColumnCaptions, Source
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.selection import Selection
from dinotxt_jax.data.sources import open_source

# Three examples: both columns, only the second, and none.
ROWS: list[dict[str, Any]] = [
    {"alt": "alt 0", "synthetic": "synthetic 0"},
    {"alt": "", "synthetic": "synthetic 1"},
    {"alt": "", "synthetic": " "},
]


def _jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "a.png").write_bytes(png(1))
    file = folder / "index.jsonl"
    file.write_text("\n".join(json.dumps({"image": "a.png", **row}) for row in rows))
    return file


def _csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "index.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("file", "alt", "synthetic"))
        writer.writeheader()
        for number, row in enumerate(rows):
            (folder / f"{number}.png").write_bytes(png(number))
            writer.writerow({"file": f"{number}.png", **row})
    return file


def _parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"image": png(1), **row} for row in rows]), file)
    return file


def _webdataset(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "a.tar"
    with tarfile.open(file, "w") as archive:
        for number, row in enumerate(rows):
            members = {"png": png(number), "json": json.dumps(row).encode()}
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
    "webdataset": _webdataset,
}


def opened(name: str, folder: Path, rows: list[dict[str, Any]], key: str) -> Source:
    path = WRITERS[name](folder, rows)
    return open_source(DataConfig(source=name, path=str(path), caption_key=key))


@pytest.mark.parametrize("name", WRITERS)
def test_captions_of_several_columns_carry_their_columns(name: str, tmp_path: Path) -> None:
    source = opened(name, tmp_path, ROWS[:2], "synthetic+alt")
    first, second = source[0].captions, source.captions(1)
    assert isinstance(first, ColumnCaptions)
    assert isinstance(second, ColumnCaptions)
    assert dict(zip(first.columns, first, strict=True)) == ROWS[0]
    assert (second, second.columns) == (("synthetic 1",), ("synthetic",))
    assert opened(name, tmp_path, ROWS[:1], "alt").captions(0) == ("alt 0",)


@pytest.mark.parametrize("name", WRITERS)
def test_an_example_without_a_caption_in_any_column_is_bad(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        (UserError, BadImageError), match="have no caption, expected a caption in at le"
    ):
        opened(name, tmp_path, ROWS, "alt+synthetic").captions(2)


@pytest.mark.parametrize("name", WRITERS)
def test_a_column_that_does_not_exist_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="other"):
        opened(name, tmp_path, [{"alt": "a", "synthetic": ""}], "other+another")


def test_a_stand_in_for_the_default_column_keeps_its_weight(tmp_path: Path) -> None:
    path = str(_parquet(tmp_path, [{"caption": "c", "synthetic": "s"}]))
    config = DataConfig(
        source="parquet", path=path, caption_key="captions+synthetic", caption_weights=(1, 1)
    )
    captions = open_source(config).captions(0)
    used = {Selection(config).caption(Draw(0, index, 0, 0), captions) for index in range(50)}
    assert used == {"c", "s"}


def test_a_text_file_in_a_tar_is_a_column(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for ending, content in (("png", png(1)), ("txt", b"t"), ("json", b'{"synthetic": "s"}')):
            member = tarfile.TarInfo(f"0.{ending}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path = str(tmp_path / "a.tar")
    source = open_source(DataConfig(source="webdataset", path=path, caption_key="txt+synthetic"))
    assert source.captions(0) == ("t", "s")


def test_tfds_features_are_columns(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(3, 4, 3)),
        "alt": tfds.features.Text(),
        "synthetic": tfds.features.Sequence(tfds.features.Text()),
    }
    row = {"image": io.BytesIO(png(1)), "alt": "a", "synthetic": ["s", "t"]}
    folder = prepare_tfds(tmp_path, "columns", features, [row])
    settings = {"source": "tfds", "name": "columns", "split": "train", "path": folder}
    source = open_source(DataConfig(**settings, caption_key="alt+synthetic"))  # type: ignore[arg-type]
    captions = source.captions(0)
    assert isinstance(captions, ColumnCaptions)
    assert (captions, captions.columns) == (("a", "s", "t"), ("alt", "synthetic", "synthetic"))
