"""Data errors name the key that the user has to correct, whichever command reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import png, write_index

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.examples import check_images_found, limited
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.pipeline import ImageTextExample
from dinotxt_jax.data.sources import open_labelled, open_masks, open_source
from dinotxt_jax.errors import UserError

TASK = "config.evaluation.tasks.flickr8k.data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes one small data set for each kind, and empty files."""
    (tmp_path / "photo.png").write_bytes(png(1))
    write_index(tmp_path, {"image": "photo.png", "caption": "x", "split": "train"})
    image = {"filename": "photo.png", "split": "train", "sentences": [{"raw": "x"}]}
    (tmp_path / "karpathy.json").write_text(json.dumps({"images": [image]}))
    (tmp_path / "other.json").write_text(json.dumps({"pictures": []}))
    (tmp_path / "labels.csv").write_text("file,label,split\nphoto.png,3,train\n")
    (tmp_path / "masks.csv").write_text("file,mask\nphoto.png,mask.png\n")
    Image.fromarray(np.full((3, 4), 2, np.uint8)).save(tmp_path / "mask.png")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "cats.txt").write_text("cow\n")
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "a.png").write_bytes(png(2))
    (tmp_path / "numbers" / "7").mkdir(parents=True)
    (tmp_path / "numbers" / "7" / "a.png").write_bytes(png(2))
    for name in ("empty.jsonl", "empty.json", "empty.csv"):
        (tmp_path / name).touch()
    return tmp_path


MISTAKES = [
    (open_source, {"source": "lmdb"}, "source"),
    (open_source, {"source": "jsonl"}, "path"),
    (open_source, {"source": "jsonl", "path": "absent.jsonl"}, "path"),
    (open_source, {"source": "jsonl", "path": "classes"}, "path"),
    (open_source, {"source": "jsonl", "path": "empty.jsonl"}, "path"),
    (open_source, {"source": "jsonl", "path": "captions.jsonl", "split": "val"}, "split"),
    (open_source, {"source": "jsonl", "path": "captions.jsonl", "image_root": "no"}, "image_root"),
    (open_source, {"source": "karpathy", "path": "absent.json"}, "path"),
    (open_source, {"source": "karpathy", "path": "empty.json"}, "path"),
    (open_source, {"source": "karpathy", "path": "captions.jsonl"}, "source"),
    (open_source, {"source": "karpathy", "path": "other.json"}, "source"),
    (open_source, {"source": "karpathy", "path": "karpathy.json", "split": "val"}, "split"),
    (open_source, {"source": "coco", "path": "karpathy.json"}, "source"),
    (open_source, {"source": "coco", "path": "karpathy.json", "split": "val"}, "split"),
    (open_source, {"source": "array_record", "path": "absent"}, "path"),
    (open_source, {"source": "array_record", "path": "photo.png"}, "path"),
    (open_source, {"source": "tfds"}, "name"),
    (open_source, {"source": "tfds", "name": "absent", "split": "train"}, "name"),
    (open_source, {"source": "scenes", "split": "val"}, "split"),
    (open_labelled, {"source": "jsonl"}, "source"),
    (open_labelled, {"source": "folder", "path": "absent"}, "path"),
    (open_labelled, {"source": "folder", "path": "classes/cat"}, "path"),
    (open_labelled, {"source": "folder", "path": "classes", "classes": "voc_20"}, "classes"),
    (open_labelled, {"source": "folder", "path": "numbers", "classes": "names.txt"}, "classes"),
    (open_labelled, {"source": "folder", "path": "classes", "only": "cats.txt"}, "only"),
    (open_labelled, {"source": "csv", "path": "absent.csv"}, "path"),
    (open_labelled, {"source": "csv", "path": "empty.csv"}, "path"),
    (open_labelled, {"source": "csv", "path": "labels.csv"}, "classes"),
    (open_labelled, {"source": "csv", "path": "labels.csv", "classes": "names.txt"}, "classes"),
    (open_labelled, {"source": "csv", "path": "labels.csv", "label_key": "class"}, "label_key"),
    (open_labelled, {"source": "csv", "path": "labels.csv", "split": "val"}, "split"),
    (open_masks, {"source": "folder", "path": "classes"}, "source"),
    (open_masks, {"source": "csv", "path": "masks.csv"}, "classes"),
    (
        open_masks,
        {"source": "csv", "path": "masks.csv", "classes": "names.txt", "image_root": "classes"},
        "image_root",
    ),
    (open_masks, {"source": "masks", "name": "ade20k", "path": "x"}, "name"),
    (open_masks, {"source": "masks", "name": "ade20k_150", "path": "absent"}, "path"),
    (open_masks, {"source": "masks", "name": "msrc_v2", "path": "x", "split": "val"}, "split"),
    (
        open_masks,
        {"source": "masks", "name": "ade20k_150", "path": "x", "classes": "names.txt"},
        "classes",
    ),
]


@pytest.mark.parametrize(("opener", "settings", "key"), MISTAKES)
def test_a_message_names_the_key_of_the_command(
    opener: Callable, settings: dict, key: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as caught:
        opener(DataConfig(**settings), TASK)
    message = str(caught.value)
    assert f"{TASK}.{key}" in message
    assert re.findall(r"(?<![\w.])(?:config\.)?data\.\w+", message.replace(TASK, "")) == []
    with pytest.raises(UserError, match=re.escape(f"config.data.{key}")):
        opener(DataConfig(**settings))


def test_a_value_of_a_mask_is_about_the_key_of_the_command_too(folder: Path) -> None:
    config = DataConfig(
        source="csv", path=str(folder / "masks.csv"), classes=str(folder / "names.txt")
    )
    with pytest.raises(UserError, match=f"holds the index 2, .* or {TASK}.classes"):
        open_masks(config, TASK).load(0)


@pytest.mark.parametrize(
    ("name", "source"),
    [("captions.jsonl", "jsonl"), ("karpathy.json", "karpathy"), ("labels.csv", "csv")],
)
def test_images_that_are_all_missing_are_noticed_with_the_folder_that_was_searched(
    name: str, source: str, folder: Path
) -> None:
    (folder / "elsewhere").mkdir()
    config = DataConfig(
        source=source,
        path=str(folder / name),
        image_root=str(folder / "elsewhere"),
        classes=str(folder / "names.txt") if source == "csv" else "",
    )
    if source == "csv":
        (folder / name).write_text("file,label\nphoto.png,0\n")
    opened = open_source(config, TASK)
    message = (
        f"none of 1 image paths tried from {folder / name} exists in the folder "
        rf"{folder / 'elsewhere'} "
        rf"\(photo.png cannot be read: No such file or directory\), .* set {TASK}.image_root"
    )
    with pytest.raises(UserError, match=message):
        check_images_found(opened, config, TASK)
    (folder / "elsewhere" / "photo.png").write_bytes(b"broken, but there")
    check_images_found(opened, config, TASK)


def test_one_image_among_those_looked_for_is_enough(tmp_path: Path) -> None:
    (tmp_path / "3.png").write_bytes(png(1))
    lines = [{"image": f"{number}.png", "caption": "x"} for number in range(4)]
    config = DataConfig(source="jsonl", path=str(write_index(tmp_path, *lines)))
    source = open_source(config)
    check_images_found(source, config)
    # In a data set with one image, every image is checked: the first.
    with pytest.raises(UserError, match=f"none of 1 image paths .* in the folder {tmp_path} "):
        check_images_found(limited(source, 1), config)


def test_a_bad_image_of_an_evaluation_ends_it_without_talk_of_a_limit(folder: Path) -> None:
    config = DataConfig(source="jsonl", path=str(folder / "captions.jsonl"), image_size=28)
    (folder / "photo.png").write_bytes(b"no image")
    source = open_source(config, TASK)
    example = ImageTextExample(source, config, lambda _: np.zeros(0, np.int32), evaluated=True)
    with pytest.raises(UserError, match=r"example 0 cannot be evaluated .*repair or remove it\.$"):
        example(Draw(0, 0, 0, 0))
