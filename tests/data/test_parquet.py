"""Parquet files: read in place, at any row; damage is named and counted."""

from __future__ import annotations

import itertools
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_sets import png

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data import parquet
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.pipeline import TrainingIterator, make_training_iterator
from dinotxt_jax.data.sources import open_labelled, open_source
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    parquet._opened.cache_clear()
    parquet._KEPT.__init__()  # type: ignore[misc]


def settings(path: Path | Address, **changes: Any) -> DataConfig:
    return DataConfig(**({"source": "parquet", "path": str(path)} | changes))


def write(file: Path, numbers: range, group: int = 3, **columns: Any) -> Path:
    """Writes pairs in row groups of `group` rows, with other columns in place of the usual."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image": [png(number) for number in numbers],
            "caption": [f"text {number}" for number in numbers],
        }
        | columns
    )
    options = {"write_page_checksum": True, "use_dictionary": False, "compression": "none"}
    pq.write_table(table, file, row_group_size=group, **options)
    return file


def test_rows_of_several_files_and_groups_are_read_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / "data/b.parquet", range(7, 9))
    write(tmp_path / "data/a.parquet", range(7))
    for path in (tmp_path / "data", tmp_path / "data/*.parquet"):
        source = open_source(settings(path))
        assert len(source) == 9
        for index in (8, 0, 3, 6, 7, 2):
            assert source[index].image == png(index)
            assert source[index].captions == source.captions(index) == (f"text {index}",)
        assert [source.key(index) for index in (0, 6, 7)] == [
            "a.parquet[0]",
            "a.parquet[6]",
            "b.parquet[0]",
        ]
        assert pickle.loads(pickle.dumps(source))[8] == source[8]


def test_images_are_structs_bytes_or_paths(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(png(1))
    structs = [{"bytes": png(0), "path": "a.png"}, {"bytes": None, "path": "images/1.png"}]
    paths = ["images/1.png"] * 2
    for number, images in enumerate((structs, paths)):
        file = write(tmp_path / f"{number}.parquet", range(2), image=images)
        assert open_source(settings(file))[1].image == png(1)
    file = write(tmp_path / "elsewhere/a.parquet", range(2), image=["1.png"] * 2)
    assert open_source(settings(file, image_root=str(tmp_path / "images")))[0].image == png(1)
    with pytest.raises(BadImageError, match=r"1\.png of a\.parquet\[0\] cannot be read: No such"):
        open_source(settings(file))[0]


def test_labels_have_the_names_that_the_library_datasets_stores(tmp_path: Path) -> None:
    feature = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table({"image": [png(0), png(1)], "label": [1, 0]})
    described = json.dumps({"info": {"features": feature}})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": described}), tmp_path / "a.parquet"
    )
    source = open_labelled(settings(tmp_path / "a.parquet"))
    assert source.class_names == ("cat", "dog")
    assert [source.labels(index) for index in range(2)] == [(1,), (0,)]
    assert source[1].image == png(1)


def test_columns_are_named_where_they_are_missing(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", range(2))
    with pytest.raises(UserError, match=r"has the columns image, caption, expected photo; set"):
        open_source(settings(file, image_key="photo"))
    with pytest.raises(UserError, match=r"expected alt; set config\.data\.caption_key"):
        open_source(settings(file, caption_key="alt"))
    write(tmp_path / "b.parquet", range(2), more=[1, 2])
    with pytest.raises(UserError, match=r"b\.parquet has the columns .*, expected image, caption"):
        open_source(settings(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet file at all", b"PAR1" * 5])
def test_files_of_another_kind_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file \("):
        open_source(settings(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match=r"no Parquet file was found at .*; correct config\.data"):
        open_source(settings(tmp_path / "b.parquet"))


def test_no_rows_and_no_usable_captions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty, expected at least one example"):
        open_source(settings(write(tmp_path / "a.parquet", range(0))))
    with pytest.raises(UserError, match=r"a\.parquet\[1\]: .* expected a text that is not blank"):
        open_source(settings(write(tmp_path / "a.parquet", range(2), caption=[" ", ""])))


def test_a_row_group_that_does_not_decode_counts_as_bad_images(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", range(9))
    chunk = pq.ParquetFile(file).metadata.row_group(1).column(0)
    content = bytearray(file.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 9] ^= 0xFF
    file.write_bytes(content)
    source = open_source(settings(file))
    for index in (3, 5):
        with pytest.raises(BadImageError, match=rf"a\.parquet\[{index}\] cannot be read \(row gr"):
            source[index]
    assert source[2].image == png(2)
    assert source[6].image == png(6)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", range(9))
    source = open_source(settings(file))
    write(file, range(8))
    with pytest.raises(UserError, match=r"a\.parquet has changed since this command opened it"):
        source[8]


def test_threads_decode_a_group_once_and_old_groups_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(settings(write(tmp_path / "a.parquet", range(60), group=20)))
    decoded: list[tuple[int, str]] = []
    original = pq.ParquetFile.read_row_group

    def counting(file: Any, group: int, columns: list[str], **options: Any) -> Any:
        decoded.append((group, columns[0]))
        return original(file, group, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda index: source[index].image, range(20, 40)))
    assert images == [png(index) for index in range(20, 40)]
    assert sorted(decoded) == [(1, "caption"), (1, "image")]
    monkeypatch.setattr(parquet, "_MOST_KEPT", 1)
    parquet._KEPT.__init__()  # type: ignore[misc]
    for index in (0, 25, 0):
        source.captions(index)
    assert decoded[2:] == [(0, "caption"), (1, "caption"), (0, "caption")]


def test_large_row_groups_are_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parquet, "_LARGE_GROUP", 100)
    open_source(settings(write(tmp_path / "a.parquet", range(9), group=9)))
    assert "is fast with about 100 images per row group" in caplog.text


def test_training_batches_are_those_of_other_sources_and_resume(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(20))
    source = open_source(settings(tmp_path))

    def iterator() -> TrainingIterator:
        def make(draw: Draw) -> dict[str, np.ndarray]:
            level = decode_image(source[draw.index].image).getpixel((0, 0))[0]
            return {"level": np.asarray(level)}

        return make_training_iterator(source, make, batch_size=4, seed=3, threads=2)

    batches = iterator()
    first = [next(batches)["level"].tolist() for _ in range(3)]
    state = batches.get_state()
    expected = [next(batches)["level"].tolist() for _ in range(4)]
    assert sorted(itertools.chain(*first, *expected[:2])) == list(range(20))
    resumed = iterator()
    resumed.set_state(state)
    assert [next(resumed)["level"].tolist() for _ in range(4)] == expected


def test_files_in_a_bucket_are_read_by_range(tmp_path: Path, bucket: Address) -> None:
    file = write(tmp_path / "data/a.parquet", range(9))
    (bucket / "data/a.parquet").write_bytes(file.read_bytes())
    local, remote = open_source(settings(file)), open_source(settings(bucket / "data"))
    assert [remote[index] for index in (8, 0, 4)] == [local[index] for index in (8, 0, 4)]
    assert data_identity(remote, 2) == data_identity(local, 2)
    assert pickle.loads(pickle.dumps(remote))[7] == local[7]
    assert list((tmp_path / "cache/ranges").rglob("*"))
    assert not (tmp_path / "cache/files").exists()
