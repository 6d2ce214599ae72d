"""Drawn scenes with captions and masks: real supervision without a download.

A scene shows one to three separate coloured shapes on a coloured, textured ground. A random
description (shapes, colours, sizes, places, ground) is drawn first. Picture, mask and captions are
all made from this description, so captions are true and masks are exact.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from dinotxt_jax.data.drawing import (
    CLASSES,
    COLOURS,
    GROUNDS,
    TEXTURES,
    SceneObject,
    around,
    draw_scene,
)
from dinotxt_jax.data.examples import Example
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.data.texts import BACKGROUND
from dinotxt_jax.errors import UserError, check_choice

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig

T = TypeVar("T")
_Spot = tuple[str, tuple[int, int], tuple[float, float], float, float]

# Shape names, the class name first.
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "diamond": ("diamond",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
    "crescent": ("crescent", "moon"),
}
# Size names, and the radius as a fraction of the image side.
SIZES: dict[str, tuple[tuple[str, ...], float]] = {
    "small": (("small", "little"), 0.12),
    "medium": (("medium-sized",), 0.17),
    "large": (("large", "big"), 0.23),
}
# Place names, by row and column in the 3 x 3 grid.
PLACES: dict[tuple[int, int], tuple[str, ...]] = {
    (0, 0): ("at the top left", "in the top left corner"),
    (0, 1): ("at the top", "at the top centre"),
    (0, 2): ("at the top right", "in the top right corner"),
    (1, 0): ("on the left", "on the left side"),
    (1, 1): ("in the centre", "in the middle"),
    (1, 2): ("on the right", "on the right side"),
    (2, 0): ("at the bottom left", "in the bottom left corner"),
    (2, 1): ("at the bottom", "at the bottom centre"),
    (2, 2): ("at the bottom right", "in the bottom right corner"),
}
_OBJECT_COUNTS = (1, 2, 2, 2, 3, 3)
_CONTRAST = 125.0  # minimum RGB distance between an object and the ground
_GAP = 0.03  # minimum distance between two objects, as a fraction of the image side
_HELD_OUT = 5  # 1 / _HELD_OUT is the fraction of descriptions in the test split
_GRID = (0.28, 0.5, 0.72)  # column and row positions
_SMALLEST_IMAGE = 32


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture with its annotations.

    Attributes:
        image: uint8 [h w 3].
        mask: uint8 [h w], indices into `SceneSource.class_names`.
        captions: five different true captions; the first mentions everything.
        objects: the shapes in drawing order; they do not overlap.
        texture: a key in `TEXTURES`.
        ground: a key in `GROUNDS`.
    """

    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    captions: tuple[str, ...]
    objects: tuple[SceneObject, ...]
    texture: str
    ground: str


@dataclass(frozen=True)
class SceneSource:
    """Drawn scenes with captions and masks; nothing is stored, so it pickles to a few bytes.

    Scene `i` depends only on (seed, split, i): captions, places and colours are identical on every
    platform, and pixels are identical up to rounding in the installed Pillow. A description (all
    shapes, colours, sizes and places, the ground and the ground's texture) belongs to `test` if its
    hash is 0 modulo 5, else to `train`, for every seed. Training therefore never uses a test scene
    or a complete caption for a test scene; only colours, shapes and words are shared.

    Attributes:
        num_scenes: number of scenes.
        split: "train" or "test".
        image_size: side length in pixels; images are square.
        seed: a different seed gives different scenes in the same split.
        class_names, background: the shapes and the ground, as in `data.masks.MaskSource`.

    Raises:
        UserError: unknown split, a negative number of scenes, or images too small to show shapes.
    """

    num_scenes: int
    _: KW_ONLY
    split: str = "train"
    image_size: int = 98
    seed: int = 0

    class_names: ClassVar[tuple[str, ...]] = CLASSES
    background: ClassVar[int | None] = CLASSES.index(BACKGROUND)

    def __post_init__(self) -> None:
        if self.split not in ("train", "test"):
            raise UserError(f"scenes have no split {self.split!r}; use 'train' or 'test'.")
        if self.num_scenes < 1 or self.image_size < _SMALLEST_IMAGE:
            raise UserError(
                f"{self.num_scenes} scenes with {self.image_size} pixels cannot be drawn; use at "
                f"least 1 scene with {_SMALLEST_IMAGE} pixels."
            )

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Example:
        scene = self.scene(index)
        return Example(image=scene.image, captions=scene.captions, key=self.key(index))

    def key(self, index: int) -> str:
        """Returns the name that reports use for a scene."""
        return f"scene-{self.split}-{self.seed}-{index:06d}"

    def load(self, index: int) -> tuple[Image.Image, Int[np.ndarray, "h w"]]:
        """Returns a scene's picture and mask."""
        scene = self.scene(index)
        return Image.fromarray(scene.image), scene.mask.astype(np.int32)

    def scene(self, index: int) -> Scene:
        """Draws scene `index` with mask and description; the picture equals `self[index]`."""
        rng, objects, texture, ground, captions = self._described(index)
        image, mask = draw_scene(rng, self.image_size, objects, texture, ground)
        return Scene(image, mask, captions, objects, texture, ground)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._described(index)[-1]

    def _described(
        self, index: int
    ) -> tuple[random.Random, tuple[SceneObject, ...], str, str, tuple[str, ...]]:
        """Returns scene `index` without the picture, and the generator that draws the picture."""
        if not 0 <= index < self.num_scenes:
            raise IndexError(f"scene {index} of {self.num_scenes}")
        # Only seeding by text and `random()` are stable across Python versions, so `_pick` replaces
        # `rng.choice`.
        rng = random.Random(f"{self.seed}/{self.split}/{index}")
        objects, texture, ground = _description(rng, held_out=self.split == "test")
        return rng, objects, texture, ground, _captions(rng, objects, texture, ground)


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _description(rng: random.Random, *, held_out: bool) -> tuple[tuple[SceneObject, ...], str, str]:
    """Draws objects, texture and ground until the description belongs to the split."""
    layout = _layout(rng, _pick(rng, _OBJECT_COUNTS))
    while True:
        texture, ground = _pick(rng, tuple(TEXTURES)), _pick(rng, tuple(GROUNDS))
        colours = _visible_colours(ground)
        objects = tuple(
            SceneObject(_pick(rng, tuple(SHAPES)), _pick(rng, colours), *spot) for spot in layout
        )
        if len({(o.shape, o.colour) for o in objects}) < len(objects):
            continue  # captions could not tell apart two objects with the same name
        facts = sorted((o.shape, o.colour, o.size, o.place) for o in objects)
        digest = hashlib.blake2b(repr((facts, texture, ground)).encode(), digest_size=8).digest()
        if (int.from_bytes(digest, "big") % _HELD_OUT == 0) == held_out:
            return objects, texture, ground


def _layout(rng: random.Random, count: int) -> list[_Spot]:
    """Draws the `SceneObject` fields starting at `size`; objects do not touch or share a place."""
    while True:
        spots = []
        for _ in range(count):
            size, (row, column) = _pick(rng, tuple(SIZES)), _pick(rng, tuple(PLACES))
            centre = (around(rng, _GRID[column], 0.03), around(rng, _GRID[row], 0.03))
            radius = SIZES[size][1] * around(rng, 1.0, 0.05)
            spots.append((size, (row, column), centre, radius, around(rng, 0.0, 0.2)))
        if all(
            a[1] != b[1] and math.dist(a[2], b[2]) >= a[3] + b[3] + _GAP
            for a, b in itertools.combinations(spots, 2)
        ):
            return spots


@functools.cache
def _visible_colours(ground: str) -> tuple[str, ...]:
    near = GROUNDS[ground]
    return tuple(name for name, rgb in COLOURS.items() if math.dist(rgb, near) >= _CONTRAST)


def _captions(
    rng: random.Random, objects: Sequence[SceneObject], texture: str, ground: str
) -> tuple[str, ...]:
    """Makes captions by place, by relation, without ground, as a list, and for a single object."""
    behind = f"{_pick(rng, ('on', 'against', 'over'))} a {texture} {ground} background"
    opening = _pick(rng, ("", "a picture of ", "an image of ", "a drawing of "))
    by_place = f"{opening}{_listed([_placed(rng, o) for o in objects])}, {behind}"

    first, *others = objects
    clauses = [f"{_noun(rng, first)} is {_pick(rng, PLACES[first.place])}"]
    for other in others:
        relation = " and ".join(_relations(rng, other, first))
        clauses.append(f"{_noun(rng, other)} is {relation} the {_name(rng, first)}")
    by_relation = _listed([*clauses, f"the background is {texture} {ground}"])

    if others:
        subject, reference = _pick(rng, [(a, b) for a in objects for b in objects if a is not b])
        relation = _pick(rng, _relations(rng, subject, reference))
        without_ground = f"{_noun(rng, subject)} {relation} {_noun(rng, reference)}"
    else:
        without_ground = f"there is {_placed(rng, first)}"

    counted = ("one shape: ", "two shapes: ", "three shapes: ")[len(others)]
    names = [_with_article(_name(rng, o)) for o in reversed(objects)]
    as_list = f"{_pick(rng, ('', counted))}{_listed(names)} {behind}"

    focus = _pick(rng, objects)
    place = _pick(rng, PLACES[focus.place])
    focused = f"{_with_article(_name(rng, focus))} {place}, with a {ground} background"
    return by_place, by_relation, without_ground, as_list, focused


def _name(rng: random.Random, thing: SceneObject) -> str:
    return f"{thing.colour} {_pick(rng, SHAPES[thing.shape])}"


def _noun(rng: random.Random, thing: SceneObject) -> str:
    return f"a {_pick(rng, SIZES[thing.size][0])} {_name(rng, thing)}"


def _placed(rng: random.Random, thing: SceneObject) -> str:
    return f"{_noun(rng, thing)} {_pick(rng, PLACES[thing.place])}"


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _relations(rng: random.Random, subject: SceneObject, reference: SceneObject) -> list[str]:
    """Describes where `subject` is relative to `reference`, by row and column if they differ."""
    rows, columns = (a - b for a, b in zip(subject.place, reference.place, strict=True))
    words = []
    if rows:
        words.append("above" if rows < 0 else _pick(rng, ("below", "under")))
    if columns:
        side = "left" if columns < 0 else "right"
        words.append(_pick(rng, (f"to the {side} of", f"{side} of")))
    return words


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _open(config: DataConfig, default_split: str, section: str) -> SceneSource:
    split = config.split or default_split
    check_choice(f"{section}.split", split, ("train", "test"))
    return SceneSource(config.num_scenes, split=split, image_size=config.image_size)


SCENES = SourceKind(
    reads=("num_scenes", "split"),
    captions=lambda config, section: _open(config, "train", section),
    masks=lambda config, section: _open(config, "test", section),
    needs_path=False,
)
