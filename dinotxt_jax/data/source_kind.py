"""The interface between `data.sources` and the modules that read each source kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dinotxt_jax.config.sources import CAPTIONS, LABELS, MASKS

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig
    from dinotxt_jax.data.class_labels import LabelledImages
    from dinotxt_jax.data.examples import Source
    from dinotxt_jax.data.masks import MaskSource


@dataclass(frozen=True)
class SourceKind:
    """A source kind: the settings that it reads, and a function for each content type it provides.

    Each source module defines a `SourceKind`, and `data.sources.SOURCES` lists it under the name
    that users write in `config.data.source`. The functions raise `UserError` for unusable data.

    The last argument to each function is the command-line name for these settings, such as
    "config.data" or "config.tasks.flickr8k.data", so that messages name the key that the user set.

    Attributes:
        reads: `DataConfig` fields that locate the data or select a part. Fields that prepare
            images (`image_size`, `augmentation`, ...) have the same meaning for all sources and are
            not listed.
        captions: opens the images and captions, or returns None for data with class labels only.
            None if the data has no captions.
        labels: reads the class labels; the second argument lists the class names from
            `config.classes` (empty: the data provides the names). None if the data has no labels.
        masks: opens the images and masks. None if the data has no masks.
        needs_path: whether `config.path` must be set.
    """

    reads: tuple[str, ...]
    captions: Callable[[DataConfig, str], Source | None] | None = None
    labels: Callable[[DataConfig, Sequence[str], str], LabelledImages] | None = None
    masks: Callable[[DataConfig, str], MaskSource] | None = None
    needs_path: bool = True

    @property
    def gives(self) -> tuple[str, ...]:
        """Lists the content (`CAPTIONS`, `LABELS`, `MASKS`) that the source provides.

        A source with class labels also provides captions: the class names.
        """
        openers = {CAPTIONS: self.captions or self.labels, LABELS: self.labels, MASKS: self.masks}
        return tuple(content for content, opener in openers.items() if opener is not None)
