"""Shared helpers for picture tests: a photo, labels, and functions to inspect drawn images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from dinotxt_jax.visualize.page import GAP, MARGIN

WHITE = np.full((60, 100, 3), 255, np.uint8)
HALVES = np.repeat([[0, 1]], 60, axis=0).repeat(50, axis=1)


@dataclass
class Drawn:
    text: str
    box: tuple[float, float, float, float]
    size: tuple[int, int]


def words(drawn: list[Drawn]) -> list[str]:
    return [one.text for one in drawn]


def assert_inside(drawn: list[Drawn]) -> None:
    for one in drawn:
        left, top, right, bottom = one.box
        inside = left >= -1 and top >= 0 and right <= one.size[0] + 1 and bottom <= one.size[1]
        assert inside, one


def luma(image: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray(image, np.float64) @ (0.2126, 0.7152, 0.0722)


def count(image: Image.Image, colour: np.ndarray) -> int:
    return int((np.asarray(image) == colour).all(axis=-1).sum())


def panel(picture: Image.Image, number: int, top: int, side: int, height: int) -> np.ndarray:
    left = MARGIN + number * (side + GAP)
    return np.asarray(picture)[MARGIN + top : MARGIN + top + height, left : left + side]


def without_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a machine that has no fonts except Pillow's built-in font."""
    monkeypatch.delenv("DINOTXT_FONT", raising=False)
    monkeypatch.setattr("dinotxt_jax.visualize.fonts._folders", lambda: iter(()))
