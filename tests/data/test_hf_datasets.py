"""Reads what the library Hugging Face datasets wrote, and names damaged files."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_sets import png

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.sources import open_labelled, open_source
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError


def settings(path: Path, **changes: Any) -> DataConfig:
    return DataConfig(source="hf_datasets", path=str(path), **changes)


@pytest.mark.parametrize("kind", ["saved", "cached"])
def test_what_the_library_wrote_is_read_in_order_at_any_position(kind: str, goldens: Path) -> None:
    """The training split of "saved" has two files."""
    for split, numbers in (("train", range(7)), ("test", range(7, 10))):
        source = open_source(settings(goldens / "hf_datasets" / kind, split=split))
        assert len(source) == len(numbers)
        for index in reversed(range(len(source))):
            number = numbers[index]
            pixels = np.asarray(decode_image(source[index].image))
            np.testing.assert_array_equal(pixels, np.full((3, 4, 3), (number, 0, 0)))
            assert source[index].captions == source.captions(index) == (f"text {number}", "again")
        assert source.key(1).endswith(f"{kind}[{split}][1]")
        assert pickle.loads(pickle.dumps(source))[1] == source[1]
        changed = settings(goldens / "hf_datasets" / kind, split=split, caption_key="text")
        assert open_source(changed).captions(0) == (f"text {numbers[0]}",)


@pytest.mark.parametrize("kind", ["saved", "cached"])
def test_labels_have_the_names_of_the_column(kind: str, goldens: Path) -> None:
    source = open_labelled(settings(goldens / "hf_datasets" / kind, split="train"))
    assert source.class_names == ("cat", "hot dog", "bird")
    assert [source.labels(index) for index in range(4)] == [(0,), (1,), (2,), (0,)]
    only = settings(goldens / "hf_datasets" / kind, split="test", only="present")
    assert len(open_labelled(only)) == 3


@pytest.mark.parametrize("kind", ["saved", "cached"])
def test_a_split_or_column_that_does_not_exist_is_named(kind: str, goldens: Path) -> None:
    path = goldens / "hf_datasets" / kind
    for changes, message in (
        ({}, "has the splits train, test, but config.data.split is ''; set it to one of these"),
        ({"split": "val"}, "has the splits train, test, but config.data.split is 'val'"),
        (
            {"split": "test", "image_key": "photo"},
            "has the columns image, captions, text, label, expected photo; set config.data.image_k",
        ),
    ):
        with pytest.raises(UserError, match=message):
            open_source(settings(path, **changes))
    with pytest.raises(UserError, match="expected alt; set config.data.caption_key"):
        open_source(settings(path, split="test", caption_key="alt"))  # never another column instead
    with pytest.raises(UserError, match="expected classes; set config.data.label_key"):
        open_labelled(settings(path, split="test", label_key="classes"))
    with pytest.raises(UserError, match="column text, stores labels as numbers"):
        open_labelled(settings(path, split="test", label_key="text"))


def save(folder: Path, columns: dict[str, pa.Array], features: dict[str, Any]) -> Path:
    """Writes a data set as `save_to_disk` does."""
    folder.mkdir(exist_ok=True)
    table = pa.table(columns)
    with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": "data.arrow"}], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def small(folder: Path, **changes: pa.Array) -> Path:
    columns = {
        "image": pa.array([png(number) for number in range(5)]),
        "caption": pa.array([f"text {number}" for number in range(5)]),
    }
    return save(folder, columns | changes, {})


def test_images_are_structs_bytes_or_paths(tmp_path: Path) -> None:
    (tmp_path / "4.png").write_bytes(png(4))
    structs = pa.array(
        [{"bytes": png(number), "path": None} for number in range(4)]
        + [{"bytes": None, "path": str(tmp_path / "4.png")}]
    )
    paths = pa.array([str(tmp_path / "4.png")] * 5)
    for number, images in enumerate((None, structs, paths)):
        folder = tmp_path / f"set{number}"
        source = open_source(
            settings(small(folder, **({} if images is None else {"image": images})))
        )
        assert source[4].image == png(4)
    assert source[0].image == png(4)
    (tmp_path / "4.png").unlink()
    with pytest.raises(BadImageError, match=r"4.png of .*\[0\] cannot be read: No such .*; copy"):
        source[0]


def test_rows_without_image_or_caption_count_as_bad(tmp_path: Path) -> None:
    images = pa.array([png(0), None, png(2), png(3), png(4)])
    captions = pa.array(["a", "b", None, " ", "e"])
    source = open_source(settings(small(tmp_path / "set", image=images, caption=captions)))
    assert source[4].captions == ("e",)
    with pytest.raises(BadImageError, match=r"set\[1\] has None \(NoneType\) in the column image"):
        source[1]
    for index in (2, 3):
        with pytest.raises(BadImageError, match=rf"set\[{index}\]: .* expected a text"):
            source.captions(index)


def test_labels_inside_lists_and_structs_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objects = pa.array([{"label": [0, 1, 1]}, {"label": []}, *[{"label": [2]}] * 3])
    feature = {"feature": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}
    columns = {"image": pa.array([png(number) for number in range(5)]), "objects": objects}
    folder = save(tmp_path / "set", columns, {"objects": feature})
    source = open_labelled(settings(folder, label_key="objects/label"))
    assert source.class_names == ("a", "b", "c")
    assert [source.labels(index) for index in range(len(source))] == [(0, 1), (2,), (2,), (2,)]
    assert "skipped 1 of 5 examples, which have no label" in caplog.text
    (tmp_path / "two.txt").write_text("x\ny\n")
    with pytest.raises(UserError, match=r"set\[2\]: the label 2 is outside the 2 classes"):
        open_labelled(
            settings(folder, label_key="objects/label", classes=str(tmp_path / "two.txt"))
        )


def test_a_folder_of_something_else_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no Hugging Face data set .*data.path"):
        open_source(settings(tmp_path))
    folder = small(tmp_path / "set")
    with pytest.raises(UserError, match="has no splits, but config.data.split is 'train'; set it"):
        open_source(settings(folder, split="train"))
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"a": 1}]}))
    with pytest.raises(UserError, match=r"an index mapping, .* save the result of flatten_ind"):
        open_source(settings(folder))
    for files in (None, "data.arrow", [None], [{}], [{"filename": 3}]):
        (folder / "state.json").write_text(json.dumps({"_data_files": files}))
        with pytest.raises(UserError, match="state.json: (the field|there is) .*, expected"):
            open_source(settings(folder))
    (folder / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state.json is not JSON"):
        open_source(settings(folder))


def test_missing_and_truncated_files_are_named(goldens: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(goldens / "hf_datasets/cached", folder)
    file = folder / "parquet-train.arrow"
    whole = file.read_bytes()
    for cut in (0, 5, 700, len(whole) - 8, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(
            UserError, match="parquet-train.arrow is truncated, expected a complete"
        ):
            open_source(settings(folder, split="train"))
    file.write_bytes((folder / "parquet-test.arrow").read_bytes())
    with pytest.raises(UserError, match="has 3 rows, expected 7 as in dataset_info.json"):
        open_source(settings(folder, split="train"))
    info = json.loads((folder / "dataset_info.json").read_text())
    for splits in ({"train": {}}, {"train": None}, {"train": {"num_examples": "7"}}):
        (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": splits}))
        with pytest.raises(UserError, match="dataset_info.json, split train: .*, expected"):
            open_source(settings(folder, split="train"))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    file.unlink()
    with pytest.raises(UserError, match="there is no file .*arrow, expected the data set's rows"):
        open_source(settings(folder, split="train"))


def test_flipped_bytes_give_sentences_or_rows_and_never_a_crash(tmp_path: Path) -> None:
    folder = small(tmp_path / "set")
    whole = (folder / "data.arrow").read_bytes()
    refused = 0
    for position in range(0, len(whole), 11):
        content = bytearray(whole)
        content[position] ^= 0xFF
        (folder / "data.arrow").write_bytes(bytes(content))
        try:
            source = open_source(settings(folder))
            for index in range(len(source)):
                try:
                    assert isinstance(source[index].image, bytes)
                except BadImageError:
                    refused += 1
        except UserError:
            refused += 1
    assert refused > 20


def test_a_file_that_changes_while_it_is_read_ends_the_run(tmp_path: Path) -> None:
    folder = small(tmp_path / "set")
    source = open_source(settings(folder))
    with (folder / "data.arrow").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(UserError, match="data.arrow has changed since this command opened it"):
        source[0]
