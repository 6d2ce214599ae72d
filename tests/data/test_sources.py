"""The three sources of `dinotxt_jax.data.sources` and what they say of bad input."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.sources import (
    ArrayRecordSource,
    Example,
    JsonlSource,
    TfdsSource,
    open_source,
    write_array_record,
)
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_index(folder: Path, *lines: object) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(png(i))
    return tmp_path


def test_jsonl_reads_images_captions_and_splits(folder):
    path = write_index(
        folder,
        {"image": "images/0.png", "captions": ["a dog", "ein Hündchen"], "split": "train"},
        "",
        {"image": "images/1.png", "caption": "a cat", "split": "test"},
        {"image": "images/2.png", "captions": ["a cow"], "split": "train"},
    )
    assert [example.key for example in map(JsonlSource(path).__getitem__, range(3))] == [
        "images/0.png",
        "images/1.png",
        "images/2.png",
    ]
    train = JsonlSource(path, split="train")
    assert len(train) == 2
    assert train[0] == Example(png(0), ("a dog", "ein Hündchen"), "images/0.png")
    assert train[1] == Example(png(2), ("a cow",), "images/2.png")
    assert JsonlSource(path, split="test")[0].captions == ("a cat",)


def test_jsonl_image_root_and_an_index_elsewhere(folder, tmp_path_factory):
    path = write_index(tmp_path_factory.mktemp("index"), {"image": "1.png", "caption": "x"})
    assert JsonlSource(path, image_root=folder / "images")[0].image == png(1)


def test_jsonl_source_is_read_by_threads_and_after_pickling(folder):
    lines = [{"image": f"images/{i % 3}.png", "caption": f"text {i}"} for i in range(300)]
    source = JsonlSource(write_index(folder, *lines))
    with ThreadPoolExecutor(8) as pool:
        texts = [example.captions[0] for example in pool.map(source.__getitem__, range(300))]
    assert texts == [f"text {i}" for i in range(300)]
    assert pickle.loads(pickle.dumps(source))[299] == source[299]


def test_jsonl_source_keeps_offsets_not_objects(folder):
    lines = [{"image": "images/0.png", "caption": "word " * 40} for _ in range(2000)]
    source = JsonlSource(write_index(folder, *lines))
    assert len(pickle.dumps(source)) < 2000 * 12 + 1000


def test_jsonl_missing_image_is_a_bad_image_when_it_is_read(folder):
    source = JsonlSource(write_index(folder, {"image": "images/9.png", "caption": "x"}))
    with pytest.raises(BadImageError, match=r"images/9\.png cannot be read: No such file"):
        source[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"captions\.jsonl:2: this line is not JSON \(Expecting property name"),
        ("[1, 2]", r"captions\.jsonl:2: this line is \[1, 2\] \(list\), expected a JSON object"),
        ({"caption": "x"}, r"captions\.jsonl:2: the field image is missing"),
        ({"image": 7, "caption": "x"}, r"captions\.jsonl:2: the field image is 7 \(int\)"),
        ({"image": "images/1.png"}, r"captions\.jsonl:2: the field captions is missing"),
        ({"image": "a", "captions": []}, r"captions\.jsonl:2: the list of captions is empty"),
        ({"image": "a", "captions": ["x", 17]}, r":2: caption 2 is 17 \(int\), expected a text"),
        ({"image": "a", "caption": None}, r":2: the captions are None \(NoneType\), expected a te"),
        ({"image": "a", "captions": {"en": "x"}}, r":2: the captions are \{'en': 'x'\} \(dict\)"),
        ({"image": "a", "captions": ["  "]}, r":2: caption 1 is '  ' \(str\), expected a text"),
        ({"image": "a", "caption": "x", "split": 3}, r":2: the field split is 3 \(int\)"),
    ],
)
def test_jsonl_names_file_line_and_fault_on_opening(folder, line, message):
    path = write_index(folder, {"image": "images/0.png", "caption": "fine"}, line)
    with pytest.raises(UserError, match=message):
        JsonlSource(path)


def test_jsonl_that_is_not_utf8_names_the_line(folder):
    path = folder / "captions.jsonl"
    path.write_bytes(b'{"image": "a", "caption": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"captions\.jsonl:1: this line is not JSON"):
        JsonlSource(path)


def test_missing_or_empty_jsonl_is_a_user_error(folder):
    with pytest.raises(UserError, match=r"nowhere\.jsonl is not a file"):
        JsonlSource(folder / "nowhere.jsonl")
    with pytest.raises(UserError, match="holds no examples"):
        JsonlSource(write_index(folder))
    path = write_index(folder, {"image": "a", "caption": "x", "split": "train"})
    with pytest.raises(UserError, match="no example of split 'val', its examples name train"):
        JsonlSource(path, split="val")
    with pytest.raises(UserError, match="nofolder is not a folder"):
        JsonlSource(path, image_root=folder / "nofolder")


def examples(count: int) -> list[Example]:
    return [Example(png(i), (f"text {i}", "again"), f"key {i}") for i in range(count)]


def test_array_record_gives_back_what_was_written(tmp_path):
    path = tmp_path / "data.array_record"
    assert write_array_record(path, examples(5)) == 5
    source = ArrayRecordSource(path)
    assert [source[i] for i in range(len(source))] == examples(5)
    assert pickle.loads(pickle.dumps(source))[3] == examples(5)[3]


def test_array_record_files_are_found_by_folder_and_by_glob(tmp_path):
    write_array_record(tmp_path / "b.array_record-1", examples(4)[2:])
    write_array_record(tmp_path / "a.array_record-0", examples(4)[:2])
    for path in (tmp_path, tmp_path / "*.array_record-*"):
        source = ArrayRecordSource(path)
        assert [source[i] for i in range(len(source))] == examples(4)


def test_array_record_keeps_the_asked_split(tmp_path):
    write_array_record(tmp_path / "0.array_record", examples(4)[:2], split="test")
    write_array_record(tmp_path / "1.array_record", examples(4)[2:], split="train")
    source = ArrayRecordSource(tmp_path, split="train")
    assert [source[i] for i in range(len(source))] == examples(4)[2:]
    with pytest.raises(UserError, match="no example of split 'val', its examples name test, train"):
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
    with pytest.raises(UserError, match="holds no examples"):
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


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory) -> str:
    """A data set of five examples, prepared by TFDS itself in the array_record format."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(),
        "pixels": tfds.features.Tensor(shape=(3, 4, 3), dtype=np.uint8),
        "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
        "texts": tfds.features.Sequence(tfds.features.Text()),
        "caption": tfds.features.Text(),
        "label": tfds.features.Scalar(np.int64),
    }

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        __module__ = "tiny"  # else TFDS looks for its code inside the tests, as in a package

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(5):
                yield (
                    i,
                    {
                        "image": io.BytesIO(png(i)),
                        "pixels": np.full((3, 4, 3), i, np.uint8),
                        "captions": [{"text": f"first {i}"}, {"text": f"second {i}"}],
                        "texts": [f"first {i}", f"second {i}"],
                        "caption": f"first {i}",
                        "label": i,
                    },
                )

    folder = str(tmp_path_factory.mktemp("tfds"))
    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.mark.parametrize(
    ("caption_key", "texts"),
    [("captions/text", 2), ("texts", 2), ("caption", 1)],
)
def test_tfds_reads_encoded_images_and_nested_captions(tfds_folder, caption_key, texts):
    source = TfdsSource("tiny", "train", tfds_folder, "image", caption_key)
    assert len(source) == 5
    seen = set()
    for i in range(5):
        example = source[i]
        number = int(example.captions[0].split()[-1])
        seen.add(number)
        assert example == Example(
            png(number), (f"first {number}", f"second {number}")[:texts], f"tiny[train][{i}]"
        )
    assert seen == set(range(5))
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_tfds_reads_images_that_are_arrays(tfds_folder):
    source = TfdsSource("tiny", "train", tfds_folder, "pixels", "texts")
    number = int(source[0].captions[0].split()[-1])
    np.testing.assert_array_equal(
        decode_image(source[0].image), np.full((3, 4, 3), number, np.uint8)
    )


def test_tfds_works_without_tensorflow(tfds_folder):
    TfdsSource("tiny", "train", tfds_folder, "image", "texts")
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny", "val", "image", "texts"), r"tiny, split val, cannot be read \(Unknown split"),
        (("no_such_set", "train", "image", "texts"), r"no_such_set.*cannot be read \(Dataset no"),
        (("", "train", "image", "texts"), "config.data.name is empty"),
        (("tiny", "", "image", "texts"), "config.data.split is empty"),
        (
            ("tiny", "train", "photo", "texts"),
            r"Unrecognized keys: \['photo'\].*correct .*image_key",
        ),
        (("tiny", "train", "image", "captions/de"), "at de it has text; correct .*caption_key"),
        (("tiny", "train", "image", "captions"), r"tiny\[train\]\[0\]: the captions are \{"),
        (("tiny", "train", "image", "label"), r"\[0\]: the captions are .*expected a text"),
    ],
)
def test_tfds_faults_are_user_errors(tfds_folder, arguments, message):
    name, split, image_key, caption_key = arguments
    with pytest.raises(UserError, match=message):
        TfdsSource(name, split, tfds_folder, image_key, caption_key)


def test_open_source_opens_what_the_config_names(folder, tfds_folder):
    path = write_index(folder, {"image": "images/1.png", "caption": "x", "split": "train"})
    jsonl = open_source(DataConfig(source="jsonl", path=str(path), split="train"))
    assert jsonl[0] == Example(png(1), ("x",), "images/1.png")
    write_array_record(folder / "x.array_record", examples(1))
    records = open_source(DataConfig(source="array_record", path=str(folder)))
    assert records[0] == examples(1)[0]
    config = DataConfig(
        source="tfds", path=tfds_folder, name="tiny", split="train", caption_key="texts"
    )
    assert len(open_source(config)) == 5


def test_importing_the_sources_imports_no_reader():
    heavy = {"array_record", "grain", "tensorflow", "tensorflow_datasets"}
    code = f"import sys, dinotxt_jax.data.sources; print({heavy} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("split", ["", "train", "test"])
def test_open_source_draws_scenes(split):
    pytest.importorskip("dinotxt_jax.data.scenes")
    source = open_source(DataConfig(num_scenes=3, split=split, image_size=32))
    assert len(source) == 3
    assert decode_image(source[0].image).size == (32, 32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(source="webdataset"), "config.data.source is 'webdataset', expected scenes"),
        (DataConfig(source="jsonl"), "config.data.path is empty"),
        (DataConfig(source="array_record"), "config.data.path is empty"),
    ],
)
def test_open_source_names_the_config_key_at_fault(config, message):
    with pytest.raises(UserError, match=message):
        open_source(config)
