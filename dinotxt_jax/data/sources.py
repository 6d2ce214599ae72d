"""Random access to image-text examples: JSONL beside image files, ArrayRecord, and TFDS.

A source is opened once, checked as far as that is cheap, and then read by index from many
threads (and, pickled, from worker processes). It hands out images undecoded: that
`dinotxt_jax.data.transforms` does, so that a broken image is met in one place.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinotxt_jax.data.array_records import ArrayRecordSource, write_array_record
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Example, Source, checked_captions, nothing_left, shortened
from dinotxt_jax.errors import UserError

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig

__all__ = [
    "ArrayRecordSource",
    "Example",
    "JsonlSource",
    "Source",
    "TfdsSource",
    "open_source",
    "write_array_record",
]


def open_source(config: DataConfig) -> Source:
    """Opens what `config.source` names.

    Raises:
        UserError: unknown source; missing or empty data; an example that is not as it should be.
    """
    if config.source == "scenes":
        from dinotxt_jax.data.scenes import SceneSource

        split = config.split or "train"
        return SceneSource(config.num_scenes, split=split, image_size=config.image_size)
    if config.source == "tfds":
        return TfdsSource(
            config.name, config.split, config.path, config.image_key, config.caption_key
        )
    if config.source not in ("jsonl", "array_record", "folder", "csv"):
        raise UserError(
            f"config.data.source is {config.source!r}, expected scenes, jsonl, array_record, tfds, "
            "folder or csv; set it to one of these."
        )
    if not config.path:
        raise UserError(
            f"config.data.path is empty, expected the path that config.data.source="
            f"{config.source} reads; set it."
        )
    if config.source in ("folder", "csv"):
        from dinotxt_jax.data.labelled import open_labelled

        return open_labelled(config)
    if config.source == "jsonl":
        return JsonlSource(config.path, image_root=config.image_root, split=config.split)
    return ArrayRecordSource(config.path, split=config.split)


class JsonlSource:
    """Image files and an index with one JSON object a line.

    Each line holds `image` (a path relative to `image_root`), `captions` (a list of texts) or
    `caption` (one text), and optionally `split`. Every line is checked once, here. What stays in
    memory is where each kept line lies, 12 bytes an example; it is read again when asked for.
    """

    def __init__(self, path: str | Path, *, image_root: str | Path = "", split: str = "") -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise UserError(
                f"{self._path} is not a file, expected the index of config.data.source=jsonl; "
                "correct config.data.path."
            )
        self._root = Path(image_root) if image_root else self._path.parent
        if not self._root.is_dir():
            raise UserError(
                f"{self._root} is not a folder, expected the one that the image paths in "
                f"{self._path} are relative to; correct config.data.image_root."
            )
        self._index = self._path.open("rb")
        self._offsets, self._lengths = self._scan(split)

    def _scan(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Checks every line; returns offset and length of the lines that belong to `split`."""
        offsets, lengths = array("q"), array("i")
        splits = set()
        offset = 0
        for number, line in enumerate(self._index, 1):
            if line.strip():
                found = _parse_line(line, f"{self._path}:{number}")[2]
                splits.add(found)
                if not split or found == split:
                    offsets.append(offset)
                    lengths.append(len(line))
            offset += len(line)
        if not offsets:
            raise nothing_left(self._path, split, splits)
        return np.frombuffer(offsets, np.int64), np.frombuffer(lengths, np.int32)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Example:
        name, captions = self._entry(index)
        try:
            image = (self._root / name).read_bytes()
        except OSError as error:
            raise BadImageError(f"{name} cannot be read: {error.strerror}") from error
        return Example(image, captions, name)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._entry(index)[1]

    def _entry(self, index: int) -> tuple[str, tuple[str, ...]]:
        """(image path, captions) of an example."""
        # pread moves no shared file position, so threads need no lock.
        line = os.pread(self._index.fileno(), int(self._lengths[index]), int(self._offsets[index]))
        return _parse_line(line, f"{self._path}, example {index}")[:2]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_index"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._index = self._path.open("rb")


def _parse_line(line: bytes, where: str) -> tuple[str, tuple[str, ...], str]:
    """(image path, captions, split) of one index line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: this line is not JSON ({error}), expected one object a line; correct or "
            "remove it."
        ) from error
    if not isinstance(record, dict):
        raise UserError(
            f"{where}: this line is {shortened(record)}, expected a JSON object with image and "
            "captions; correct or remove it."
        )
    name = record.get("image")
    if not isinstance(name, str) or not name:
        found = shortened(name) if "image" in record else "missing"
        raise UserError(
            f"{where}: the field image is {found}, expected the path of an image; correct or "
            "remove the line."
        )
    if "captions" not in record and "caption" not in record:
        raise UserError(
            f"{where}: the field captions is missing, expected captions (a list of texts) or "
            "caption (one text); add it or remove the line."
        )
    captions = checked_captions(record.get("captions", record.get("caption")), where)
    split = record.get("split", "")
    if not isinstance(split, str):
        raise UserError(
            f"{where}: the field split is {shortened(split)}, expected a text; correct it."
        )
    return name, captions, split


class TfdsSource:
    """A split of a TensorFlow Datasets data set, through `tfds.data_source`, without TensorFlow.

    The data set must already lie under `data_dir` (default: TFDS's own) in a random-access format.
    `image_key` and `caption_key` are feature names; a path such as `captions/text` goes into nested
    features. Encoded images are left undecoded.
    """

    def __init__(
        self, name: str, split: str, data_dir: str, image_key: str, caption_key: str
    ) -> None:
        import tensorflow_datasets as tfds

        for key, value in (("name", name), ("split", split)):
            if not value:
                raise UserError(
                    f"config.data.{key} is empty, expected the {key} of a TFDS data set; set it."
                )
        self._name = f"{name}[{split}]"
        self._image_path, self._caption_path = image_key.split("/"), caption_key.split("/")
        decoders: Any = tfds.decode.SkipDecoding()
        for part in reversed(self._image_path):
            decoders = {part: decoders}
        options: dict[str, Any] = {"split": split, "data_dir": data_dir or None, "download": False}
        try:
            self._records = tfds.data_source(name, decoders=decoders, **options)
            if len(self._records):
                self._records[0]  # TFDS compares image_key with the features only now
        except Exception as error:  # TFDS raises ValueError, RuntimeError, AssertionError, ...
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise UserError(
                f"the TFDS data set {name}, split {split}, cannot be read ({reason}), expected it "
                f"prepared under {data_dir or 'the default data_dir'}, with the feature "
                f"{image_key}; run tfds build {name} --file_format=array_record, or correct "
                "config.data.name, split, path or image_key."
            ) from error
        if not len(self._records):
            raise nothing_left(self._name, split, set())
        self[0]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        key = f"{self._name}[{index}]"
        record = self._records[index]
        image = self._feature(record, self._image_path, "image_key")
        return Example(image, self._captions(record, key), key)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions(self._records[index], f"{self._name}[{index}]")

    def _captions(self, record: Any, key: str) -> tuple[str, ...]:
        captions = self._feature(record, self._caption_path, "caption_key")
        if isinstance(captions, np.ndarray):
            captions = captions.tolist()
        return checked_captions(captions, key)

    def _feature(self, record: Any, path: list[str], setting: str) -> Any:
        for depth, part in enumerate(path):
            if isinstance(record, (list, tuple)):  # a sequence of feature maps
                return [self._feature(item, path[depth:], setting) for item in record]
            if not isinstance(record, Mapping) or part not in record:
                has = ", ".join(sorted(record)) if isinstance(record, Mapping) else "no features"
                raise UserError(
                    f"{self._name} has no feature {'/'.join(path)}: at {part} it has {has}; "
                    f"correct config.data.{setting}."
                )
            record = record[part]
        return record
