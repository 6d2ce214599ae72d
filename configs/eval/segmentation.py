"""Open-vocabulary segmentation of image and mask pairs, by dino.txt's own protocol and whole.

    python -m dinotxt_jax.evaluate --config=configs/eval/segmentation.py --model=models/dinotxt \\
        --output=runs/segmentation

Data: a CSV with the columns image and mask (8-bit class indices, 255 for none), and a text file of
class names in the order of the indices. The argument behind the colon changes the folder they lie
in: `configs/eval/segmentation.py:data/msrc_v2` (the default; index.csv and classes.txt).
"""

from dinotxt_jax.config import (
    DataConfig,
    EvaluationConfig,
    SegmentationConfig,
    TaskConfig,
    to_config_dict,
)


def get_config(folder="data/msrc_v2"):
    """Both protocols on the pairs that `index.csv` in a folder names."""
    data = DataConfig(
        source="csv",
        path=f"{folder}/index.csv",
        classes=f"{folder}/classes.txt",
    )
    tasks = {
        protocol: TaskConfig(
            kind="segmentation", data=data, segmentation=SegmentationConfig(protocol)
        )
        for protocol in ("slide", "whole")
    }
    return to_config_dict(EvaluationConfig(tasks=tasks, batch_size=8))
