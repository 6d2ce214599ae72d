"""Zero-shot classification of ImageNet's validation images, one folder a class (n01440764, ...).

    python -m dinotxt_jax.evaluate --config=configs/eval/imagenet.py --model=models/dinotxt \\
        --output=runs/imagenet --config.tasks.imagenet.data.path=imagenet/val

The protocol of the published numbers: short side 256, center crop 224, bicubic, 80 templates. For
a CSV index set data.source=csv; data.only restricts the classes to a list (ImageNet-A and -R use
200).
"""

from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig, to_config_dict


def get_config():
    data = DataConfig(
        source="folder",
        path="data/imagenet/val",
        classes="imagenet1k",
        image_size=224,
        resize=256,
        augmentation="center_crop",
    )
    task = TaskConfig(kind="classification", data=data, templates="openai_80")
    return to_config_dict(EvaluationConfig(tasks={"imagenet": task}))
