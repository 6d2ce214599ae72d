"""The tasks of the table that compares dino.txt with CLIP and SigLIP (arXiv 2412.16334).

    python -m dinotxt_jax.compare --config=configs/eval/paper.py --output=runs/paper \\
        --model=dinotxt=models/dinotxt --model=clip=models/clip_l14 --model=siglip=models/siglip_l16

The argument after the colon is one task or several joined by + (default: all), or `present`: those
whose data exist in the folder data. Each model gets images of its own size by its own resize rule.

Classification: `imagenet`, `imagenet_v2`, `imagenet_a`, `imagenet_r`, `imagenet_sketch` (folders as
in `configs/eval/imagenet.py`); `objectnet` (data/objectnet/images, one folder per class),
`inaturalist` (data/inaturalist2021/val, with data/inaturalist2021/classes.txt: one name per folder
in the order of the folders), `places` (data/places205/val, one folder per class).
Retrieval: `coco_karpathy`, `flickr30k` (files as in `configs/eval/retrieval.py`).
Segmentation: `ade20k_150`, `cityscapes_19`, `voc_20`, `context_59`, `coco_stuff_171` (data/NAME).

The published figures stand below the measured ones where the protocol is the same.
"""

from pathlib import Path

from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig, to_config_dict
from dinotxt_jax.evaluation.published import FIGURES

FOLDERS = {
    "imagenet": ("data/imagenet/val", "imagenet1k", ""),
    "imagenet_v2": ("data/imagenetv2-matched-frequency-format-val", "imagenet1k", ""),
    "imagenet_a": ("data/imagenet-a", "imagenet1k", "present"),
    "imagenet_r": ("data/imagenet-r", "imagenet1k", "present"),
    "imagenet_sketch": ("data/sketch", "imagenet1k", ""),
    "objectnet": ("data/objectnet/images", "", ""),
    "inaturalist": ("data/inaturalist2021/val", "data/inaturalist2021/classes.txt", ""),
    "places": ("data/places205/val", "", ""),
}
CAPTIONS = {
    "coco_karpathy": ("data/coco/dataset_coco.json", "data/coco"),
    "flickr30k": ("data/flickr30k/dataset_flickr30k.json", "data/flickr30k/flickr30k-images"),
}
MASKS = ("ade20k_150", "cityscapes_19", "voc_20", "context_59", "coco_stuff_171")


def all_tasks():
    """Returns every task of the table."""
    tasks = {}
    for name, (path, classes, only) in FOLDERS.items():
        data = DataConfig(
            source="folder", path=path, classes=classes, only=only, augmentation="center_crop"
        )
        published = "imagenet1k" if name == "imagenet" else ""
        tasks[name] = TaskConfig(
            kind="classification", data=data, preparation="model", published=published
        )
    for name, (path, image_root) in CAPTIONS.items():
        data = DataConfig(
            source="karpathy",
            path=path,
            image_root=image_root,
            split="test",
            augmentation="center_crop",
        )
        published = "coco" if name.startswith("coco") else ""
        tasks[name] = TaskConfig(
            kind="retrieval", data=data, preparation="model", published=published
        )
    for name in MASKS:
        data = DataConfig(source="masks", name=name, path=f"data/{name}")
        tasks[name] = TaskConfig(
            kind="segmentation", data=data, published=name if name in FIGURES else ""
        )
    return tasks


def get_config(names="all"):
    """Returns the tasks with these names, joined by +, or all, or those whose data are present."""
    tasks = all_tasks()
    if names == "present":
        chosen = [name for name, task in tasks.items() if Path(task.data.path).exists()]
        if not chosen:
            raise ValueError("no data of any task is present in the folder data")
    else:
        chosen = list(tasks) if names == "all" else names.split("+")
    for name in chosen:
        if name not in tasks:
            raise ValueError(f"task {name!r} is unknown; choose among {', '.join(tasks)}, present")
    tasks = {name: tasks[name] for name in chosen}
    return to_config_dict(EvaluationConfig(tasks=tasks, batch_size=8))
