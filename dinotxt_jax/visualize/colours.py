"""Colours: one a class, told apart also by the colour-blind, and a scale for heat maps.

Both are computed in OKLab, a space in which equal distances look about equally large.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, UInt8

Colour = tuple[int, int, int]

INK: Colour = (32, 32, 36)
FAINT: Colour = (112, 112, 120)
RIGHT: Colour = (20, 120, 60)
RULE: Colour = (205, 205, 210)
HATCH: Colour = (120, 120, 126)

CLASS_COLOURS = 512  # then they repeat

# Okabe and Ito's colours, which the colour-blind tell apart, begin the list.
_FIRST = (
    (230, 159, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (86, 180, 233),
)
_RECENT = 8  # so many classes before one are kept farther away than all others
_RECENT_WEIGHT = 0.3

# From linear sRGB to cone responses, and from their cube roots to OKLab (Ottosson 2020).
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
# Linear sRGB itself, and what protanopes, deuteranopes and tritanopes see of it
# (Machado et al. 2009, severity 1).
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
# How much a distance counts in those four sights: most people have the first, few the last.
_SIGHT_WEIGHTS = np.array([1.0, 1.6, 1.6, 2.5])


def class_colours(count: int) -> UInt8[np.ndarray, "count 3"]:
    """The colours of classes 0 to count - 1; that of a class does not depend on `count`."""
    return _palette()[np.arange(count) % CLASS_COLOURS]


@functools.cache
def _palette() -> UInt8[np.ndarray, "n 3"]:
    """Greedily, always the candidate whose nearest chosen colour is farthest, in any eyes.

    Classes with near indices are often drawn together, so they are kept apart more strictly.
    """
    candidates = np.concatenate([np.asarray(_FIRST, np.uint8), _candidates()])
    linear = _linear(candidates)
    seen = np.stack([_oklab(np.clip(linear @ sight.T, 0, 1)) for sight in _SIGHTS])

    def apart(index: int) -> np.ndarray:
        distance = np.linalg.norm(seen - seen[:, index, None], axis=-1)
        return (distance * _SIGHT_WEIGHTS[:, None]).min(axis=0)

    chosen = list(range(len(_FIRST)))
    distances = [apart(index) for index in chosen]
    nearest = np.stack(distances).min(axis=0)
    while len(chosen) < CLASS_COLOURS:
        recent = _RECENT_WEIGHT * np.stack(distances[-_RECENT:]).min(axis=0)
        # Rounded, so that no machine's last bit chooses.
        chosen.append(int(np.argmax(np.round(np.minimum(nearest, recent), 6))))
        distances.append(apart(chosen[-1]))
        nearest = np.minimum(nearest, distances[-1])
    return candidates[chosen]


def _candidates() -> UInt8[np.ndarray, "n 3"]:
    """Colours neither so dark, bright nor grey that they are lost on a photo."""
    steps = np.arange(24, 256, 15)
    colours = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(_linear(colours))
    vivid = np.hypot(lab[:, 1], lab[:, 2]) > 0.07
    return colours[vivid & (lab[:, 0] > 0.42) & (lab[:, 0] < 0.9)].astype(np.uint8)


def heat_colours(unit: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """From deep violet (0) through red to light yellow (1), ever lighter in even steps."""
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
    """sRGB from 0 to 255 as light."""
    unit = np.asarray(colours, np.float64) / 255
    return np.where(unit > 0.04045, ((unit + 0.055) / 1.055) ** 2.4, unit / 12.92)


def _oklab(linear: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    return np.cbrt(linear @ _CONES.T) @ _LAB.T
