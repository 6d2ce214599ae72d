"""ArrayRecord sources: written data is read back, and bad files are named."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from small_sets import examples, png

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.array_records import ArrayRecordSource, write_array_record
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Example, readable_captions
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.pipeline import ImageTextExample
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.tasks import KINDS


def test_array_record_round_trips(tmp_path):
    path = tmp_path / "data.array_record"
    assert write_array_record(path, examples(5)) == 5
    source = ArrayRecordSource(path)
    assert [source[i] for i in range(len(source))] == examples(5)
    assert pickle.loads(pickle.dumps(source))[3] == examples(5)[3]


def test_a_file_that_changed_since_it_was_opened_is_named(tmp_path):
    path = tmp_path / "data.array_record"
    write_array_record(path, examples(5))
    source = ArrayRecordSource(path)
    stored = pickle.dumps(source)
    write_array_record(path, examples(9)[4:])
    with pytest.raises(UserError, match="data.array_record has changed since this command opened"):
        pickle.loads(stored)  # as a decoding worker does
    path.unlink()
    with pytest.raises(UserError, match="has changed since"):
        pickle.loads(stored)


def test_array_record_files_are_found_by_folder_and_by_glob(tmp_path):
    write_array_record(tmp_path / "b.array_record-1", examples(4)[2:])
    write_array_record(tmp_path / "a.array_record-0", examples(4)[:2])
    for path in (tmp_path, tmp_path / "*.array_record-*"):
        source = ArrayRecordSource(path)
        assert [source[i] for i in range(len(source))] == examples(4)


def test_array_record_keeps_the_requested_split(tmp_path):
    write_array_record(tmp_path / "0.array_record", examples(4)[:2], split="test")
    write_array_record(tmp_path / "1.array_record", examples(4)[2:], split="train")
    source = ArrayRecordSource(tmp_path, split="train")
    assert [source[i] for i in range(len(source))] == examples(4)[2:]
    with pytest.raises(
        UserError, match="no example in the split 'val', its examples name test, train"
    ):
        ArrayRecordSource(tmp_path, split="val")


def test_pixels_are_written_without_loss(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_array_record(tmp_path / "x.array_record", [Example(pixels, ("a",), "k")])
    image = ArrayRecordSource(tmp_path)[0].image
    np.testing.assert_array_equal(decode_image(image), pixels)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    def broken():
        yield examples(1)[0]
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        write_array_record(tmp_path / "x.array_record", broken())
    assert not list(tmp_path.iterdir())


def test_missing_truncated_empty_or_foreign_array_record_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no ArrayRecord file was found at"):
        ArrayRecordSource(tmp_path)
    with pytest.raises(UserError, match="no ArrayRecord file was found at"):
        ArrayRecordSource(tmp_path / "nothing*")
    path = tmp_path / "x.array_record"
    write_array_record(path, examples(2000))
    whole = path.read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"garbage!" * 20000):
        path.write_bytes(data)
        with pytest.raises(UserError, match="cannot be read as ArrayRecord"):
            ArrayRecordSource(path)
    write_array_record(path, [])
    with pytest.raises(UserError, match="is empty"):
        ArrayRecordSource(path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"\xc1", "record 0: this is not a msgpack map"),
        (b"\x81\xa3key\xa1k", "record 0: this record is {'key': 'k'}"),
    ],
)
def test_foreign_records_are_a_user_error(tmp_path, record, message):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "x.array_record"), "group_size:1")
    writer.write(record)
    writer.close()
    with pytest.raises(UserError, match=message):
        ArrayRecordSource(tmp_path)


def test_array_record_caption_that_is_not_text_is_a_user_error(tmp_path):
    write_array_record(tmp_path / "x.array_record", [Example(png(0), (3,), "k")])  # type: ignore
    with pytest.raises(UserError, match=r"record 0: caption 1 is 3 \(int\), expected a text"):
        ArrayRecordSource(tmp_path)


@pytest.fixture
def damaged(tmp_path):
    """Writes 40 records of 5 kB, and changes a byte in one of them."""
    pixels = [np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8) for i in range(40)]
    path = tmp_path / "x.array_record"
    whole = [Example(array, (f"noise {i}",), f"key {i}") for i, array in enumerate(pixels)]
    write_array_record(path, whole, split="train")
    content = bytearray(path.read_bytes())
    content[70_000] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


def test_a_damaged_record_is_a_bad_image(damaged, caplog):
    source = ArrayRecordSource(damaged)
    assert len(source) == 40
    bad = [index for index in range(40) if not readable_captions(source, index)]
    (bad_index,) = bad
    for read in (source.__getitem__, source.captions, source.key):
        with pytest.raises(BadImageError, match=f"x.array_record, record {bad_index}: .*mismatch"):
            read(bad_index)
    config = DataConfig(image_size=8, max_bad_fraction=0.05)
    make = ImageTextExample(source, config, lambda _: np.zeros(1, np.int32))
    example = make(Draw(0, bad_index, 0, 0))
    assert int(example["skipped"]) == 1
    assert int(example["index"]) != bad_index
    assert data_identity(source, 2)["examples"] == 40
    assert len(ArrayRecordSource(damaged, split="train")) == 39
    assert "skipped a record with an unknown split" in caplog.text
    with pytest.raises(UserError, match=f"example {bad_index} cannot be evaluated"):
        KINDS["retrieval"].contents(source)
