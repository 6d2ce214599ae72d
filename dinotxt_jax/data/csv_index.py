"""CSV and TSV files that list images, each with captions, class labels or a mask file.

The image column is called `file`, `image`, `path`, `filename` or `filepath`. The column
`config.caption_key`, `caption` or `title` contains a caption; further lines with the same image add
captions. The column `config.label_key` contains labels, as numbers or names; several labels are
separated by ";". The column `mask` contains mask files. Image and mask paths are relative to
`config.image_root`. `config.classes` names the classes; among mask classes, "background" stands for
everything else. Values are separated by tabs if the first line has a tab.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dinotxt_jax.data.caption_files import CaptionFileSource, caption_file_source
from dinotxt_jax.data.class_labels import (
    LabelledImage,
    LabelledImages,
    checked_label,
    is_number,
    numbers_only,
)
from dinotxt_jax.data.examples import (
    DEFAULT_CAPTION_KEY,
    caption_columns,
    captions_of,
    folder_of_images,
    image_bytes,
    no_file,
    nothing_left,
    shortened,
)
from dinotxt_jax.data.masks import MaskFiles, checked_indices
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.data.texts import BACKGROUND, read_list
from dinotxt_jax.data.transforms import view_decoder
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.byte_ranges import ByteRanges, stream
from dinotxt_jax.storage.retries import retried

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig

FILE_COLUMNS = ("file", "image", "path", "filename", "filepath")
# Fallbacks for `config.caption_key`: the column names in lists for img2dataset and open_clip.
_CAPTION_COLUMNS = ("caption", "title")
_SEPARATOR = ";"  # between an image's labels


# Key of the fields that no column is for.
_MORE = "more fields"


class IndexRow(NamedTuple):
    """An index line: line number, image file, and the value in the other column."""

    number: int
    file: str
    value: str


def read_index(
    path: Address,
    column: str,
    split: str,
    section: str,
    setting: str = "",
    *,
    optional: bool = False,
) -> list[IndexRow]:
    """Reads the index lines in a split ("": all lines), with the image file and another column.

    Args:
        path: the CSV file, with an image column that `FILE_COLUMNS` lists.
        column: the other column to read.
        split: the value to select in the column `split`.
        section: command-line name for the data settings, for messages.
        setting: the settings key that names `column`, for messages; "" if there is no such key.
        optional: whether the value may be empty.

    Raises:
        UserError: the file does not exist, is not UTF-8 or lacks these columns, a line lacks a
            value, or no line belongs to the split.
    """
    with _lines(path, section) as lines:
        columns = tuple(lines.fieldnames or ())
        image = next((name for name in FILE_COLUMNS if name in columns), None)
        if columns and (image is None or column not in columns):
            raise UserError(
                f"{path} has the columns {', '.join(map(str, columns))}, expected one of "
                f"{', '.join(FILE_COLUMNS)}, and {column}; rename the columns"
                + (f", or set {section}.{setting} to the correct column." if setting else ".")
            )
        images, splits = [], set()
        for number, row in enumerate(lines, 2):
            if _MORE in row:
                raise UserError(
                    f"{path}:{number}: the line has {len(columns) + len(row[_MORE])} fields, "
                    f"expected {len(columns)}; put text with commas in double quotes."
                )
            splits.add(row.get("split") or "")
            if split and row.get("split") != split:
                continue
            file_name, value = row[image], row[column]
            if "\t" in (value or ""):
                raise UserError(
                    f"{path}:{number}: the column {column} holds a tab, as after a quote that is "
                    "not closed; close it, or remove the line."
                )
            if not file_name or not (value or optional):
                raise UserError(
                    f"{path}:{number}: the column {image if not file_name else column} is empty; "
                    "fill it or remove the line."
                )
            images.append(IndexRow(number, file_name, value or ""))
    if not images:
        raise nothing_left(path, split, splits, section)
    return images


@contextlib.contextmanager
def _lines(path: Address, section: str) -> Iterator[csv.DictReader[Any]]:
    """Opens an index; converts decoding and CSV errors in the `with` block to `UserError`."""
    if not retried(path.is_file):
        raise UserError(
            f"{no_file(path)}, expected a CSV index with the column {FILE_COLUMNS[0]} and others; "
            f"correct {section}.path."
        )
    try:
        content = stream(ByteRanges(path))
        with io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as file:
            delimiter = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            # An unclosed quote must not swallow the lines after it. TSV files of open_clip have
            # fields that begin with a quoted word, which strict parsing would refuse.
            is_strict = delimiter == ","
            lines = csv.DictReader(file, delimiter=delimiter, restkey=_MORE, strict=is_strict)
            names = list(lines.fieldnames or ())
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise UserError(
                    f"{path} has the column {repeated[0]} twice, expected different names; rename "
                    "one of them."
                )
            yield lines
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} is not a CSV in UTF-8 ({error}); save it in this format."
        ) from error


def _open_captions(config: DataConfig, section: str) -> CaptionFileSource | None:
    """Opens images and captions, or returns None if there is no caption column."""
    path = to_address(config.path)
    with _lines(path, section) as lines:
        columns = lines.fieldnames or ()
    names = caption_columns(config.caption_key, _CAPTION_COLUMNS)
    existing = next((name for name in names if name in columns), None)
    if existing is None and config.caption_key == DEFAULT_CAPTION_KEY:
        return None
    captions: dict[str, dict[str, list[str]]] = {}  # file -> column -> captions
    columns_read = (existing,) if existing else config.caption_columns
    optional = len(columns_read) > 1
    for column in columns_read:
        for row in read_index(
            path, column, config.split, section, "caption_key", optional=optional
        ):
            where = f"{path}:{row.number}"
            texts = captions.setdefault(row.file, {}).setdefault(column, [])
            if row.value.strip() or not optional:
                texts.extend(captions_of({column: row.value}, where))
    entries = [(file, captions_of(texts, f"{path}, {file}")) for file, texts in captions.items()]
    return caption_file_source(path, config.image_root, entries, section)


def _read_labels(config: DataConfig, names: Sequence[str], section: str) -> LabelledImages:
    path = to_address(config.path)
    rows = read_index(path, config.label_key, config.split, section, "label_key")
    labels = [[label.strip() for label in row.value.split(_SEPARATOR)] for row in rows]
    # Without `names`, labels are class names, including those that look like numbers.
    names_in_file = () if names else _names_in(path, labels, section)
    root = folder_of_images(path, config.image_root, section)
    images = []
    for row, texts in zip(rows, labels, strict=True):
        where = f"{path}:{row.number}"
        numbers = tuple(
            _label_named(text, names_in_file, where)
            if names_in_file
            else _label(text, names, where, section)
            for text in texts
        )
        images.append(LabelledImage(root / row.file, numbers, row.file))
    return LabelledImages(images, names or names_in_file, image_bytes)


def _names_in(path: Address, labels: Sequence[Sequence[str]], section: str) -> list[str]:
    """Returns the sorted class names that a CSV uses as labels.

    Raises:
        UserError: all labels are numbers, which cannot name classes.
    """
    names = sorted({label for row in labels for label in row if label})
    if all(map(is_number, names)):
        raise numbers_only(path, section)
    return names


def _label(text: str, names: Sequence[str], where: str, section: str) -> int:
    if is_number(text):
        return checked_label(int(text), len(names), where, section)
    return _label_named(text, names, where)


def _label_named(text: str, names: Sequence[str], where: str) -> int:
    if list(names).count(text) != 1:
        matches = "several classes" if text in names else "no class"
        raise UserError(f"{where}: the label {shortened(text)} names {matches}; use class numbers.")
    return list(names).index(text)


def _open_masks(config: DataConfig, section: str) -> MaskFiles:
    path = to_address(config.path)
    if not config.classes:
        raise UserError(
            f"{section}.classes is empty, expected the class names for the mask values; set it to "
            "a text file with one name per line."
        )
    names = read_list(config.classes, f"{section}.classes")
    rows = read_index(path, "mask", config.split, section)
    to_indices = functools.partial(checked_indices, classes=len(names), section=section)
    background = names.index(BACKGROUND) if BACKGROUND in names else None
    root = folder_of_images(path, config.image_root, section)
    for row in rows:
        for file in (row.file, row.value):
            if not (root / file).is_file():
                raise UserError(
                    f"{path}:{row.number}: there is no file {file} in the folder {root}, expected "
                    f"an image and its mask; correct the path, or {section}.image_root (the folder "
                    "that the paths are relative to)."
                )
    pairs = [(row.file, row.value) for row in rows]
    return MaskFiles(root, pairs, to_indices, names, background, view_decoder(config))


CSV = SourceKind(
    reads=("path", "image_root", "split", "caption_key", "label_key", "classes", "only"),
    captions=_open_captions,
    labels=_read_labels,
    masks=_open_masks,
)
