"""Captions through TFDS, read without TensorFlow."""

from __future__ import annotations

import io
import pickle
import sys

import numpy as np
import pytest
from damage import flip
from small_sets import png, prepare_tfds

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Example, readable_captions
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.tfds_records import TfdsSource
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Writes a data set of five examples."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(),
        "pixels": tfds.features.Tensor(shape=(3, 4, 3), dtype=np.uint8),
        "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
        "texts": tfds.features.Sequence(tfds.features.Text()),
        "caption": tfds.features.Text(),
        "label": tfds.features.Scalar(np.int64),
    }
    values = (
        {
            "image": io.BytesIO(png(i)),
            "pixels": np.full((3, 4, 3), i, np.uint8),
            "captions": [{"text": f"first {i}"}, {"text": f"second {i}"}],
            "texts": [f"first {i}", f"second {i}"],
            "caption": f"first {i}",
            "label": i,
        }
        for i in range(5)
    )
    return prepare_tfds(tmp_path_factory.mktemp("tfds"), "tiny", features, values)


@pytest.mark.parametrize(
    ("caption_key", "texts"),
    [("captions/text", 2), ("texts", 2), ("caption", 1)],
)
def test_tfds_reads_encoded_images_and_nested_captions(tfds_folder, caption_key, texts):
    source = TfdsSource("tiny", "train", tfds_folder, "image", (caption_key,))
    assert len(source) == 5
    visited = set()
    for i in range(5):
        example = source[i]
        number = int(example.captions[0].split()[-1])
        visited.add(number)
        assert example == Example(
            png(number), (f"first {number}", f"second {number}")[:texts], f"tiny[train][{i}]"
        )
    assert visited == set(range(5))
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_tfds_reads_images_that_are_arrays(tfds_folder):
    source = TfdsSource("tiny", "train", tfds_folder, "pixels", ("texts",))
    number = int(source[0].captions[0].split()[-1])
    np.testing.assert_array_equal(
        decode_image(source[0].image), np.full((3, 4, 3), number, np.uint8)
    )


def test_tfds_works_without_tensorflow(tfds_folder):
    TfdsSource("tiny", "train", tfds_folder, "image", ("texts",))
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
            r"no feature photo: at photo it has caption, captions, image, .*; correct .*image_key",
        ),
        (("tiny", "train", "label", "texts"), r"\(int\) in the feature label, expected an image"),
        (("tiny", "train", "image", "text/de"), "at text it has caption, .*correct .*caption_key"),
        (("tiny", "train", "image", "captions/de"), "at de it has text; correct .*caption_key"),
        (("tiny", "train", "image", "captions"), r"tiny\[train\]\[0\]: the captions are \{"),
        (("tiny", "train", "image", "label"), r"\[0\]: the captions are .*expected a text"),
    ],
)
def test_tfds_faults_are_user_errors(tfds_folder, arguments, message):
    name, split, image_key, caption_key = arguments
    with pytest.raises(UserError, match=message):
        TfdsSource(name, split, tfds_folder, image_key, (caption_key,))


def test_open_source_reads_captions_through_tfds(tfds_folder):
    config = DataConfig(
        source="tfds", path=tfds_folder, name="tiny", split="train", caption_key="texts"
    )
    assert len(open_source(config)) == 5


def test_a_damaged_record_is_a_bad_image(tmp_path):
    import tensorflow_datasets as tfds

    kinds = {
        "image": tfds.features.Tensor(shape=(60, 40, 3), dtype=np.uint8),
        "caption": tfds.features.Text(),
    }
    noise = np.random.default_rng(0)
    values = (
        {"image": noise.integers(0, 256, (60, 40, 3), np.uint8), "caption": f"noise {i}"}
        for i in range(12)
    )
    folder = prepare_tfds(tmp_path, "noise", kinds, values)
    (file,) = tmp_path.rglob("*.array_record*")
    flip(file)
    source = TfdsSource("noise", "train", folder, "image", ("caption",))
    (bad,) = (index for index in range(12) if not readable_captions(source, index))
    for read in (source.__getitem__, source.captions):
        with pytest.raises(BadImageError, match=rf"noise\[train\]\[{bad}\] cannot be read"):
            read(bad)
