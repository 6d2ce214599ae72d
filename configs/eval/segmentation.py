"""Open-vocabulary segmentation by dino.txt's own protocol ("slide").

    python -m dinotxt_jax.evaluate --config=configs/eval/segmentation.py:ade20k_150 \\
        --model=models/dinotxt --output=runs/ade20k

The argument behind the colon is a published data set in its own folders (ade20k_150,
cityscapes_19, voc_20, voc_21, context_59, context_60, coco_stuff_171, coco_stuff_27, coco_object,
camvid_11, msrc_v2; docs/evaluation.md), or a folder with index.csv (columns image and mask: 8-bit
class indices, 255 for none) and classes.txt. The data set's root folder is data/NAME, or
--config.tasks.slide.data.path=DIR. The background of voc_21, context_60 and coco_object is told
apart by scene words.

Another protocol: --config.tasks.slide.segmentation.protocol=whole (or highres).
"""

from dinotxt_jax.config import (
    DataConfig,
    EvaluationConfig,
    SegmentationConfig,
    TaskConfig,
    to_config_dict,
)
from dinotxt_jax.data.mask_layouts import MASK_LAYOUTS
from dinotxt_jax.evaluation.published import FIGURES


def get_config(name="ade20k_150"):
    """The task slide on a data set."""
    background = name in MASK_LAYOUTS and MASK_LAYOUTS[name].background
    if name in MASK_LAYOUTS:
        data = DataConfig(source="masks", name=name, path=f"data/{name}")
    else:
        data = DataConfig(source="csv", path=f"{name}/index.csv", classes=f"{name}/classes.txt")
    task = TaskConfig(
        kind="segmentation",
        data=data,
        segmentation=SegmentationConfig(background_words="scene_words" if background else ""),
        published=name if name in FIGURES else "",
    )
    return to_config_dict(EvaluationConfig(tasks={"slide": task}, batch_size=8))
