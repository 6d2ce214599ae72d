"""Draws pictures and masks for scenes: grounds and shapes, anti-aliased by supersampling."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

_RGB = tuple[int, int, int]

COLOURS: dict[str, _RGB] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 208, 44),
    "green": (46, 160, 67),
    "blue": (38, 84, 196),
    "purple": (126, 58, 172),
    "pink": (244, 114, 182),
    "brown": (120, 72, 36),
    "black": (28, 28, 30),
    "white": (250, 250, 250),
}
GROUNDS: dict[str, _RGB] = {
    "white": (244, 244, 240),
    "grey": (150, 153, 158),
    "black": (34, 34, 40),
    "cream": (246, 229, 188),
    "light blue": (168, 212, 242),
    "dark blue": (24, 40, 92),
    "light green": (182, 226, 172),
    "dark green": (20, 76, 50),
    "lavender": (203, 188, 240),
    "salmon": (250, 168, 150),
}
# How strongly a texture blends the ground's colour towards black (dark grounds: white).
TEXTURES: dict[str, float] = {
    "plain": 0.0,
    "shaded": 0.32,
    "striped": 0.16,
    "checkered": 0.14,
    "speckled": 0.2,
}
_SUPERSAMPLING = 4
_SHADOW = [round(0.25 * covered) for covered in range(256)]
_INSIDE = [255 * (covered >= 128) for covered in range(256)]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A shape with everything that captions may mention, and the exact position.

    Attributes:
        shape: a key in `SHAPES`.
        colour: a key in `COLOURS`.
        size: a key in `SIZES`.
        place: a key in `PLACES`.
        centre: (x, y), fractions of the image side from the top left.
        radius: circumscribed circle's radius, as a fraction of the image side.
        angle: clockwise rotation in radians (within 0.2).
    """

    shape: str
    colour: str
    size: str
    place: tuple[int, int]
    centre: tuple[float, float]
    radius: float
    angle: float


def around(rng: random.Random, centre: float, reach: float) -> float:
    """Draws a number uniformly from centre - reach to centre + reach."""
    return centre + (2 * rng.random() - 1) * reach


def draw_scene(
    rng: random.Random, size: int, objects: Sequence[SceneObject], texture: str, ground: str
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Draws a picture and its mask: ground, soft shadows, then the shapes, anti-aliased.

    Args:
        rng: draws the details that captions do not mention.
        size: picture side in pixels.
        objects: the shapes, in drawing order.
        texture: a key in `TEXTURES`.
        ground: a key in `GROUNDS`.

    Returns:
        RGB pixels, and each pixel's index in `CLASSES`.
    """
    image = Image.fromarray(_ground_pixels(rng, size, texture, GROUNDS[ground]))
    mask = Image.new("L", (size, size), 0)
    tiles = [_coverage(thing, size) for thing in objects]
    drop = round(0.025 * size)
    for tile, (left, top) in tiles:
        image.paste((0, 0, 0), (left + drop, top + drop), tile.point(_SHADOW))
    for thing, (tile, corner) in zip(objects, tiles, strict=True):
        colour = tuple(round(around(rng, c, 10)) for c in COLOURS[thing.colour])
        image.paste(tuple(min(max(c, 0), 255) for c in colour), corner, tile)
        mask.paste(CLASSES.index(thing.shape), corner, tile.point(_INSIDE))
    return np.array(image), np.array(mask)


def _coverage(thing: SceneObject, size: int) -> tuple[Image.Image, tuple[int, int]]:
    """Returns a shape's coverage per pixel (0 to 255) on a tile, and the tile's (left, top)."""
    side = math.ceil(2 * thing.radius * size) + 2
    middle = np.asarray(thing.centre) * size
    corner = np.floor(middle - side / 2).astype(int)
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    points = _OUTLINES[thing.shape] @ np.array([[cos, sin], [-sin, cos]])
    points = (points * thing.radius * size + middle - corner) * _SUPERSAMPLING
    tile = Image.new("L", (side * _SUPERSAMPLING, side * _SUPERSAMPLING))
    ImageDraw.Draw(tile).polygon(points.ravel().tolist(), fill=255)
    return tile.reduce(_SUPERSAMPLING), (int(corner[0]), int(corner[1]))


def _ground_pixels(
    rng: random.Random, size: int, texture: str, colour: _RGB
) -> UInt8[np.ndarray, "h w 3"]:
    base = np.array(colour, np.float32)
    far = 0.0 if base.mean() > 100 else 255.0
    strength = TEXTURES[texture] * _pattern(rng, size, texture)
    return (base + strength[..., None] * (far - base) + 0.5).astype(np.uint8)


def _pattern(rng: random.Random, size: int, texture: str) -> Float[np.ndarray, "h w"]:
    """Returns a texture as numbers from 0 to 1, with random direction, width and phase."""
    angle, phase, pitch = (around(rng, math.pi, math.pi) for _ in range(3))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    waves = 2 * math.pi * (4 + pitch / 2)
    match texture:
        case "shaded":
            return np.clip(0.5 + u / math.sqrt(2), 0, 1)
        case "striped":
            return np.clip(0.5 + 2 * np.sin(waves * u + phase), 0, 1)
        case "checkered":
            product = np.sin(waves / 2 * u + phase) * np.sin(waves / 2 * v + phase)
            return np.clip(0.5 + 6 * product, 0, 1)
        case "speckled":
            noise = np.frombuffer(rng.randbytes(size * size), np.uint8)
            return (noise.reshape(size, size) > 190).astype(np.float32)
        case _:
            return np.zeros((size, size), np.float32)


def _arc(
    start: float, stop: float, radius: float = 1.0, x: float = 0.0
) -> Float[np.ndarray, "n 2"]:
    """Returns points on a circle around (x, 0) between angles, clockwise from the right."""
    t = np.radians(np.linspace(start, stop, 49))
    return np.stack([radius * np.cos(t) + x, radius * np.sin(t)], axis=1)


def _corners(count: int, start: float, radii: Sequence[float] = (1.0,)) -> Float[np.ndarray, "n 2"]:
    """Returns points at equal angles from `start` degrees; radii are used cyclically."""
    t = np.radians(start + 360 / count * np.arange(count))
    return np.stack([np.cos(t), np.sin(t)], axis=1) * np.resize(radii, count)[:, None]


def _heart() -> Float[np.ndarray, "n 2"]:
    t = np.linspace(0, 2 * math.pi, 65)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 17


_A = 0.34  # half the width of the cross's arms
_CROSS = np.array(
    [
        *((1, _A), (_A, _A), (_A, 1), (-_A, 1), (-_A, _A), (-1, _A)),
        *((-1, -_A), (-_A, -_A), (-_A, -1), (_A, -1), (_A, -_A), (1, -_A)),
    ]
)

# One closed outline per shape, inside the unit circle, y pointing down. The ring's two circles are
# joined by a seam with zero width; the crescent excludes the circle with radius 0.8 at (0.45, 0).
_OUTLINES = {
    "circle": 0.9 * _arc(0, 360),
    "square": _corners(4, 45),
    "triangle": _corners(3, -90),
    "diamond": _corners(4, -90) * (0.72, 1.0),
    "star": _corners(10, -90, (1.0, 0.42)),
    "cross": 0.93 * _CROSS,
    "ring": np.concatenate([_arc(0, 360), _arc(360, 0, radius=0.56)]),
    "heart": _heart(),
    "crescent": np.concatenate([_arc(51.3, 308.7), _arc(282.6, 77.4, radius=0.8, x=0.45)]),
}

# Class names by mask value.
CLASSES = ("background", *_OUTLINES)
