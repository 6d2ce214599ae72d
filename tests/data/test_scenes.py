"""Synthetic scenes: reproducible, true captions, exact masks, splits without shared scenes."""

import math
import pickle
import re

import numpy as np
import pytest

from dinotxt_jax.data import scenes
from dinotxt_jax.data.examples import Example
from dinotxt_jax.data.scenes import COLOURS, GROUNDS, SHAPES, TEXTURES, Scene, SceneSource
from dinotxt_jax.errors import UserError

SIZE_WORDS = {
    "small": "small",
    "little": "small",
    "medium-sized": "medium",
    "large": "large",
    "big": "large",
}
SHAPE_WORDS = {name: shape for shape, names in SHAPES.items() for name in names}
GROUND = re.compile(
    rf"(?:({'|'.join(TEXTURES)}) )?({'|'.join(GROUNDS)}) background"
    rf"|background is ({'|'.join(TEXTURES)}) ({'|'.join(GROUNDS)})"
)
NOUN = re.compile(
    rf"(?:({'|'.join(SIZE_WORDS)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPE_WORDS)})\b"
)
PLACE = re.compile(r"(?:at|on|in) the (?:(top|bottom) ?)?(left|right|centre|middle)?\b(?! of)")
COUNT = re.compile(r"^(one|two|three) shapes?: ")

# Recorded once, on Python 3.11: descriptions must not depend on the platform.
EXPECTED_CAPTIONS = (
    "a medium-sized red circle in the top right corner and a medium-sized pink circle at the "
    "bottom left, over a speckled dark blue background",
    "a medium-sized red circle is in the top right corner, a medium-sized pink circle is under "
    "and left of the red disc and the background is speckled dark blue",
    "a medium-sized pink circle to the left of a medium-sized red disc",
    "two shapes: a pink disc and a red circle over a speckled dark blue background",
    "a red circle in the top right corner, with a dark blue background",
)


def find(scene: Scene, noun: re.Match):
    size, colour, shape = noun.groups()
    for thing in scene.objects:
        if (thing.colour, thing.shape) == (colour, SHAPE_WORDS[shape]):
            return thing if size is None or SIZE_WORDS[size] == thing.size else None
    return None


def third(fraction: float) -> int:
    return 0 if fraction < 0.38 else 1 if fraction < 0.62 else 2


def holds(words: str, one, two) -> bool:
    """Returns whether the centres satisfy every relation in the words between two nouns."""
    right, down = np.subtract(one.centre, two.centre)
    claims = {
        "left of": right < -0.1,
        "right of": right > 0.1,
        "above": down < -0.1,
        "below": down > 0.1,
        "under": down > 0.1,
    }
    return all(true for claim, true in claims.items() if claim in words)


def stands(words: str, thing) -> bool:
    """Returns whether the centre is at the place named in the words after a noun, if any."""
    place = PLACE.search(words)
    if place is None:
        return True
    column = {"left": 0, "right": 2}.get(place[2], 1)
    row = {"top": 0, "bottom": 2}.get(place[1], 1)
    return (third(thing.centre[0]), third(thing.centre[1])) == (column, row)


def is_true(caption: str, scene: Scene) -> bool:
    """Judges a caption by the geometry of a scene, knowing the words but not the templates."""
    for ground in GROUND.finditer(caption):
        texture, colour = ground[1] or ground[3], ground[2] or ground[4]
        if colour != scene.ground or texture not in (None, scene.texture):
            return False
    count = COUNT.match(caption)
    if count and {"one": 1, "two": 2, "three": 3}[count[1]] != len(scene.objects):
        return False
    text = GROUND.sub("", caption)
    nouns = list(NOUN.finditer(text))
    things = [find(scene, noun) for noun in nouns]
    if None in things:
        return False
    for i, (noun, thing) in enumerate(zip(nouns, things, strict=True)):
        last = i + 1 == len(nouns)
        words = text[noun.end() : len(text) if last else nouns[i + 1].start()]
        if not stands(words, thing) or not (last or holds(words, thing, things[i + 1])):
            return False
    return bool(nouns)


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    source = SceneSource(300, split="test")
    return [source.scene(i) for i in range(len(source))]


def test_an_example_is_the_scene_and_is_the_same_every_time():
    source = SceneSource(50, split="train", image_size=64, seed=3)
    for i in (0, 7, 49):
        example, scene = source[i], SceneSource(99, split="train", image_size=64, seed=3).scene(i)
        assert isinstance(example, Example)
        assert example.image.shape == (64, 64, 3)
        assert example.image.dtype == np.uint8
        np.testing.assert_array_equal(example.image, scene.image)
        assert example.captions == scene.captions
    assert len({source[i].key for i in range(50)}) == 50


def test_seed_split_and_index_each_change_the_scene():
    variants = [
        SceneSource(2, split="train")[0],
        SceneSource(2, split="train")[1],
        SceneSource(2, split="test")[0],
        SceneSource(2, split="train", seed=1)[0],
    ]
    assert len({example.captions for example in variants}) == 4


def test_the_random_stream_is_equal_on_every_python():
    assert SceneSource(1, split="test").scene(0).captions == EXPECTED_CAPTIONS


def test_image_size_changes_the_picture_only():
    small, large = (SceneSource(5, image_size=s).scene(4) for s in (56, 224))
    assert small.captions == large.captions
    assert small.objects == large.objects
    assert large.mask.shape == (224, 224)


def test_captions_are_true_and_different(drawn):
    for scene in drawn:
        assert len(scene.captions) == len(set(scene.captions)) == 5
        assert all(is_true(caption, scene) for caption in scene.captions), scene.captions


def test_a_caption_is_hardly_ever_true_of_another_scene(drawn):
    """Bounds retrieval among 300 scenes: how often a caption is also true for another scene."""
    also_true = np.array(
        [
            [sum(is_true(caption, other) for other in drawn) - 1 for caption in scene.captions]
            for scene in drawn[:100]
        ]
    )
    assert also_true.min() == 0
    # Two one-shape scenes may agree in all described properties; scenes with more shapes never did.
    assert also_true[:, :2].mean() <= 0.02
    assert also_true.mean() < 0.1


def test_the_caption_checker_detects_false_captions(drawn):
    scene = next(s for s in drawn if len(s.objects) == 2)
    by_place, by_relation, *_ = scene.captions
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    swapped = re.sub(r"left of|right of|above|below", lambda m: swap(m, opposite), by_relation)
    assert swapped != by_relation
    assert not is_true(swapped, scene)
    other_ground = next(name for name in GROUNDS if name not in scene.ground)
    assert not is_true(by_place.replace(f"{scene.ground} back", f"{other_ground} back"), scene)
    assert not is_true(by_place.replace(scene.objects[0].shape, "ellipse"), scene)


def swap(match: re.Match, opposite: dict[str, str]) -> str:
    first, *rest = match[0].split(" ")
    return " ".join([opposite[first], *rest])


def test_masks_show_every_object_where_it_is_drawn(drawn):
    assert SceneSource.class_names[0] == "background"
    assert set(SceneSource.class_names[1:]) == set(SHAPES)
    y, x = (np.mgrid[0:98, 0:98] + 0.5) / 98
    for scene in drawn:
        covered = np.zeros_like(scene.mask, bool)
        for thing in scene.objects:
            near = np.hypot(x - thing.centre[0], y - thing.centre[1]) <= thing.radius + 0.02
            inside = near & (scene.mask == SceneSource.class_names.index(thing.shape))
            covered |= inside
            # The disc around the shape is filled from a third (crescent, star) up to all of it.
            filled = inside.sum() / (math.pi * (98 * thing.radius) ** 2)
            assert 0.28 < filled < 0.95, thing
            colour = np.median(scene.image[inside], axis=0)
            assert np.abs(colour - COLOURS[thing.colour]).max() <= 11, thing
        assert not scene.mask[~covered].any()


def test_a_plain_ground_has_its_colour_outside_the_masks(drawn):
    plain = [scene for scene in drawn if scene.texture == "plain"]
    assert plain
    for scene in plain:
        outside = scene.image[scene.mask == 0]
        assert (np.abs(outside - np.array(GROUNDS[scene.ground])).max(axis=1) <= 1).mean() > 0.75


def test_every_word_is_used():
    source = SceneSource(400, image_size=32)
    text = " ".join(caption for i in range(400) for caption in source[i].captions)
    words = [*SHAPE_WORDS, *SIZE_WORDS, *COLOURS, *GROUNDS, *TEXTURES, "left of", "above", "under"]
    assert [word for word in words if not re.search(rf"\b{word}\b", text)] == []


def test_splits_share_no_description(monkeypatch):
    # There are so few descriptions (9 visible colours, 9 places) that each is drawn many times.
    monkeypatch.setattr(scenes, "TEXTURES", {"plain": 0.0})
    monkeypatch.setattr(scenes, "GROUNDS", {"white": GROUNDS["white"]})
    monkeypatch.setattr(scenes, "SHAPES", {"circle": SHAPES["circle"]})
    monkeypatch.setattr(scenes, "SIZES", {"small": scenes.SIZES["small"]})
    monkeypatch.setattr(scenes, "_OBJECT_COUNTS", (1,))
    described = {}
    for split in ("train", "test"):
        source = SceneSource(600, split=split, image_size=32)
        objects = [source.scene(i).objects[0] for i in range(len(source))]
        described[split] = {(thing.colour, thing.place) for thing in objects}
    assert described["train"]
    assert described["test"]
    assert described["train"].isdisjoint(described["test"])
    assert len(described["train"] | described["test"]) == 81


def test_sources_pickle_and_refuse_an_index_outside():
    source = SceneSource(3, split="test", seed=5)
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    assert repr(again) == repr(source)
    np.testing.assert_array_equal(again[2].image, source[2].image)
    for index in (3, -1):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    "arguments", [{"split": "validation"}, {"image_size": 8}, {"num_scenes": 0}]
)
def test_scenes_that_cannot_be_drawn_are_refused(arguments):
    with pytest.raises(UserError):
        SceneSource(**{"num_scenes": 3, **arguments})
