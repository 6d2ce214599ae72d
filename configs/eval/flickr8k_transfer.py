"""Tests on other photos what a model learned from Flickr8k: the tables in docs/transfer.md.

    python benchmarks/names_in_captions.py > data/names_in_flickr8k.txt
    python benchmarks/cifar_like.py
    python -m dinotxt_jax.evaluate --config=configs/eval/flickr8k_transfer.py \\
        --model=runs/flickr8k/model --output=runs/flickr8k/transfer

Data: `data/imagenet_sample` (labels.csv and images/, one photo per ImageNet class), restricted to
names that occur in the captions; the same photos as `data/cifar_like`; `data/msrc_v2` (index.csv
with image and mask, classes.txt). The argument after the colon is the folder that contains all
three (default: data). Only one template is used, because a model trained on 30,000 captions has not
seen the usual 80.
"""

from dinotxt_jax.config import (
    DataConfig,
    EvaluationConfig,
    SegmentationConfig,
    TaskConfig,
    to_config_dict,
)


def get_config(folder="data"):
    """Returns the tasks imagenet, cifar_like, whole and slide."""
    crop = {"image_size": 224, "resize": 256, "augmentation": "center_crop", "threads": 2}
    imagenet = DataConfig(
        source="csv",
        path=f"{folder}/imagenet_sample/labels.csv",
        image_root=f"{folder}/imagenet_sample/images",
        classes="imagenet1k",
        only=f"{folder}/names_in_flickr8k.txt",
        **crop,
    )
    cifar = DataConfig(source="folder", path=f"{folder}/cifar_like", **crop)
    msrc = DataConfig(
        source="csv",
        path=f"{folder}/msrc_v2/index.csv",
        classes=f"{folder}/msrc_v2/classes.txt",
        threads=2,
    )
    template = "a photo of a {}."
    tasks = {
        name: TaskConfig(kind="classification", data=data, templates=template)
        for name, data in (("imagenet", imagenet), ("cifar_like", cifar))
    }
    tasks |= {
        protocol: TaskConfig(
            kind="segmentation",
            data=msrc,
            templates=template,
            segmentation=SegmentationConfig(protocol),
        )
        for protocol in ("whole", "slide")
    }
    return to_config_dict(EvaluationConfig(tasks=tasks, batch_size=8))
