"""Selects images and captions for training: a source's filters, caption columns and templates."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinotxt_jax.data.examples import SECTION, ColumnCaptions
from dinotxt_jax.data.texts import filled, read_templates

if TYPE_CHECKING:
    from dinotxt_jax.config.sources import SourceConfig
    from dinotxt_jax.data.order import Draw


class FilteredError(Exception):
    """The source's filters exclude an example; training uses another example instead."""


class Selection:
    """A source's filters, and the choice of a caption for each draw.

    Args:
        settings: the source's settings.
        section: the command-line name for these settings, used in messages.

    Raises:
        UserError: the templates cannot be read.
    """

    def __init__(self, settings: SourceConfig, section: str = SECTION) -> None:
        self._columns = settings.caption_columns
        self._weights = settings.caption_weights or (1.0,) * len(self._columns)
        self._shortest = settings.min_caption_length
        self._longest = settings.max_caption_length or float("inf")
        self._min_side = settings.min_side
        self._max_aspect_ratio = settings.max_aspect_ratio or float("inf")
        self._templates: Sequence[str] = ()
        if settings.caption_templates:
            name = f"{section}.caption_templates"
            self._templates = read_templates(settings.caption_templates, name)

    @property
    def has_size_filter(self) -> bool:
        """Whether the filters depend on the image size."""
        return self._min_side > 0 or self._max_aspect_ratio < float("inf")

    def check_size(self, width: int, height: int) -> None:
        """Raises `FilteredError` if the short side (pixels) is too small or the image too long."""
        short, long = sorted((width, height))
        if short < self._min_side or long > short * self._max_aspect_ratio:
            raise FilteredError(f"{width} x {height} pixels")

    def candidates(self, draw: Draw, captions: Sequence[str]) -> tuple[str, ...]:
        """Returns the captions in the drawn column, between which epochs alternate.

        If there are templates, each caption is inserted into the drawn template.

        Raises:
            FilteredError: no caption has a length within the limits.
        """
        columns = (
            captions.columns
            if isinstance(captions, ColumnCaptions)
            else (self._columns[0],) * len(captions)
        )
        by_column: dict[str, list[str]] = {}
        for column, caption in zip(columns, captions, strict=True):
            if self._shortest <= len(caption) <= self._longest:
                by_column.setdefault(column, []).append(caption)
        if not by_column:
            raise FilteredError("no caption has a length within the limits")
        chosen = by_column[self._drawn_column(draw, by_column)]
        if not self._templates:
            return tuple(chosen)
        template = self._templates[int(draw.fraction("template") * len(self._templates))]
        return tuple(filled(template, caption) for caption in chosen)

    def caption(self, draw: Draw, captions: Sequence[str]) -> str:
        """Returns the caption that training uses for a draw.

        Raises:
            FilteredError: no caption has a length within the limits.
        """
        candidates = self.candidates(draw, captions)
        return candidates[draw.caption_index(len(candidates))]

    def _drawn_column(self, draw: Draw, by_column: dict[str, list[str]]) -> str:
        weights = dict(zip(self._columns, self._weights, strict=True))
        columns = [*by_column]
        bounds = [*itertools.accumulate(weights[column] for column in columns)]
        number = bisect.bisect_right(bounds, draw.fraction("column") * bounds[-1])
        return columns[min(number, len(columns) - 1)]
