"""The pool that a report is about, its lists, and pictures of some examples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from dinotxt_jax.config import CurationConfig, DataConfig
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Source, readable_captions
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.kept import KeptList
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.train_views import decoded_image
from dinotxt_jax.visualize.web_page import Picture, gallery_element

# Longest side of a picture, pixels, and most characters of its captions.
_SIDE, _LONGEST = 176, 200


class ReportPool(NamedTuple):
    """The pool and the lists that a report compares.

    Attributes:
        data: the settings of the pool.
        source: the opened pool.
        identity: the identity of the pool.
        lists: the lists of the report, by name.
    """

    data: DataConfig
    source: Source
    identity: dict[str, Any]
    lists: dict[str, KeptList]

    @classmethod
    def of(cls, config: CurationConfig) -> ReportPool:
        """Opens the pool of `config.data`, without lists.

        Raises:
            UserError: it cannot be opened.
        """
        source = open_source(config.data)
        return cls(config.data, source, data_identity(source, config.data.threads), {})

    def gallery(self, indices: Sequence[int] | Int64[np.ndarray, " n"]) -> str:
        """Returns pictures of examples, each above its name and captions."""
        return gallery_element([self._picture(int(index)) for index in indices])

    def _picture(self, index: int) -> Picture:
        try:
            title = self.source.key(index)
        except BadImageError:
            title = f"example {index}"
        texts = readable_captions(self.source, index) or ("(captions cannot be read)",)
        text = " / ".join(t if len(t) <= _LONGEST else f"{t[:_LONGEST]}..." for t in texts)
        return Picture(self._thumbnail(index), title, text)

    def _thumbnail(self, index: int) -> bytes | None:
        """Returns a small JPEG file, or None if the image cannot be read."""
        try:
            image = decoded_image(self.source[index], self.data)
        except BadImageError:
            return None
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=80)
        return buffer.getvalue()


def spaced(indices: Int64[np.ndarray, " n"], most: int) -> Int64[np.ndarray, " k"]:
    """Returns at most `most` of the indices, evenly spaced."""
    count = min(most, len(indices))
    return indices[np.arange(count) * len(indices) // max(count, 1)]
