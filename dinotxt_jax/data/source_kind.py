"""The protocol between `data.sources` and the modules that read one kind of source each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig
    from dinotxt_jax.data.class_labels import LabelledImages
    from dinotxt_jax.data.examples import Source
    from dinotxt_jax.data.masks import MaskSource


CAPTIONS, LABELS, MASKS = "captions", "class labels", "masks"


@dataclass(frozen=True)
class SourceKind:
    """One kind of source: the settings that it reads, and a function for everything it gives.

    A module defines one such object and `data.sources.SOURCES` lists it under the name that users
    write in `config.data.source`. Each function raises `UserError` for data that cannot be used.

    The last argument of each function is the name of these settings on the command line, such as
    "config.data" or "config.tasks.flickr8k.data", so that messages name the user's own key.

    Attributes:
        reads: fields of `DataConfig` that locate the data or select a part of it. Fields that
            prepare images (`image_size`, `augmentation`, ...) mean the same for every source and
            are not listed.
        captions: opens the images with their captions. None if the data has no captions.
        labels: reads the class labels; the second argument is the list of class names that
            `config.classes` gives (empty: the data names its classes). None if it has no labels.
        masks: opens the images with their masks. None if the data has no masks.
        needs_path: whether `config.path` must be set.
    """

    reads: tuple[str, ...]
    captions: Callable[[DataConfig, str], Source] | None = None
    labels: Callable[[DataConfig, Sequence[str], str], LabelledImages] | None = None
    masks: Callable[[DataConfig, str], MaskSource] | None = None
    needs_path: bool = True

    @property
    def gives(self) -> tuple[str, ...]:
        """`CAPTIONS`, `LABELS` or `MASKS`; class labels give captions too, the class names."""
        openers = {CAPTIONS: self.captions or self.labels, LABELS: self.labels, MASKS: self.masks}
        return tuple(content for content, opener in openers.items() if opener is not None)
