"""CSV files that list images, each with something that belongs to it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from dinotxt_jax.data.examples import nothing_left
from dinotxt_jax.errors import UserError

FILE_COLUMNS = ("file", "image", "path", "filename")


class Row(NamedTuple):
    """A line of the index: its number, the image file, and the value of the other column."""

    number: int
    file: str
    value: str


def read_index(path: Path, column: str, split: str, setting: str = "") -> list[Row]:
    """The lines of a split ("": all), with the image file and one more column.

    Args:
        path: the CSV; its image column has one of `FILE_COLUMNS` as its name.
        column: the other one.
        split: of the column of that name.
        setting: the config key that names `column`, for messages.

    Raises:
        UserError: no file, not UTF-8, without these columns, a line that lacks a value, or nothing
            of that split.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is not a file, expected a CSV index with the columns {FILE_COLUMNS[0]} and "
            f"{column}; correct data.path."
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV in UTF-8 ({error}); save it as such.") from error
    columns = tuple(rows[0]) if rows else ()
    image = next((name for name in FILE_COLUMNS if name in columns), None)
    if image is None or column not in columns:
        raise UserError(
            f"{path} has the columns {', '.join(map(str, columns)) or '(none)'}, expected one of "
            f"{', '.join(FILE_COLUMNS)}, and {column}{setting and f' ({setting})'}; correct it."
        )
    found = []
    for number, row in enumerate(rows, 2):
        if split and row.get("split") != split:
            continue
        file_name, value = row[image], row[column]
        if not file_name or not value:
            raise UserError(
                f"{path}:{number}: the column {image if not file_name else column} is empty; fill "
                "it or remove the line."
            )
        found.append(Row(number, file_name, value))
    if not found:
        raise nothing_left(path, split, {row.get("split") or "" for row in rows})
    return found
