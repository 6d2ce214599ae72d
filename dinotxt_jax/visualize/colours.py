"""Class colours that colour-blind readers can also distinguish, and a colour scale for heat maps.

A class whose name has an expected colour (`known_colours`) gets that colour, or the nearest shade
that no other class has; the other classes get colours that differ from all known ones. Distances
are computed in OKLab, a space in which equal distances look about equally large.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from dinotxt_jax.visualize.known_colours import Colour, known_colour

INK: Colour = (32, 32, 36)
FAINT: Colour = (112, 112, 120)
RIGHT: Colour = (20, 120, 60)
MISSED: Colour = (176, 42, 32)
RULE: Colour = (205, 205, 210)
HATCH: Colour = (120, 120, 126)

CLASS_COLOURS = 512  # with more classes, colours repeat

# The list begins with Okabe and Ito's colours, which colour-blind readers can distinguish.
_FIRST = (
    (230, 159, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (86, 180, 233),
)
_APART = 0.05  # least distance between known class colours, in any colour vision
# Other classes must look unlike the known colours: an Okabe-Ito colour is used only if it is at
# least this far from them in OKLab. For further colours, this distance counts less.
_CLEAR = 0.12
_KNOWN_WEIGHT = 0.5
_FARTHEST_SHADE = 0.2  # in OKLab; beyond it, a shade no longer looks like the known colour
_RECENT = 8  # this many preceding classes are kept farther away than all others
_RECENT_WEIGHT = 0.3

# Linear sRGB to cone responses, and cube roots of cone responses to OKLab (Ottosson 2020).
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# Linear sRGB as seen with normal colour vision (identity) and by protanopes, deuteranopes and
# tritanopes (Machado et al. 2009, severity 1).
_SIGHTS = np.array(
    [
        np.eye(3),
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    ]
)
# Distance weights for the four kinds of vision: most people have the first, few the last.
_SIGHT_WEIGHTS = np.array([1.0, 1.6, 1.6, 2.5])


def class_colours(class_names: Sequence[str]) -> UInt8[np.ndarray, "c 3"]:
    """Returns one colour per class, always the same for the same list of names.

    Among names without known colours, the class index alone decides the colour.
    """
    shades = _known_shades(tuple(known_colour(name) for name in class_names))
    others = [index for index in range(len(class_names)) if index not in shades]
    palette = _palette(tuple(shades.values()), min(len(others), CLASS_COLOURS))
    colours = np.zeros((len(class_names), 3), np.uint8)
    for index, shade in shades.items():
        colours[index] = shade
    colours[others] = palette[np.arange(len(others)) % max(len(palette), 1)]
    return colours


@functools.lru_cache(maxsize=64)
def _known_shades(expected: tuple[Colour | None, ...]) -> dict[int, Colour]:
    """Maps class index to the known colour, or to the nearest shade unlike all earlier ones."""
    shades: dict[int, Colour] = {}
    for index, colour in enumerate(expected):
        if colour is None:
            continue
        choices = np.concatenate([np.asarray([colour], np.uint8), _shades()])
        target, lab = _oklab(_linear(choices[:1])), _oklab(_linear(choices))
        # Rounded, so that the choice does not depend on the machine's last bit.
        away = np.round(np.linalg.norm(lab - target, axis=1), 6)
        if shades:
            shade_values = np.asarray(list(shades.values()), np.uint8)
            away[(_distances(choices, shade_values) < _APART).any(axis=1)] = np.inf
        nearest = int(np.argmin(away))
        if away[nearest] <= _FARTHEST_SHADE:
            red, green, blue = (int(part) for part in choices[nearest])
            shades[index] = red, green, blue
    return shades


def _distances(
    colours: UInt8[np.ndarray, "n 3"], others: UInt8[np.ndarray, "m 3"]
) -> Float[np.ndarray, "n m"]:
    """Returns colour distances in the kind of vision that distinguishes each pair least."""
    apart = np.linalg.norm(_perceived(colours)[:, :, None] - _perceived(others)[:, None], axis=-1)
    return (apart * _SIGHT_WEIGHTS[:, None, None]).min(axis=0)


def _perceived(colours: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "4 n 3"]:
    """Converts colours to OKLab as seen in each of the four kinds of vision."""
    linear = _linear(colours)
    return np.stack([_oklab(np.clip(linear @ sight.T, 0, 1)) for sight in _SIGHTS])


@functools.lru_cache(maxsize=64)
def _palette(reserved: tuple[Colour, ...], count: int) -> UInt8[np.ndarray, "n 3"]:
    """Chooses colours greedily: always the candidate whose nearest chosen colour is farthest.

    Distances are the least over all kinds of vision. Classes with near indices are often drawn
    together, so they are kept apart more strictly.

    Args:
        taken: colours that are already in use; they are not returned.
        count: number of colours; a longer palette begins with the same colours.
    """
    candidates = np.concatenate([np.asarray(_FIRST, np.uint8), _candidates()])
    perceived = _perceived(candidates)
    first = list(range(len(_FIRST)))
    nearest = np.full(len(candidates), np.inf)
    if reserved:
        reserved_colours = np.asarray(reserved, np.uint8)
        nearest = _distances(candidates, reserved_colours).min(axis=1)
        plain = np.linalg.norm(
            perceived[0][:, None] - _perceived(reserved_colours)[0], axis=-1
        ).min(axis=1)
        first = [i for i in first if nearest[i] >= _APART and plain[i] >= _CLEAR]
        nearest = np.minimum(nearest, _KNOWN_WEIGHT * plain)
    chosen: list[int] = []
    distances: list[np.ndarray] = []
    while len(chosen) < count:
        if len(chosen) < len(first):
            index = first[len(chosen)]
        else:
            recent = [_RECENT_WEIGHT * distance for distance in distances[-_RECENT:]]
            # Rounded, so that the choice does not depend on the machine's last bit.
            worst = np.round(np.stack([nearest, *recent]).min(axis=0), 6)
            index = int(np.argmax(worst))
        distance = np.linalg.norm(perceived - perceived[:, index, None], axis=-1)
        distances.append((distance * _SIGHT_WEIGHTS[:, None]).min(axis=0))
        nearest = np.minimum(nearest, distances[-1])
        chosen.append(index)
    return candidates[chosen]


def _candidates() -> UInt8[np.ndarray, "n 3"]:
    """Returns colours that stay visible on a photo: not too dark, too bright or too grey."""
    colours = _shades()
    lab = _oklab(_linear(colours))
    vivid = np.hypot(lab[:, 1], lab[:, 2]) > 0.07
    return colours[vivid & (lab[:, 0] > 0.42) & (lab[:, 0] < 0.9)]


def _shades() -> UInt8[np.ndarray, "n 3"]:
    steps = np.arange(24, 256, 15)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    return grid.reshape(-1, 3).astype(np.uint8)


def heat_colours(unit: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Maps 0 to deep violet, 1 to light yellow, via red, in even steps of increasing lightness."""
    table = _heat_table()
    return table[np.round(np.clip(unit, 0, 1) * (len(table) - 1)).astype(int)]


@functools.cache
def _heat_table() -> UInt8[np.ndarray, "256 3"]:
    lab = _heat_path(np.linspace(0, 1, 2048))
    length = np.append(0, np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1)))
    even = np.interp(np.linspace(0, length[-1], 256), length, np.linspace(0, 1, 2048))
    linear = (_heat_path(even) @ np.linalg.inv(_LAB).T) ** 3 @ np.linalg.inv(_CONES).T
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return np.round(255 * encoded).astype(np.uint8)


def _heat_path(t: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 3"]:
    hue = np.radians(np.interp(t, [0, 0.35, 0.7, 1], [285, 350, 415, 468]))
    chroma = np.interp(t, [0, 0.35, 0.7, 1], [0.09, 0.18, 0.17, 0.09])
    return np.stack([0.2 + 0.77 * t, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)


def _linear(colours: np.ndarray) -> Float[np.ndarray, "n 3"]:
    """Converts sRGB from 0 to 255 to linear light."""
    unit = np.asarray(colours, np.float64) / 255
    return np.where(unit > 0.04045, ((unit + 0.055) / 1.055) ** 2.4, unit / 12.92)


def _oklab(linear: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    return np.cbrt(linear @ _CONES.T) @ _LAB.T
