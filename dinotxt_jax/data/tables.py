"""Tables with an image column, from Arrow or Parquet: rows, columns, captions, class labels."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.class_labels import (
    LabelledImages,
    is_number,
    labelled_records,
    numbers_only,
    readable_names,
)
from dinotxt_jax.data.examples import (
    Example,
    caption_columns,
    captions_or_bad,
    check_records,
    shortened,
)
from dinotxt_jax.errors import UserError

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig

_CAPTION_COLUMNS = ("caption", "text")


class TableRows(Protocol):
    """Rows that any thread may read in any order.

    Attributes:
        name: the table's name, for messages.
        columns: the column names.
        features: column descriptions in the Hugging Face `datasets` format; may be empty.
    """

    name: str
    columns: Sequence[str]
    features: Mapping[str, Any]

    def __len__(self) -> int: ...

    def key(self, index: int, /) -> str:
        """Returns a row's name, which does not depend on the parent folder."""

    def value(self, index: int, column: str, /) -> Any:
        """Returns the value in a row and column; "a/b" names the field b in the column a.

        Raises:
            BadImageError: the row cannot be read.
            UserError: the file has changed.
        """

    def image_file(self, path: str, key: str, /) -> bytes:
        """Reads the image file at a path that the table contains.

        Raises:
            BadImageError: the file cannot be read; the message names `key`.
        """


def chosen_column(rows: TableRows, names: Sequence[str], setting: str) -> str:
    """Returns the first existing column among `names`.

    Raises:
        UserError: no such column exists; the message recommends `setting`, the key for the column.
    """
    column = next((name for name in names if name.split("/")[0] in rows.columns), None)
    if column is None:
        raise UserError(
            f"{rows.name} has the columns {', '.join(rows.columns)}, expected {names[0]}; set "
            f"{setting} to the correct column."
        )
    return column


def field_of(value: Any, column: str) -> Any:
    """Returns the nested field that a column "a/b" selects; raises `KeyError` or `TypeError`."""
    for part in column.split("/")[1:]:
        value = value[part]
    return value


class TableSource:
    """A table's images and captions.

    Args:
        rows: the rows.
        config: the data settings.
        section: command-line name for these settings.

    Raises:
        UserError: a column is missing, or no row has captions.
    """

    def __init__(self, rows: TableRows, config: DataConfig, section: str) -> None:
        self._rows, self._section = rows, section
        self._image = chosen_column(rows, (config.image_key,), f"{section}.image_key")
        # Keyed by the names in `caption_key`, since `caption_weights` refers to these names.
        self._captions = {
            name: chosen_column(
                rows, caption_columns(name, _CAPTION_COLUMNS), f"{section}.caption_key"
            )
            for name in config.caption_columns
        }
        check_records(self.captions, len(self))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        image = image_of_row(self._rows, self._image, self._section, index)
        return Example(image, self.captions(index), self.key(index))

    def captions(self, index: int) -> tuple[str, ...]:
        values = {name: self._rows.value(index, column) for name, column in self._captions.items()}
        return captions_or_bad(values, self.key(index))

    def key(self, index: int) -> str:
        """Returns an example's name."""
        return self._rows.key(index)


def image_of_row(rows: TableRows, column: str, section: str, index: int, _: object = None) -> bytes:
    """Returns a row's image file bytes; the row contains these bytes, or a path to read them from.

    Raises:
        BadImageError: the row has no image.
    """
    value = rows.value(index, column)
    if isinstance(value, dict) and {"bytes", "path"} <= value.keys():
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if isinstance(value, str):
        return rows.image_file(value, f"{value} of {rows.key(index)}")
    if not isinstance(value, bytes):
        raise BadImageError(
            f"{rows.key(index)} has {shortened(value)} in the column {column}, expected an "
            f"image; correct {section}.image_key."
        )
    return value


def table_labels(
    rows: TableRows, config: DataConfig, names: Sequence[str], section: str
) -> LabelledImages:
    """Returns a table's images and class labels.

    Raises:
        UserError: a column is missing or does not hold labels, or the classes have no names.
    """
    image = chosen_column(rows, (config.image_key,), f"{section}.image_key")
    column = chosen_column(rows, (config.label_key,), f"{section}.label_key")
    names = names or _names_of_column(rows, column, section)

    def labels_of(number: int) -> list[int]:
        value = rows.value(number, column)
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(label, int) for label in values):
            raise UserError(
                f"{rows.key(number)} has {shortened(value)} in the column {column}, expected class "
                f"labels; correct {section}.label_key."
            )
        return values

    images = labelled_records(rows, labels_of, len(names), section)
    return LabelledImages(images, names, functools.partial(image_of_row, rows, image, section))


def _names_of_column(rows: TableRows, column: str, section: str) -> list[str]:
    """Returns the class names that a `ClassLabel` column description lists.

    Raises:
        UserError: there are no class names, or all of them are numbers.
    """
    description: Any = rows.features
    for part in column.split("/"):
        description = description.get(part, {}) if isinstance(description, dict) else {}
        description = _element_of(description)
    names = description.get("names") if isinstance(description, dict) else None
    if not names or not all(isinstance(name, str) for name in names) or all(map(is_number, names)):
        raise numbers_only(f"{rows.name}, column {column},", section)
    return readable_names(names, rows.name, section)


def _element_of(description: Any) -> Any:
    """Returns the element description for a (possibly nested) list."""
    while True:
        if isinstance(description, list) and description:
            description = description[0]
        elif isinstance(description, dict) and "feature" in description:
            description = description["feature"]
        else:
            return description
