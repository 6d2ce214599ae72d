"""JSONL sources, opening sources from a config, and the messages about bad input."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_sets import examples, png, write_index

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.array_records import write_array_record
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Example
from dinotxt_jax.data.jsonl import JsonlSource
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError


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
        ({"image": "a", "captions": []}, r"captions\.jsonl:2: the caption list is empty"),
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
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.jsonl"):
        JsonlSource(folder / "nowhere.jsonl")
    with pytest.raises(UserError, match="captions.jsonl is empty"):
        JsonlSource(write_index(folder))
    path = write_index(folder, {"image": "a", "caption": "x", "split": "train"})
    with pytest.raises(UserError, match="no example in the split 'val', its examples name train"):
        JsonlSource(path, split="val")
    with pytest.raises(UserError, match="nofolder is not a folder"):
        JsonlSource(path, image_root=folder / "nofolder")


def test_open_source_opens_the_configured_source(folder):
    path = write_index(folder, {"image": "images/1.png", "caption": "x", "split": "train"})
    jsonl = open_source(DataConfig(source="jsonl", path=str(path), split="train"))
    assert jsonl[0] == Example(png(1), ("x",), "images/1.png")
    write_array_record(folder / "x.array_record", examples(1))
    records = open_source(DataConfig(source="array_record", path=str(folder)))
    assert records[0] == examples(1)[0]


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
        (
            DataConfig(source="lmdb"),
            "config.data.source='lmdb' is unknown; choose among scenes, .*folder, csv.$",
        ),
        (DataConfig(source="jsonl"), "config.data.path is empty"),
        (DataConfig(source="array_record"), "config.data.path is empty"),
        (DataConfig(source="coco"), "config.data.path is empty"),
    ],
)
def test_open_source_names_the_config_key_at_fault(config, message):
    with pytest.raises(UserError, match=message):
        open_source(config)
