"""Retrieval on the usual test sets: Flickr30k, and two different COCO test sets.

    python -m dinotxt_jax.evaluate --config=configs/eval/retrieval.py --model=models/dinotxt \\
        --output=runs/retrieval

The argument after the colon is one task, or several joined by + (default: all), such as
`configs/eval/retrieval.py:coco_karpathy+coco_2017`:

- `flickr30k`, Karpathy's test split, 1,000 images and 5,000 captions:
  `data/flickr30k/dataset_flickr30k.json`, photos in `data/flickr30k/flickr30k-images`;
- `coco_karpathy`, Karpathy's test split, 5,000 images from val2014 and 25,010 captions:
  `data/coco/dataset_coco.json`, images in `data/coco/val2014`;
- `coco_2017`, all of val2017, 5,000 images and 25,014 captions:
  `data/coco/annotations/captions_val2017.json`, images in `data/coco/val2017`.

Karpathy's files are in caption_datasets.zip (cs.stanford.edu/people/karpathy/deepimagesent), COCO's
images and captions at cocodataset.org; the Flickr30k authors give the photos on request. For other
paths set `--config.tasks.TASK.data.path=FILE` and `.data.image_root=FOLDER` (for coco_karpathy the
folder that contains `val2014`).

All captions of an image count; some papers take the first five. Images are preprocessed as for
CLIP: short side 224, center crop 224, bicubic.
"""

from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig, to_config_dict

TASKS = {
    "flickr30k": {
        "source": "karpathy",
        "path": "data/flickr30k/dataset_flickr30k.json",
        "image_root": "data/flickr30k/flickr30k-images",
        "split": "test",
    },
    "coco_karpathy": {
        "source": "karpathy",
        "path": "data/coco/dataset_coco.json",
        "image_root": "data/coco",
        "split": "test",
    },
    "coco_2017": {
        "source": "coco",
        "path": "data/coco/annotations/captions_val2017.json",
        "image_root": "data/coco/val2017",
    },
}


def get_config(names="all"):
    """Returns the evaluation on the tasks in `TASKS` with these names, joined by +."""
    tasks = {}
    for name in TASKS if names == "all" else names.split("+"):
        if name not in TASKS:
            raise ValueError(f"task {name!r} is unknown; choose among {', '.join(TASKS)}")
        data = DataConfig(image_size=224, resize=224, augmentation="center_crop", **TASKS[name])
        published = "coco" if name.startswith("coco") else ""
        tasks[name] = TaskConfig(kind="retrieval", data=data, published=published)
    return to_config_dict(EvaluationConfig(tasks=tasks))
