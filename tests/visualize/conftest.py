"""Records the texts drawn on images."""

from __future__ import annotations

import pytest
from pictures import Drawn
from PIL import ImageDraw


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    """Records every drawn text, the text's box, and the size of the image."""
    texts: list[Drawn] = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, fill=None, font=None, anchor=None, **options):
        if text:
            box = self.textbbox(xy, text, font, anchor)
            texts.append(Drawn(text, box, self.im.size))
        original(self, xy, text, fill, font, anchor, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts
