"""Class labels through TFDS: names, several labels, WordNet ids, and bad input."""

from __future__ import annotations

import dataclasses
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sets import png, prepare_tfds

from dinotxt_jax.config import DataConfig, TaskConfig
from dinotxt_jax.data.labelled import LabelledSource
from dinotxt_jax.data.sources import open_labelled
from dinotxt_jax.data.texts import read_list
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.tasks import KINDS

# Indexed by image number; TFDS may store the images in any order.
SINGLE = (2, 0, 2, 1)
SEVERAL = ((1, 0, 1), (), (2,), (0, 2))
ODD_NAMES = ('great "dane"', "potter's_wheel", "Ünïcode 日本")
SUBSET = ("n01440764", "n02012849", "n15075141")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Returns a data set of four images, with labels in every form."""
    import tensorflow_datasets as tfds

    features = tfds.features
    names = features.ClassLabel(names=ODD_NAMES)
    kinds = {
        "image": features.Image(),
        "number": np.int64,
        "label": names,
        "labels": features.Sequence(features.ClassLabel(names=["a", "b", "c"])),
        "objects": features.Sequence(
            {"label": features.ClassLabel(names=["d", "e", "f"]), "area": np.int64}
        ),
        "nested": {"wnid": features.ClassLabel(names=SUBSET), "mask": features.Image()},
        "imagenet": features.ClassLabel(names=read_list("imagenet1k_wnids", "x")),
        "foreign": features.ClassLabel(names=["n01440764", "n00000001", "n00000002"]),
        "unnamed": features.ClassLabel(num_classes=3),
        "unlabelled": names,
        "text": features.Text(),
    }
    values = (
        {
            "image": io.BytesIO(png(i)),
            "number": i,
            "label": SINGLE[i],
            "labels": list(SEVERAL[i]),
            "objects": [{"label": label, "area": 7} for label in SEVERAL[i]],
            "nested": {"wnid": SINGLE[i], "mask": io.BytesIO(png(0))},
            "imagenet": (0, 134, 999)[SINGLE[i]],
            "foreign": 0,
            "unnamed": SINGLE[i],
            "unlabelled": -1,
            "text": "x",
        }
        for i in range(4)
    )
    folder = prepare_tfds(tmp_path_factory.mktemp("tfds"), "small", kinds, values)
    return DataConfig(source="tfds", path=folder, name="small", split="train")


def opened(config: DataConfig, **changes: Any) -> LabelledSource:
    return open_labelled(dataclasses.replace(config, **changes))


def by_image(source: LabelledSource) -> dict[bytes, tuple[str, ...]]:
    """Returns the class names of each image."""
    return {source[i].image: source[i].captions for i in range(len(source))}


def test_labels_and_names_come_from_the_feature(config: DataConfig) -> None:
    source = opened(config)
    assert source.class_names == ('great "dane"', "potter's wheel", "Ünïcode 日本")
    assert by_image(source) == {png(i): (source.class_names[SINGLE[i]],) for i in range(4)}
    assert [source.key(i) for i in range(4)] == [f"small[train][{i}]" for i in range(4)]
    assert pickle.loads(pickle.dumps(source))[2] == source[2]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(("key", "names"), [("labels", "abc"), ("objects/label", "def")])
def test_several_labels_are_distinct_and_in_the_order_they_occur(
    config: DataConfig, key: str, names: str
) -> None:
    source = opened(config, label_key=key)
    assert source.class_names == tuple(names)
    # The unlabelled image is left out; indices refer to the remaining images.
    result = {0: (1, 0), 2: (2,), 3: (0, 2)}
    assert by_image(source) == {
        png(i): tuple(names[label] for label in own) for i, own in result.items()
    }
    assert sorted(source.labels(i) for i in range(3)) == [(0, 2), (1, 0), (2,)]


def test_wordnet_ids_become_words(config: DataConfig) -> None:
    source = opened(config, label_key="nested/wnid")
    assert source.class_names == ("tench", "crane bird", "toilet paper")
    whole = opened(config, label_key="imagenet")
    assert whole.class_names == read_list("imagenet1k", "x")
    assert {whole.labels(i) for i in range(4)} == {(0,), (134,), (999,)}


def test_present_leaves_the_classes_that_occur(config: DataConfig) -> None:
    source = opened(config, label_key="imagenet", only="present")
    assert source.class_names == ("tench", "crane bird", "toilet paper")
    words = ("tench", "crane bird", "toilet paper")
    assert by_image(source) == {png(i): (words[SINGLE[i]],) for i in range(4)}


def test_user_names_replace_the_features_names(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    for key in ("label", "unnamed", "foreign"):
        source = opened(config, label_key=key, classes=str(tmp_path / "names.txt"))
        assert source.class_names == ("red", "green", "blue")


def test_labels_are_read_without_decoding_an_image(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow_datasets as tfds

    def decode(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(tfds.features.Image, "decode_example_np", decode)
    source = opened(config)
    assert sorted(source.labels(i) for i in range(4)) == [(0,), (1,), (2,), (2,)]


def test_a_source_for_labels_gives_names_of_classes_as_captions(config: DataConfig) -> None:
    task = TaskConfig(kind="classification", data=config)
    source = KINDS[task.kind].open_set("config.tasks.t", task)
    assert source.captions(0) == opened(config).captions(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_key": "klass"}, "no feature klass: at klass it has .*label.*correct .*label_key"),
        ({"label_key": "objects/klass"}, "at klass it has area, label; correct .*label_key"),
        (
            {"label_key": "text"},
            r"feature text, has the type Text, expected class labels; correct ",
        ),
        ({"label_key": "objects"}, "feature objects, has the type FeaturesDict, expected class"),
        (
            {"label_key": "unnamed"},
            "unnamed, stores labels as numbers.*set config.data.classes",
        ),
        ({"label_key": "foreign"}, "feature foreign, has the class n00000001, which is not among"),
        ({"label_key": "unlabelled"}, r"small\[train\]\[0\]: the label -1 is outside the 3"),
        (
            {"classes": "imagenet1k"},
            "3 classes, but config.data.classes names 1000; name a class for",
        ),
        ({"image_key": "photo"}, "no feature photo: .*correct config.data.image_key"),
        ({"split": "test"}, r"small, split test, cannot be read \(Unknown split"),
        ({"name": "absent"}, r"absent, split train, cannot be read .*run tfds build absent"),
        ({"name": ""}, "config.data.name is empty"),
        ({"only": "imagenet1k"}, "config.data.only names 'tench'"),
    ],
)
def test_unusable_input_is_named(config: DataConfig, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(config, **changes)


def test_a_name_of_two_lines_which_tfds_tears_apart_is_a_user_error(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["two\nlines", "one"]),
    }
    values = [{"image": io.BytesIO(png(0)), "label": 1}]
    folder = prepare_tfds(tmp_path, "torn", features, values)
    config = DataConfig(source="tfds", path=folder, name="torn", split="train")
    with pytest.raises(UserError, match="has 2 classes, but the data set names 3; name a cl"):
        open_labelled(config)
    (tmp_path / "names.txt").write_text("a\nb\n")
    assert opened(config, classes=str(tmp_path / "names.txt")).captions(0) == ("b",)
