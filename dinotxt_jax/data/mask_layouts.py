"""Folder layouts and mask values for published segmentation data sets.

Class names are stored in `data/texts`, ordered by class index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from dinotxt_jax.data.masks import IGNORED, one_value_a_pixel
from dinotxt_jax.data.texts import BACKGROUND, read_list


@dataclass(frozen=True)
class MaskLayout:
    """A data set's file layout on disk, and the mapping from mask value to class index.

    Templates are paths relative to the data set root, with the placeholders `{split}` and `{name}`
    (the image name, which may contain folders). With several templates, the first template for
    which the folder exists is used.

    Attributes:
        about: the expected files, and where to get them.
        images, masks: path templates for image files and for mask files.
        lists: class lists in `data/texts`, concatenated in this order.
        ids: mask value -> class index, or `IGNORED`.
        split: the split to evaluate on ("": the data set has no splits).
        split_list: path template for the text file that lists the image names in a split ("": every
            image in the folder is used).
        folder: root folder name; `data.path` may also be the parent folder.
        background: whether class 0 is "background" (everything else), before the `lists` classes.
        others: class index for values missing from `ids` (None: such values raise an error).
        colours: whether mask values are colours, as 0xRRGGBB.
    """

    about: str
    images: tuple[str, ...]
    masks: tuple[str, ...]
    lists: tuple[str, ...]
    ids: Mapping[int, int]
    split: str = ""
    split_list: str = ""
    folder: str = ""
    background: bool = False
    others: int | None = None
    colours: bool = False

    def class_names(self) -> tuple[str, ...]:
        """Returns the name of each class; two classes may have the same name."""
        names = [name for part in self.lists for name in read_list(part, "the layout's lists")]
        return (BACKGROUND, *names) if self.background else tuple(names)

    def to_indices(
        self, pixels: Shaped[np.ndarray, "h w *rgb"], section: str
    ) -> Int[np.ndarray, "h w"]:
        """Converts mask file pixels to class indices, or `IGNORED`.

        Raises:
            ValueError: the mask is not valid; the message completes a sentence that starts with the
                mask name.
        """
        values = _packed(pixels) if self.colours else one_value_a_pixel(pixels)
        ids = np.array(sorted(self.ids))
        indices = np.array([self.ids[value] for value in ids.tolist()], np.int32)
        places = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
        missed = ids[places] != values
        if self.others is None and missed.any():
            value = int(values[missed][0])
            unknown_value = (
                f"colour {tuple(value.to_bytes(3))}" if self.colours else f"value {value}"
            )
            raise ValueError(
                f"holds the {unknown_value}, which is not a class in this data set; correct it, "
                f"or {section}.name"
            )
        others = IGNORED if self.others is None else self.others
        return np.where(missed, np.int32(others), indices[places])


def _packed(pixels: Shaped[np.ndarray, "h w *rgb"]) -> Int[np.ndarray, "h w"]:
    """Packs RGB colours into integers, as 0xRRGGBB."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"has {pixels.dtype} pixels with the shape {list(pixels.shape)}, expected 8-bit RGB "
            "colours; correct it"
        )
    return pixels.astype(np.int32) @ np.array([0x10000, 0x100, 1], np.int32)


def _counted(first: int, count: int, index: int = 0) -> dict[int, int]:
    """Maps `count` consecutive values starting at `first` to class indices starting at `index`."""
    return {first + number: index + number for number in range(count)}


_CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

# COCO never annotated 11 of the 91 thing categories: street sign, hat, shoe, eye glasses, plate,
# mirror, window, desk, door, blender, hair brush. Mask values are category IDs minus 1.
_COCO_NEVER = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
_COCO = [value for value in range(182) if value not in _COCO_NEVER]
_COCO_THINGS = 80

# Supercategories (coco_stuff_27 indices) for the 171 classes. COCO sorts things by supercategory,
# so things are run-length encoded as INDEX*LENGTH; stuff is sorted by name, so each class has an
# index here.
_THING_RUNS = "9*1 11*8 8*5 7*10 6*5 10*10 5*7 2*10 3*6 0*6 1*5 4*7"
_STUFF_GROUPS = (
    "17 17 22 20 20 22 15 25 16 13 12 12 17 17 23 15 15 17 15 21 15 25 13 13 13 13 13 22 26 14 14 "
    "15 22 21 21 24 20 22 15 17 16 15 22 24 21 17 25 16 21 17 22 16 21 21 25 21 26 21 24 20 17 14 "
    "21 26 15 23 20 21 24 15 24 22 25 15 20 17 17 22 14 18 18 18 18 18 18 18 26 26 19 19 24"
)
_COARSE = [
    int(group)
    for run in _THING_RUNS.split()
    for group, count in [run.split("*")]
    for _ in range(int(count))
] + [int(group) for group in _STUFF_GROUPS.split()]

_MSRC_COLOURS = (
    "800000 008000 808000 000080 800080 008080 808080 400000 c00000 408000 c08000 400080 c00080 "
    "408080 c08080 004000 804000 00c000 804080 00c080 80c080 404000 c04000"
)


def _voc(*, background: bool) -> MaskLayout:
    return MaskLayout(
        about="VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}, from the Pascal VOC "
        "2012 development kit",
        folder="VOC2012",
        images=("JPEGImages/{name}.jpg",),
        masks=("SegmentationClass/{name}.png",),
        split="val",
        split_list="ImageSets/Segmentation/{split}.txt",
        lists=("voc_20",),
        background=background,
        ids={0: 0 if background else IGNORED, 255: IGNORED, **_counted(1, 20, int(background))},
    )


def _context(*, background: bool) -> MaskLayout:
    return MaskLayout(
        about="VOC2010/{JPEGImages,SegmentationClassContext,ImageSets/SegmentationContext}, masks "
        "and lists as MMSegmentation's converter writes them (classes in alphabetical order, not "
        "in the order of the authors' list of 59)",
        folder="VOC2010",
        images=("JPEGImages/{name}.jpg",),
        masks=("SegmentationClassContext/{name}.png",),
        split="val",
        split_list="ImageSets/SegmentationContext/{split}.txt",
        lists=("context_59",),
        background=background,
        ids={0: 0 if background else IGNORED, **_counted(1, 59, int(background))},
    )


def _coco(
    lists: tuple[str, ...],
    ids: Mapping[int, int],
    *,
    background: bool = False,
    others: int | None = None,
) -> MaskLayout:
    return MaskLayout(
        about="images in val2017 or images/val2017, and COCO-Stuff's stuffthingmaps in "
        "{stuffthingmaps,stuffthingmaps_trainval2017,annotations}/val2017",
        images=("{split}/{name}.jpg", "images/{split}/{name}.jpg"),
        masks=(
            "stuffthingmaps/{split}/{name}.png",
            "stuffthingmaps_trainval2017/{split}/{name}.png",
            "annotations/{split}/{name}.png",
        ),
        split="val2017",
        lists=lists,
        background=background,
        ids=ids,
        others=others,
    )


MASK_LAYOUTS: dict[str, MaskLayout] = {
    "ade20k_150": MaskLayout(
        about="ADEChallengeData2016/{images,annotations}/{training,validation}, the release of the "
        "2016 scene parsing challenge",
        folder="ADEChallengeData2016",
        images=("images/{split}/{name}.jpg",),
        masks=("annotations/{split}/{name}.png",),
        split="validation",
        lists=("ade20k_150",),
        ids={0: IGNORED, **_counted(1, 150)},
    ),
    # Only labelIds files are read, because every download contains them. labelTrainIds files are
    # generated later, by a script whose class table users may modify.
    "cityscapes_19": MaskLayout(
        about="leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and "
        "gtFine/SPLIT/CITY/*_gtFine_labelIds.png, from the official archives leftImg8bit and "
        "gtFine",
        images=("leftImg8bit/{split}/{name}_leftImg8bit.png",),
        masks=("gtFine/{split}/{name}_gtFine_labelIds.png",),
        split="val",
        lists=("cityscapes_19",),
        ids={value: index for index, value in enumerate(_CITYSCAPES)},
        others=IGNORED,
    ),
    "voc_20": _voc(background=False),
    "voc_21": _voc(background=True),
    "context_59": _context(background=False),
    "context_60": _context(background=True),
    "coco_stuff_171": _coco(
        ("coco_things_80", "coco_stuff_91"),
        {255: IGNORED} | {value: index for index, value in enumerate(_COCO)},
    ),
    "coco_stuff_27": _coco(
        ("coco_stuff_27",), {255: IGNORED} | dict(zip(_COCO, _COARSE, strict=True))
    ),
    "coco_object": _coco(
        ("coco_things_80",),
        {value: index for index, value in enumerate(_COCO[:_COCO_THINGS], 1)},
        background=True,
        others=0,
    ),
    "camvid_11": MaskLayout(
        about="{train,val,test} and, with the same file names, {train,val,test}annot, as in the "
        "SegNet tutorial (360 x 480)",
        folder="CamVid",
        images=("{split}/{name}.png",),
        masks=("{split}annot/{name}.png",),
        split="test",
        lists=("camvid_11",),
        ids={**_counted(0, 11), 11: IGNORED},
    ),
    "msrc_v2": MaskLayout(
        about="MSRC_ObjCategImageDatabase_v2/{Images/*.bmp,GroundTruth/*_GT.bmp}, as Microsoft "
        "Research Cambridge published it",
        folder="MSRC_ObjCategImageDatabase_v2",
        images=("Images/{name}.bmp",),
        masks=("GroundTruth/{name}_GT.bmp",),
        lists=("msrc_v2",),
        ids={0: IGNORED}
        | {int(colour, 16): index for index, colour in enumerate(_MSRC_COLOURS.split())},
        colours=True,
    ),
}
