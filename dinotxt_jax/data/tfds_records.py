"""TensorFlow Datasets through `tfds.data_source`: random access, without TensorFlow or download.

The data set must already be prepared in a random-access format. If it is in a bucket, the split's
files are copied first (`data.tfds_copies`). Features are named by key; a path such as
`captions/text` selects a nested feature. Encoded images are not decoded on read; this includes
images in unused features.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.class_labels import (
    LabelledImages,
    is_number,
    labelled_records,
    numbers_only,
    readable_names,
)
from dinotxt_jax.data.examples import (
    SECTION,
    Example,
    captions_of,
    check_records,
    nothing_left,
    shortened,
)
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.data.tfds_copies import copied_data_set
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import is_remote, to_address
from dinotxt_jax.storage.faults import is_passing
from dinotxt_jax.storage.retries import retried

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig


class TfdsRecords:
    """The examples in a split, as nested mappings from feature name to value.

    Attributes:
        name: data set and split, for messages: `mnist[test]`.

    Args:
        name: data set name.
        split: split name.
        data_dir: directory in which the data set was prepared ("": the TFDS default).
        image_key: the image feature.
        section: command-line name for these settings, for messages.

    Raises:
        UserError: the data set, split or image does not exist, or the split has no examples.
    """

    def __init__(
        self, name: str, split: str, data_dir: str, image_key: str, section: str = SECTION
    ):
        import tensorflow_datasets as tfds

        for key, value in (("name", name), ("split", split)):
            if not value:
                raise UserError(
                    f"{section}.{key} is empty, expected the {key} of a TFDS data set; set it."
                )
        self.name = f"{name}[{split}]"
        self._image_key, self.section = image_key, section
        address = to_address(data_dir)
        copied = is_remote(address) and copied_data_set(address, name, split, section)
        options: dict[str, Any] = {"split": split, "data_dir": data_dir or None, "download": False}
        try:
            self._records = (
                tfds.builder_from_directory(copied).as_data_source(split=split)
                if copied
                else tfds.data_source(name, **options)
            )
            # The image features are known only after the data set is opened.
            self._records.decoders = _images_left_alone(self._records.dataset_info.features)
        except Exception as error:  # TFDS raises ValueError, RuntimeError, AssertionError, ...
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise UserError(
                f"the TFDS data set {name}, split {split}, cannot be read ({reason}), expected it "
                f"prepared under {data_dir or 'the default data_dir'}; run tfds build {name} "
                f"--file_format=array_record, or correct {section}.name, split or path."
            ) from error
        if not len(self._records):
            raise nothing_left(self.name, split, set(), section)
        self.feature(image_key, "image_key")
        check_records(lambda index: self.image(self[index]), len(self))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        try:
            return retried(lambda: self._records[index])
        except Exception as error:  # TFDS raises RuntimeError, ValueError, DecodeError, ...
            if is_passing(error):
                raise
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise BadImageError(
                f"{self.key(index)} cannot be read ({reason}), expected a record that tfds build "
                "wrote; build the data set again."
            ) from error

    def key(self, index: int) -> str:
        """Returns the example name that reports use."""
        return f"{self.name}[{index}]"

    def feature(self, key: str, setting: str) -> Any:
        """Returns the TFDS feature for a key; for a sequence, returns the element feature.

        Raises:
            UserError: the feature does not exist; the message names `setting`.
        """
        import tensorflow_datasets as tfds

        feature = _element(self._records.dataset_info.features)
        for part in key.split("/"):
            inner = dict(feature.items()) if isinstance(feature, tfds.features.FeaturesDict) else {}
            if part not in inner:
                has = ", ".join(sorted(inner)) or "no features"
                raise UserError(
                    f"{self.name} has no feature {key}: at {part} it has {has}; correct "
                    f"{self.section}.{setting}."
                )
            feature = _element(inner[part])
        return feature

    def value(self, record: Any, key: str) -> Any:
        """Returns a feature's value in a record."""
        for part in key.split("/"):
            record = record[part]
        return record

    def image(self, record: Mapping[str, Any]) -> bytes | Shaped[np.ndarray, "..."]:
        """Returns the image in a record: an encoded file, or pixels stored as an array.

        Raises:
            UserError: the value is neither bytes nor an array.
        """
        image = self.value(record, self._image_key)
        if not isinstance(image, (bytes, np.ndarray)):
            raise UserError(
                f"{self.name} has {shortened(image)} in the feature {self._image_key}, expected an "
                f"image; correct {self.section}.image_key."
            )
        return image


def _element(feature: Any) -> Any:
    """Returns the element feature for a (possibly nested) sequence, else the feature unchanged."""
    import tensorflow_datasets as tfds

    while isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    return feature


def _images_left_alone(features: Any) -> dict[str, Any]:
    """Returns decoders that skip every image; TFDS cannot skip images inside sequences."""
    import tensorflow_datasets as tfds

    decoders: dict[str, Any] = {}
    for key, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            decoders[key] = tfds.decode.SkipDecoding()
        elif isinstance(feature, tfds.features.FeaturesDict):
            decoders[key] = _images_left_alone(feature)
    return decoders


class TfdsSource:
    """The images and captions in a TFDS split (see the module docstring)."""

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str,
        image_key: str,
        caption_columns: Sequence[str],
        section: str = SECTION,
    ) -> None:
        self._records = TfdsRecords(name, split, data_dir, image_key, section)
        self._caption_columns = caption_columns
        for column in caption_columns:
            self._records.feature(column, "caption_key")
        check_records(self.captions, len(self))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        captions = self._captions(record, index)
        return Example(self._records.image(record), captions, self._records.key(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions(self._records[index], index)

    def key(self, index: int) -> str:
        """Returns an example's name."""
        return self._records.key(index)

    def _captions(self, record: Mapping[str, Any], index: int) -> tuple[str, ...]:
        values = {column: self._records.value(record, column) for column in self._caption_columns}
        lists = {
            column: value.tolist() if isinstance(value, np.ndarray) else value
            for column, value in values.items()
        }
        return captions_of(lists, self._records.key(index))


def _open(config: DataConfig, section: str) -> TfdsSource:
    place = (config.name, config.split, config.path)
    return TfdsSource(*place, config.image_key, config.caption_columns, section)


def _read_labels(config: DataConfig, names: Sequence[str], section: str) -> LabelledImages:
    """Reads the labels of every record and leaves out records without a label."""
    records = TfdsRecords(config.name, config.split, config.path, config.image_key, section)
    label_key = config.label_key
    names = _names_of_feature(records, label_key, names)

    def labels_of(number: int) -> list[int]:
        return np.ravel(records.value(records[number], label_key)).tolist()

    images = labelled_records(records, labels_of, len(names), section)
    return LabelledImages(images, names, functools.partial(_record_image, records))


def _names_of_feature(records: TfdsRecords, key: str, names: Sequence[str]) -> Sequence[str]:
    """Returns `names` if it is not empty, else the class names that the TFDS feature defines."""
    import tensorflow_datasets as tfds

    feature = records.feature(key, "label_key")
    where = f"{records.name}, feature {key},"
    if not isinstance(feature, tfds.features.ClassLabel):
        raise UserError(
            f"{where} has the type {type(feature).__name__}, expected class labels; correct "
            f"{records.section}.label_key."
        )
    # TFDS reads a name that spans two lines as two names, so the counts may differ.
    if len(names or feature.names) != feature.num_classes:
        naming = f"{records.section}.classes names" if names else "the data set names"
        raise UserError(
            f"{where} has {feature.num_classes} classes, but {naming} "
            f"{len(names or feature.names)}; name a class for each label, in label order, in "
            f"{records.section}.classes."
        )
    if names:
        return names
    if all(map(is_number, feature.names)):
        raise numbers_only(where, records.section)
    return readable_names(feature.names, where, records.section)


def _record_image(records: TfdsRecords, number: int, key: str) -> bytes | Shaped[np.ndarray, "..."]:
    return records.image(records[number])


TFDS = SourceKind(
    reads=(
        *("path", "name", "split", "image_key", "caption_key", "label_key"),
        *("classes", "only"),
    ),
    captions=_open,
    labels=_read_labels,
    needs_path=False,
)
