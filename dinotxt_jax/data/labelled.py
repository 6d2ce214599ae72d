"""Images with class labels: a folder a class, or a CSV index.

Labels are indices into a list of class names, never names themselves: two classes may be called the
same (of ImageNet's 1000 names 998 are distinct).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Example, nothing_left, shortened
from dinotxt_jax.data.texts import read_list
from dinotxt_jax.errors import UserError

_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
FILE_COLUMNS = ("file", "image", "path", "filename")
_SEPARATOR = ";"  # between the labels of one image

Entry = tuple[Path, tuple[int, ...], str]


class LabelledSource:
    """Image files and their labels; as a source of captions, the names of their classes.

    Attributes:
        class_names: one a class, in the order of the labels.
    """

    def __init__(self, entries: Sequence[Entry], class_names: Sequence[str]):
        self._entries = entries
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        file, _, key = self._entries[index]
        try:
            return Example(file.read_bytes(), self.captions(index), key)
        except OSError as error:
            raise BadImageError(f"{key} cannot be read: {error.strerror}") from error

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self.class_names[label] for label in self.labels(index))

    def labels(self, index: int) -> tuple[int, ...]:
        """The classes of an example."""
        return self._entries[index][1]

    def key(self, index: int) -> str:
        """The name under which reports speak of an example."""
        return self._entries[index][2]


def open_labelled(config: DataConfig) -> LabelledSource:
    """Opens `config.source` "folder" (a folder a class) or "csv".

    `config.classes` names the classes by label (default: what the data says); `config.only` keeps
    those it names, numbered anew, and the examples that have one of them.

    Raises:
        UserError: missing or empty data, or a label outside the class names.
    """
    path = Path(config.path)
    names: Sequence[str] = read_list(config.classes, "data.classes") if config.classes else ()
    if config.source == "folder":
        entries, names = _from_folders(path, names)
    else:
        entries, names = _from_csv(path, config, names)
    if config.only:
        entries, names = _restricted(entries, names, read_list(config.only, "data.only"))
    if not entries:
        raise nothing_left(path, config.split, set())
    return LabelledSource(entries, names)


def _from_folders(path: Path, names: Sequence[str]) -> tuple[list[Entry], Sequence[str]]:
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder, expected one with a folder a class; correct data.path."
        )
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    if names and len(names) != len(folders):
        raise UserError(
            f"{path} has {len(folders)} folders, but data.classes names {len(names)} classes; "
            "name one a folder, in the order of the folders' names."
        )
    entries: list[Entry] = [
        (file, (label,), str(file.relative_to(path)))
        for label, folder in enumerate(folders)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in _IMAGES
    ]
    return entries, names or [folder.name.replace("_", " ") for folder in folders]


def _from_csv(
    path: Path, config: DataConfig, names: Sequence[str]
) -> tuple[list[Entry], Sequence[str]]:
    if not path.is_file():
        raise UserError(f"{path} is not a file, expected a CSV index; correct data.path.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    columns = tuple(rows[0]) if rows else ()
    column = next((name for name in FILE_COLUMNS if name in columns), None)
    if column is None or config.label_key not in columns:
        raise UserError(
            f"{path} has the columns {', '.join(columns) or '(none)'}, expected one of "
            f"{', '.join(FILE_COLUMNS)}, and {config.label_key} (data.label_key); correct it."
        )
    labels = [
        [label.strip() for label in (row[config.label_key] or "").split(_SEPARATOR)] for row in rows
    ]
    names = names or _names_in(path, labels)
    root = Path(config.image_root) if config.image_root else path.parent
    entries = []
    for number, (row, own) in enumerate(zip(rows, labels, strict=True), 2):
        if not config.split or row.get("split") == config.split:
            found = tuple(_label(label, names, f"{path}:{number}") for label in own)
            entries.append((root / row[column], found, row[column]))
    if not entries:
        raise nothing_left(path, config.split, {row.get("split") or "" for row in rows})
    return entries, names


def _names_in(path: Path, labels: Sequence[Sequence[str]]) -> list[str]:
    """The names that a CSV uses as labels, sorted; numbers cannot name their classes."""
    names = sorted({label for row in labels for label in row if label})
    if all(map(_is_number, names)):
        raise UserError(
            f"{path} has numbers for labels, so that their names are needed; set data.classes to a "
            "list of them."
        )
    return names


def _label(text: str, names: Sequence[str], where: str) -> int:
    if not _is_number(text):
        if list(names).count(text) != 1:
            found = "several classes" if text in names else "none of the classes"
            raise UserError(
                f"{where}: the label {shortened(text)} names {found}; use the number of a class."
            )
        return list(names).index(text)
    if not 0 <= int(text) < len(names):
        raise UserError(
            f"{where}: the label {text} lies outside the {len(names)} classes (0 to "
            f"{len(names) - 1}); correct it, or data.classes."
        )
    return int(text)


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdigit()


def _restricted(
    entries: Sequence[Entry], names: Sequence[str], wanted: Sequence[str]
) -> tuple[list[Entry], list[str]]:
    """Only the classes of some names (all of one name), numbered anew."""
    strange = [name for name in wanted if name not in names]
    if strange:
        raise UserError(
            f"data.only names {shortened(strange[0])}, which is none of the {len(names)} classes; "
            "correct it."
        )
    kept = [label for label, name in enumerate(names) if name in set(wanted)]
    numbers = {label: number for number, label in enumerate(kept)}
    left = []
    for file, labels, key in entries:
        own = tuple(numbers[label] for label in labels if label in numbers)
        if own:
            left.append((file, own, key))
    return left, [names[label] for label in kept]
