"""Karpathy's files and COCO's: which captions are read, in which order, and error messages."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from small_sets import png

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.coco import open_coco
from dinotxt_jax.data.examples import Example
from dinotxt_jax.data.karpathy import open_karpathy
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError


def karpathy_image(name: str, split: str, *captions: str, **fields: str) -> dict[str, Any]:
    sentences = [{"raw": text, "tokens": text.split(), "sentid": 3} for text in captions]
    return {"filename": name, "split": split, "sentences": sentences, "imgid": 0} | fields


KARPATHY = {
    "dataset": "coco",
    "images": [
        karpathy_image("1.jpg", "test", "A man with a red helmet.", "Ein Mädchen", filepath="val"),
        karpathy_image("2.jpg", "restval", "two", filepath="val"),
        karpathy_image("3.jpg", "train", "three", filepath="train"),
        karpathy_image("4.jpg", "test", "four"),
    ],
}
COCO = {
    "info": {"year": 2017},
    "images": [
        {"id": 9, "file_name": "000009.jpg", "height": 4},
        {"id": 2, "file_name": "000002.jpg", "height": 4},
    ],
    "annotations": [
        {"id": 1, "image_id": 2, "caption": "A cat."},
        {"id": 5, "image_id": 9, "caption": "A dog."},
        {"id": 0, "image_id": 2, "caption": "A small cat. "},
    ],
}


def written(folder: Path, content: object) -> Path:
    path = folder / "captions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(content: Any, *keys: Any, value: object = None) -> Any:
    """Returns a copy with another value at one place, or without the value."""
    holder = content = copy.deepcopy(content)
    for key in keys[:-1]:
        holder = holder[key]
    if value is None:
        del holder[keys[-1]]
    else:
        holder[keys[-1]] = value
    return content


def test_karpathy_gives_the_images_of_a_split_in_order(tmp_path: Path) -> None:
    path = written(tmp_path, KARPATHY)
    (tmp_path / "photos" / "val").mkdir(parents=True)
    (tmp_path / "photos" / "val" / "1.jpg").write_bytes(png(1))
    (tmp_path / "photos" / "4.jpg").write_bytes(png(4))
    source = open_karpathy(path, image_root=tmp_path / "photos", split="test")
    assert [source[i] for i in range(len(source))] == [
        Example(png(1), ("A man with a red helmet.", "Ein Mädchen"), "val/1.jpg"),
        Example(png(4), ("four",), "4.jpg"),
    ]
    assert source.captions(1) == ("four",)
    assert pickle.loads(pickle.dumps(source))[0] == source[0]


@pytest.mark.parametrize(
    ("split", "captions"),
    [
        ("train", ["three"]),
        ("restval", ["two"]),
        ("train+restval", ["two", "three"]),
        ("", ["A man with a red helmet.", "two", "three", "four"]),
    ],
)
def test_restval_is_trained_on_only_when_it_is_named(tmp_path, split, captions) -> None:
    source = open_karpathy(written(tmp_path, KARPATHY), split=split)
    assert [source.captions(i)[0] for i in range(len(source))] == captions


def test_coco_joins_captions_to_images(tmp_path: Path) -> None:
    path = written(tmp_path, COCO)
    (tmp_path / "000002.jpg").write_bytes(png(2))
    source = open_coco(path)
    assert [source.captions(i) for i in range(2)] == [("A dog.",), ("A cat.", "A small cat. ")]
    assert source[1] == Example(png(2), ("A cat.", "A small cat. "), "000002.jpg")
    with pytest.raises(BadImageError, match=r"000009\.jpg cannot be read: No such file"):
        source[0]


def test_a_config_opens_both(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name, content, split, key in (
        ("karpathy", KARPATHY, "train", "train/3.jpg"),
        ("coco", COCO, "", "000009.jpg"),
    ):
        (images / key).parent.mkdir(exist_ok=True)
        (images / key).write_bytes(png(0))
        path = str(written(tmp_path, content))
        config = DataConfig(source=name, path=path, image_root=str(images), split=split)
        assert open_source(config)[0].key == key


@pytest.mark.parametrize(
    ("content", "split", "message"),
    [
        ("{not json", "", r"captions\.json is not JSON \(Expecting property name"),
        ('{"images": [', "", "is not JSON"),
        ("[" * 100_000, "", "is not JSON"),
        ([1], "", r"captions\.json: there is \[1\] \(list\), expected an object with images"),
        ({}, "", r"captions\.json: the field images is missing, expected a list"),
        ({"images": {}}, "", r"the field images is \{\} \(dict\), expected a list"),
        ({"images": []}, "", "captions.json is empty, expected at least one"),
        ({"images": [3]}, "", r"images\[0\]: there is 3 \(int\), expected an object with filename"),
        (COCO, "", r"images\[0\]: the field filename is missing, .*or config.data.source"),
        (changed(KARPATHY, "images", 1, "split"), "", r"images\[1\]: the field split is missing"),
        (changed(KARPATHY, "images", 1, "split", value=True), "", "split is True .*expected a te"),
        (changed(KARPATHY, "images", 0, "filename", value=7), "", r"filename is 7 \(int\)"),
        (changed(KARPATHY, "images", 0, "filename", value=""), "", "filename is empty"),
        (changed(KARPATHY, "images", 0, "filepath", value=["a"]), "", r"filepath is \['a'\]"),
        (changed(KARPATHY, "images", 2, "sentences"), "", r"images\[2\]: the field sentences is m"),
        (changed(KARPATHY, "images", 2, "sentences", 0, "raw"), "", "the field raw is missing"),
        (
            changed(KARPATHY, "images", 2, "sentences", value=[]),
            "train",
            r"images\[2\] \(train/3\.jpg\): the caption list is empty",
        ),
        (
            changed(KARPATHY, "images", 2, "sentences", 0, "raw", value=" "),
            "",
            "caption 1 is ' ' .*a text that is not blank",
        ),
        (KARPATHY, "val", "no example in the split 'val', its examples name restval, test, train"),
        (KARPATHY, "train+trainval", "no example in the split 'trainval', its examples name rest"),
    ],
)
def test_faults_of_karpathys_files_are_named(tmp_path, content, split, message) -> None:
    with pytest.raises(UserError, match=message):
        open_karpathy(written(tmp_path, content), split=split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "captions.json is empty, expected at least one example; fill it, or correct conf"),
        ({"images": []}, "the field annotations is missing, expected a list"),
        ({"images": [], "annotations": []}, "captions.json is empty, expected at least one"),
        (KARPATHY, r"images\[0\]: the field id is missing, expected a whole number"),
        (changed(COCO, "images", 1, "id", value="2"), r"images\[1\]: the field id is '2' \(str\)"),
        (changed(COCO, "images", 1, "id", value=9), r"images\[1\]: the id 9 occurs twice"),
        (changed(COCO, "images", 1, "file_name"), r"images\[1\]: the field file_name is missing"),
        (
            changed(COCO, "annotations", 1, "image_id", value=5),
            r"annotations\[1\]: no image in the file has the image_id 5",
        ),
        (changed(COCO, "annotations", 1, "caption"), r"annotations\[1\]: the field caption is mis"),
        (
            changed(COCO, "annotations", 1),
            r"image 9 \(000009\.jpg\): the caption list is empty",
        ),
    ],
)
def test_faults_of_cocos_files_are_named(tmp_path, content, message) -> None:
    with pytest.raises(UserError, match=message):
        open_coco(written(tmp_path, content))


def test_settings_that_do_not_fit_a_caption_file_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, COCO)
    with pytest.raises(UserError, match="config.data.split is 'val', but a COCO caption file"):
        open_coco(path, split="val")
    with pytest.raises(UserError, match=r"there is no file .*absent\.json, expected a caption"):
        open_coco(tmp_path / "absent.json")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        open_coco(path, image_root=tmp_path / "nowhere")
