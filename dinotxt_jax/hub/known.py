"""Models that can be loaded by name: where their files are, their licence, and what they can do.

Addresses and licences are those that the publishers state. They could not be fetched where this
table was written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

_BACKBONE = ("embed", "precompute", "train on it")
_DUAL = ("embed", "classify", "retrieve", "segment", "train on it", "start_from")


@dataclasses.dataclass(frozen=True)
class KnownModel:
    """A released model.

    Attributes:
        name: the name that `dt.load` takes.
        family: DINOv2, DINOv3, CLIP, OpenCLIP, SigLIP, SigLIP 2.
        size: the vision transformer.
        resolution: side of the images that it was trained for, pixels; 0: any aspect ratio.
        licence: licence of the weights.
        source: address of the files.
        can: what the model does here.
    """

    name: str
    family: str
    size: str
    resolution: int
    licence: str
    source: str
    can: tuple[str, ...]


def list_models() -> list[KnownModel]:
    """Returns the models that `load` and `load_backbone` know by name.

    Any other model in a known layout loads by its address, hf://ORG/NAME.
    """
    return list(_all())


def _all() -> Iterator[KnownModel]:
    for size, letter in (("small", "s"), ("base", "b"), ("large", "l"), ("giant", "g")):
        for suffix, ending in (("", ""), ("_reg", "-with-registers")):
            source = f"hf://facebook/dinov2{ending}-{size}"
            name = f"dinov2_vit{letter}14{suffix}"
            registers = " with registers" if suffix else ""
            yield KnownModel(
                name,
                "DINOv2",
                f"ViT-{letter.upper()}/14{registers}",
                518,
                "Apache-2.0",
                source,
                _BACKBONE,
            )
    for size in ("vits16", "vits16plus", "vitb16", "vitl16", "vith16plus", "vit7b16"):
        source = f"hf://facebook/dinov3-{size}-pretrain-lvd1689m"
        licence = "DINOv3 License, to be accepted on the hub"
        yield KnownModel(f"dinov3_{size}", "DINOv3", size, 256, licence, source, _BACKBONE)
    for name, source, size, side in (
        ("clip_vitb32", "clip-vit-base-patch32", "ViT-B/32", 224),
        ("clip_vitb16", "clip-vit-base-patch16", "ViT-B/16", 224),
        ("clip_vitl14", "clip-vit-large-patch14", "ViT-L/14", 224),
        ("clip_vitl14_336", "clip-vit-large-patch14-336", "ViT-L/14", 336),
    ):
        yield KnownModel(name, "CLIP", size, side, "MIT", f"hf://openai/{source}", _DUAL)
    for name, source, size in (
        ("openclip_vitb32", "CLIP-ViT-B-32-laion2B-s34B-b79K", "ViT-B/32"),
        ("openclip_vitl14", "CLIP-ViT-L-14-laion2B-s32B-b82K", "ViT-L/14"),
        ("openclip_vith14", "CLIP-ViT-H-14-laion2B-s32B-b79K", "ViT-H/14"),
    ):
        yield KnownModel(name, "OpenCLIP", size, 224, "MIT", f"hf://laion/{source}", _DUAL)
    for family, first, sizes in (
        ("SigLIP", "siglip", _SIGLIP_SIZES),
        ("SigLIP 2", "siglip2", (*_SIGLIP_SIZES, *_SIGLIP2_SIZES)),
    ):
        for short, long, sides in sizes:
            for side in sides:
                source = f"hf://google/{first}-{long}-{side}"
                name, size = f"{first}_{short}_{side}", long.replace("-patch", "/")
                yield KnownModel(name, family, size, side, "Apache-2.0", source, _DUAL)
    for short, long in (("vitb16", "base-patch16"), ("so400m16", "so400m-patch16")):
        source = f"hf://google/siglip2-{long}-naflex"
        size = long.replace("-patch", "/")
        yield KnownModel(
            f"siglip2_{short}_naflex", "SigLIP 2", size, 0, "Apache-2.0", source, _DUAL
        )


_SIGLIP_SIZES = (
    ("vitb16", "base-patch16", (224, 256, 384, 512)),
    ("vitl16", "large-patch16", (256, 384)),
    ("so400m14", "so400m-patch14", (224, 384)),
)
_SIGLIP2_SIZES = (("giantopt16", "giant-opt-patch16", (256, 384)),)

KNOWN_SOURCES = {model.name: model.source for model in list_models()}
"""Address by name."""
