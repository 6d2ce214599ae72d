"""Published figures, shown next to results measured *with the same protocol*.

The same metric name under a different protocol gives a different number. A figure is therefore
shown only next to a result whose protocol matches every known value in the figure's protocol. Any
value that the source does not state is listed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

_REPORT = "DINOv3 report, table 16"
_SECONDARY = "secondary source"


@dataclasses.dataclass(frozen=True)
class Figure:
    """Published results of one model on one data set.

    Attributes:
        model: model name.
        metrics: name -> value, in percent.
        protocol: the known protocol values, with the same keys as in result protocols.
        source: the publication.
        open: relevant protocol details that the source does not state.
    """

    model: str
    metrics: Mapping[str, float]
    protocol: Mapping[str, Any]
    source: str
    open: str = ""


_IMAGENET = {"images": 50_000, "classes": 1000, "templates": 80}
_COCO = {"images": 5000}
_WINDOWS = {"protocol": "slide", "resolution": "short side 512, window 384, stride 192"}
_ADE20K = {"images": 2000, "classes": 150, "templates": 80}
_TIPS_WINDOWS = {
    "protocol": "slide",
    "resolution": "short side 448, window 448, stride 336",
    "features": "value",
    "images": 2000,
    "classes": 150,
    "templates": 9,
}
_CITYSCAPES = {"images": 500, "classes": 19, "templates": 80}


def _tower(model: str, top1: float) -> Figure:
    return Figure(model, {"top1": top1}, _IMAGENET, _REPORT, "resolution")


def _retrieval(model: str, image_to_text: float, text_to_image: float) -> Figure:
    recalls = {"image_to_text_r1": image_to_text, "text_to_image_r1": text_to_image}
    return Figure(model, recalls, _COCO, _REPORT, "resolution, which COCO split")


def _slide(
    model: str,
    mean_iou: float,
    data: Mapping[str, Any],
    source: str = _REPORT,
    unsaid: str = "",
) -> Figure:
    return Figure(model, {"mean_iou": mean_iou}, {**_WINDOWS, **data}, source, unsaid)


_V2, _V3 = "dino.txt (DINOv2 ViT-L/14)", "dino.txt (DINOv3 ViT-L/16)"
_USER = "a user's run of the released weights (dinov3 issue 64)"
_OTHER = "whether by the same windows"

FIGURES: dict[str, tuple[Figure, ...]] = {
    "imagenet1k": (
        Figure(_V2, {"top1": 81.4}, _IMAGENET | {"resolution": 224}, _SECONDARY),
        _tower(_V2, 81.6),
        _tower(_V3, 82.3),
        _tower("CLIP", 76.6),
        _tower("SigLIP 2", 83.1),
        _tower("PE", 83.5),
    ),
    "coco": (
        Figure(
            _V2,
            {"text_to_image_r1": 45.4},
            _COCO | {"resolution": 224},
            _SECONDARY,
            "which COCO split",
        ),
        _retrieval(_V2, 62.5, 45.0),
        _retrieval(_V3, 63.7, 45.6),
        _retrieval("CLIP", 57.9, 37.1),
        _retrieval("SigLIP 2", 71.4, 55.3),
        _retrieval("PE", 75.9, 57.1),
    ),
    "ade20k_150": (
        _slide(_V2, 19.2, _ADE20K),
        _slide(_V2, 19.6, _ADE20K, _USER),
        _slide(_V3, 24.7, _ADE20K),
        _slide("CLIP", 6.0, _ADE20K, unsaid=_OTHER),
        _slide("SigLIP 2", 10.8, _ADE20K, unsaid=_OTHER),
        _slide("PE", 17.6, _ADE20K, unsaid=_OTHER),
        Figure("TIPSv2 L/14", {"mean_iou": 25.06}, _TIPS_WINDOWS, "official notebook"),
        Figure(
            _V2,
            {"mean_iou": 20.6},
            _ADE20K | {"protocol": "whole", "resolution": 224},
            _SECONDARY,
            "windows",
        ),
        Figure(
            _V2,
            {"mean_iou": 25.1},
            _ADE20K | {"protocol": "highres"},
            _SECONDARY,
            "scales, clusters",
        ),
    ),
    "cityscapes_19": (
        _slide(_V2, 27.4, _CITYSCAPES),
        _slide(_V2, 32.3, _CITYSCAPES, _USER),
        _slide(_V3, 36.9, _CITYSCAPES),
        _slide("CLIP", 11.5, _CITYSCAPES, unsaid=_OTHER),
        _slide("SigLIP 2", 16.3, _CITYSCAPES, unsaid=_OTHER),
        _slide("PE", 21.4, _CITYSCAPES, unsaid=_OTHER),
        Figure(
            _V2,
            {"mean_iou": 41.0},
            _CITYSCAPES | {"protocol": "highres"},
            _SECONDARY,
            "scales, clusters",
        ),
    ),
}


def comparable(name: str, protocol: Mapping[str, Any]) -> Iterable[Figure]:
    """Returns the published figures of a data set that are comparable under this protocol."""
    return (
        figure
        for figure in FIGURES.get(name, ())
        if all(protocol.get(key) == value for key, value in figure.protocol.items())
    )
