"""Zero-shot classification of ImageNet's validation images, and of the test sets for its classes.

    python -m dinotxt_jax.evaluate --config=configs/eval/imagenet.py:a --model=models/dinotxt \\
        --output=runs/imagenet_a --config.tasks.imagenet_a.data.path=FOLDER

The argument behind the colon is the test set; the folder is what its archive unpacks to:

- `1k` (the default), task `imagenet`, in `data/imagenet/val`: the 50,000 validation images of
  ILSVRC 2012 (image-net.org, with an account; sort them into a folder a class first);
- `v2`, task `imagenet_v2`, in `data/imagenetv2-matched-frequency-format-val`: 10,000 new images,
  folders `0` to `999` (github.com/modestyachts/ImageNetV2);
- `a`, task `imagenet_a`, in `data/imagenet-a`: 7,500 natural adversarial examples of 200 classes
  (github.com/hendrycks/natural-adv-examples);
- `r`, task `imagenet_r`, in `data/imagenet-r`: 30,000 renditions of 200 classes
  (github.com/hendrycks/imagenet-r);
- `sketch`, task `imagenet_sketch`, in `data/sketch`: 50,889 sketches
  (github.com/HaohanWang/ImageNet-Sketch).

All but v2 have a folder a class named by its WordNet id (n01440764, ...). Only classes with a
folder are told apart, so that the 200 of A and R are; the report says how many there were.

Prepared by TensorFlow Datasets in a random-access format: set `.data.source=tfds` and
`.data.path=` to its data_dir (for its default place `.data.path=''`). Name and split are in here.

The protocol of the published numbers: short side 256, center crop 224, bicubic, 80 templates.
"""

from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig, to_config_dict

VARIANTS = {
    "1k": {"path": "data/imagenet/val", "name": "imagenet2012", "split": "validation"},
    "v2": {
        "path": "data/imagenetv2-matched-frequency-format-val",
        "name": "imagenet_v2/matched-frequency",
        "split": "test",
    },
    # TFDS labels A and R among all 1000 classes.
    "a": {"path": "data/imagenet-a", "name": "imagenet_a", "split": "test", "only": "present"},
    "r": {"path": "data/imagenet-r", "name": "imagenet_r", "split": "test", "only": "present"},
    "sketch": {"path": "data/sketch", "name": "imagenet_sketch", "split": "test"},
}


def get_config(variant="1k"):
    """The evaluation on one of `VARIANTS`."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; choose among {', '.join(VARIANTS)}")
    data = DataConfig(
        source="folder",
        classes="imagenet1k",
        image_size=224,
        resize=256,
        augmentation="center_crop",
        **VARIANTS[variant],
    )
    name = "imagenet" if variant == "1k" else f"imagenet_{variant}"
    published = "imagenet1k" if variant == "1k" else ""
    task = TaskConfig(kind="classification", data=data, templates="openai_80", published=published)
    return to_config_dict(EvaluationConfig(tasks={name: task}))
