"""Expected colours for some class names, such as sky, grass or red car."""

from __future__ import annotations

import re

Colour = tuple[int, int, int]

# Keyed by the last word in a name, singular, so that "palm tree" is green but "tree house" is not.
_COLOURS: dict[Colour, str] = {
    # Sky and weather.
    (135, 200, 245): "sky",
    (205, 220, 235): "cloud fog mist",
    (238, 242, 248): "snow ice glacier",
    (255, 205, 60): "sun",
    (225, 85, 35): "fire flame",
    (150, 150, 155): "smoke",
    # Water.
    (20, 75, 150): "sea ocean",
    (45, 125, 205): "water lake river waterfall",
    (60, 195, 205): "pool",
    # Plants.
    (125, 190, 60): "grass lawn",
    (175, 185, 80): "field meadow pasture terrain",
    (35, 115, 50): "tree forest woods palm",
    (85, 150, 80): "plant vegetation bush shrub hedge leaf leaves",
    # Ground.
    (222, 196, 140): "sand beach desert dune",
    (125, 85, 55): "earth soil dirt mud ground land",
    (130, 125, 115): "rock stone gravel",
    (125, 115, 145): "mountain hill",
    (105, 105, 112): "road street asphalt runway highway",
    (175, 165, 175): "sidewalk pavement path",
    # Things that people make.
    (190, 115, 85): "building house skyscraper",
    (175, 75, 50): "brick",
    (150, 100, 60): "wood timber",
    # People.
    (240, 185, 150): "skin face body hand arm",
    # Fruit and vegetables.
    (250, 220, 60): "banana lemon",
    (250, 145, 25): "orange carrot pumpkin",
    (205, 40, 45): "tomato strawberry cherry",
    (90, 140, 60): "broccoli cucumber",
    # Everything outside the requested classes.
    (110, 110, 116): "background",
}
_BY_WORD = {word: colour for colour, words in _COLOURS.items() for word in words.split()}
# Colour words, anywhere in a name that has no entry above: "red car", "light blue".
_NAMED: dict[str, Colour] = {
    "red": (215, 40, 40),
    "orange": (250, 145, 25),
    "yellow": (245, 220, 50),
    "green": (50, 160, 70),
    "blue": (40, 90, 210),
    "purple": (135, 60, 175),
    "violet": (135, 60, 175),
    "pink": (245, 130, 180),
    "brown": (125, 75, 40),
    "black": (40, 40, 45),
    "white": (245, 245, 245),
    "grey": (130, 130, 130),
    "gray": (130, 130, 130),
}
_EMPTY_WORDS = ("other", "merged", "stuff")  # as in COCO-Stuff's "sky-other"


def known_colour(name: str) -> Colour | None:
    """Returns the expected colour for an English class name; None for most classes.

    If there are several names separated by commas, the first one counts.
    """
    words = re.findall(r"[^\W\d_]+", str(name).partition(",")[0].lower())
    words = [word for word in words if word not in _EMPTY_WORDS]
    if not words:
        return None
    last = words[-1]
    singulars = (last, last.removesuffix("s"), last.removesuffix("es"))
    colours = [_BY_WORD[word] for word in singulars if word in _BY_WORD]
    named = [_NAMED[word] for word in reversed(words) if word in _NAMED]
    return next(iter([*colours, *named]), None)
