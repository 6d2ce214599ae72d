"""Images with class labels, from any source that has labels.

Labels are indices into a list of class names, never names themselves: two classes may be called the
same (of ImageNet's 1000 names 998 are distinct).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dinotxt_jax.data.class_labels import LabelledImage, LabelledImages
from dinotxt_jax.data.examples import Example, shortened
from dinotxt_jax.data.texts import read_list
from dinotxt_jax.errors import UserError

PRESENT = "present"


class LabelledSource:
    """Images and their labels. It is a source of captions too: the names of the classes.

    Attributes:
        class_names: name of each class, in the order of the labels.

    Args:
        labelled: the images, the names of their classes, and how an image is loaded.
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
        """The classes of an example."""
        return self._images[index].labels

    def key(self, index: int) -> str:
        """The name under which reports speak of an example."""
        return self._images[index].key


def with_classes(labelled: LabelledImages, only: str, section: str) -> LabelledImages:
    """The classes that `config.only` keeps, numbered anew, and the images that have one of them.

    Args:
        labelled: all images and classes.
        only: a list of class names (`read_list`), "present" (classes that have an image) or ""
            (all classes).
        section: the name of the data settings on the command line, for messages.

    Raises:
        UserError: a name in the list that no class has.
    """
    if not only:
        return labelled
    images, names, load = labelled
    if only == PRESENT:
        kept = {label for image in images for label in image.labels}
    else:
        kept = _labels_of(read_list(only, f"{section}.only"), names, section)
    return LabelledImages(*_restricted(images, names, kept), load)


def _labels_of(kept: Sequence[str], names: Sequence[str], section: str) -> set[int]:
    """The labels of the named classes; a name that several classes have keeps all of them."""
    strange = [name for name in kept if name not in names]
    if strange:
        raise UserError(
            f"{section}.only names {shortened(strange[0])}, which is none of the {len(names)} "
            "classes; correct it."
        )
    return {label for label, name in enumerate(names) if name in set(kept)}


def _restricted(
    images: Sequence[LabelledImage], names: Sequence[str], kept: Collection[int]
) -> tuple[list[LabelledImage], list[str]]:
    """The kept classes, numbered anew, and the images that have one of them."""
    numbers = {label: number for number, label in enumerate(sorted(kept))}
    left = []
    for image, labels, key in images:
        kept_labels = tuple(numbers[label] for label in labels if label in numbers)
        if kept_labels:
            left.append(LabelledImage(image, kept_labels, key))
    return left, [names[label] for label in numbers]
