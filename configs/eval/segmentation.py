"""Open-vocabulary segmentation with dino.txt's own protocol ("slide").

    python -m dinotxt_jax.evaluate --config=configs/eval/segmentation.py:ade20k_150 \\
        --model=models/dinotxt --output=runs/ade20k

The argument after the colon is a published data set in the published folders (ade20k_150,
cityscapes_19, voc_20, voc_21, context_59, context_60, coco_stuff_171, coco_stuff_27, coco_object,
camvid_11, msrc_v2; docs/evaluation.md), or a folder with index.csv (columns image and mask: 8-bit
class indices, 255 for none) and classes.txt. The data set's root folder is data/NAME, or
--config.tasks.slide.data.path=DIR. In voc_21, context_60 and coco_object the background is
recognised by scene words.

Another protocol: --config.tasks.slide.segmentation.protocol=whole (or highres). The argument
`NAME+tips` is the official evaluation of TIPSv2: short side 448, windows of 448 pixels every 336,
TCL's nine templates and the value trick; reported for TIPSv2 L/14 on ADE20K: 25.06 mIoU.
"""

import dataclasses

from dinotxt_jax.config import (
    DataConfig,
    EvaluationConfig,
    SegmentationConfig,
    TaskConfig,
    to_config_dict,
)
from dinotxt_jax.data.mask_layouts import MASK_LAYOUTS
from dinotxt_jax.evaluation.published import FIGURES

TIPS = SegmentationConfig(short_side=448, window=448, stride=336, features="value")


def get_config(argument="ade20k_150"):
    """Returns the task slide on a data set."""
    name, _, protocol = argument.partition("+")
    if protocol not in ("", "tips"):
        raise ValueError(f"protocol {protocol!r} is unknown; choose tips, or leave it out")
    background = name in MASK_LAYOUTS and MASK_LAYOUTS[name].background
    if name in MASK_LAYOUTS:
        data = DataConfig(source="masks", name=name, path=f"data/{name}")
    else:
        data = DataConfig(source="csv", path=f"{name}/index.csv", classes=f"{name}/classes.txt")
    sizes = TIPS if protocol else SegmentationConfig()
    task = TaskConfig(
        kind="segmentation",
        data=data,
        templates="tcl_9" if protocol else "openai_80",
        segmentation=dataclasses.replace(
            sizes, background_words="scene_words" if background else ""
        ),
        published=name if name in FIGURES else "",
    )
    return to_config_dict(EvaluationConfig(tasks={"slide": task}, batch_size=8))
