"""Reads captions from CSV and TSV files."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sets import png

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.labelled import LabelledSource
from dinotxt_jax.data.sources import open_labelled, open_source
from dinotxt_jax.errors import UserError


def index(folder: Path, text: str | bytes, name: str = "index.csv", **changes: str) -> DataConfig:
    """Writes three images and an index of them."""
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return DataConfig(source="csv", path=str(folder / name), **changes)


def test_lines_of_the_same_image_are_one_example_with_several_captions(tmp_path: Path) -> None:
    text = 'image,caption\n0.png,"a dog, running"\n1.png,a cat\n0.png,ein Hund äöü\n'
    source = open_source(index(tmp_path, text))
    assert [source[i].captions for i in range(len(source))] == [
        ("a dog, running", "ein Hund äöü"),
        ("a cat",),
    ]
    assert (source[1].image, source.key(1)) == (png(1), "1.png")


def test_a_tsv_of_open_clip_is_read(tmp_path: Path) -> None:
    text = "filepath\ttitle\n2.png\ta dog, a cat and one, two\n"
    source = open_source(index(tmp_path, text, "train.tsv"))
    assert source[0].captions == ("a dog, a cat and one, two",)


def test_the_column_that_is_set_comes_first_and_splits_select_lines(tmp_path: Path) -> None:
    text = "file,caption,alt,split\n0.png,a,b,train\n1.png,c,d,test\n"
    source = open_source(index(tmp_path, text, caption_key="alt", split="test"))
    assert [source.captions(i) for i in range(len(source))] == [("d",)]
    assert open_source(index(tmp_path, text))[0].captions == ("a",)
    with pytest.raises(UserError, match="and text; rename .* set config.data.caption_key to"):
        open_source(index(tmp_path, text, caption_key="text"))  # never another column instead
    with pytest.raises(
        UserError, match="no example in the split 'val', its examples name test, train"
    ):
        open_source(index(tmp_path, text, split="val"))


def test_labels_are_the_captions_only_where_there_is_no_column_of_captions(tmp_path: Path) -> None:
    labels = open_source(index(tmp_path, "file,label\n0.png,cat\n1.png,dog\n"))
    assert isinstance(labels, LabelledSource)
    assert labels.captions(1) == ("dog",)
    both = index(tmp_path, "file,label,caption\n0.png,cat,a small cat\n")
    assert open_source(both).captions(0) == ("a small cat",)
    assert open_labelled(both).captions(0) == ("cat",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,caption\n0.png,\n", "index.csv:2: the column caption is empty; fill it or remove"),
        ("file,caption\n0.png,a\n1.png, \n", "index.csv:3: caption 1 is ' ' .* not blank"),
        ("name,caption\n0.png,a\n", "has the columns name, caption, expected one of file, .*set"),
        ("file,text\n0.png,a\n", "has the columns file, text, .* and label; rename .*label_key"),
        (b"file,caption\n0.png,\xff\xfe\n", "index.csv is not a CSV in UTF-8"),
        ("", "index.csv is empty, expected at least one example"),
    ],
)
def test_captions_that_cannot_be_used_are_named(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        open_source(index(tmp_path, content))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'image,caption\n0.png,"ok\n1.png,b\n', r"is not a CSV in UTF-8 \(unexpected end"),
        ("a.csv", "image,caption\n0.png,a dog, running\n", ":2: the line has 3 fields, expected 2"),
        ("a.csv", "image,caption,caption\n0.png,a,b\n", "has the column caption twice"),
        ("a.tsv", 'image\tcaption\n0.png\t"ok\n1.png\tb\n', "a quote that is not closed"),
    ],
)
def test_no_line_is_lost_in_silence(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_source(index(tmp_path, text, name))


def test_a_tsv_caption_may_begin_with_a_quoted_word(tmp_path: Path) -> None:
    source = open_source(index(tmp_path, 'image\tcaption\n0.png\t"big" dog\n', "a.tsv"))
    assert source[0].captions == ("big dog",)
