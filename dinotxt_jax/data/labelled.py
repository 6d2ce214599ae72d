"""Images with class labels, from any source that has labels.

Labels are indices into a list of class names, never the names: two classes may have the same name
(998 of the 1000 ImageNet names are distinct).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dinotxt_jax.data.class_labels import LabelledImage, LabelledImages
from dinotxt_jax.data.examples import Example, shortened
from dinotxt_jax.data.texts import read_list
from dinotxt_jax.errors import UserError

PRESENT = "present"


class LabelledSource:
    """A source with images and labels; the captions are the class names.

    Attributes:
        class_names: the name for each class, in label order.

    Args:
        labelled: the images, the class names, and the function that loads an image.
    """

    def __init__(self, labelled: LabelledImages):
        self._images, class_names, self._load = labelled
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        image, _, key = self._images[index]
        return Example(self._load(image, key), self.captions(index), key)

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self.class_names[label] for label in self.labels(index))

    def labels(self, index: int) -> tuple[int, ...]:
        """Returns an example's class labels."""
        return self._images[index].labels

    def key(self, index: int) -> str:
        """Returns an example's name in reports."""
        return self._images[index].key


def with_classes(labelled: LabelledImages, only: str, section: str) -> LabelledImages:
    """Returns the classes that `config.only` keeps, renumbered, and the images with a kept class.

    Args:
        labelled: all images and classes.
        only: a class name list (`read_list`), "present" (classes that have an image) or "" (all
            classes).
        section: the command-line name for the data settings, used in messages.

    Raises:
        UserError: a listed name is not a class.
    """
    if not only:
        return labelled
    images, names, load = labelled
    if only == PRESENT:
        labels = {label for image in images for label in image.labels}
    else:
        labels = _labels_of(read_list(only, f"{section}.only"), names, section)
    return LabelledImages(*_restricted(images, names, labels), load)


def _labels_of(entries: Sequence[str], names: Sequence[str], section: str) -> set[int]:
    """Returns the named classes' labels; a name shared by several classes selects all of them."""
    unknown_names = [name for name in entries if name not in names]
    if unknown_names:
        raise UserError(
            f"{section}.only names {shortened(unknown_names[0])}, which is not among the "
            f"{len(names)} classes; correct it."
        )
    return {label for label, name in enumerate(names) if name in set(entries)}


def _restricted(
    images: Sequence[LabelledImage], names: Sequence[str], labels_kept: Collection[int]
) -> tuple[list[LabelledImage], list[str]]:
    """Returns the images with a kept class, under new labels, and the kept class names."""
    numbers = {label: number for number, label in enumerate(sorted(labels_kept))}
    remaining = []
    for image, labels, key in images:
        kept_labels = tuple(numbers[label] for label in labels if label in numbers)
        if kept_labels:
            remaining.append(LabelledImage(image, kept_labels, key))
    return remaining, [names[label] for label in numbers]
