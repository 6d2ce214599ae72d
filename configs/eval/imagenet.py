"""Zero-shot classification on ImageNet's validation images, and on related test sets.

    python -m dinotxt_jax.evaluate --config=configs/eval/imagenet.py:a --model=models/dinotxt \\
        --output=runs/imagenet_a --config.tasks.imagenet_a.data.path=FOLDER

The argument after the colon is the test set; the folder is the unpacked archive:

- `1k` (the default), task `imagenet`, in `data/imagenet/val`: the 50,000 validation images of
  ILSVRC 2012 (image-net.org, with an account; sort them into one folder per class first);
- `v2`, task `imagenet_v2`, in `data/imagenetv2-matched-frequency-format-val`: 10,000 new images,
  folders `0` to `999` (github.com/modestyachts/ImageNetV2);
- `a`, task `imagenet_a`, in `data/imagenet-a`: 7,500 natural adversarial examples in 200 classes
  (github.com/hendrycks/natural-adv-examples);
- `r`, task `imagenet_r`, in `data/imagenet-r`: 30,000 renditions in 200 classes
  (github.com/hendrycks/imagenet-r);
- `sketch`, task `imagenet_sketch`, in `data/sketch`: 50,889 sketches
  (github.com/HaohanWang/ImageNet-Sketch).

All but v2 have one folder per class, named by WordNet id (n01440764, ...). The model chooses only
among classes that have a folder, so among 200 for A and R; the report says how many there were.

If TensorFlow Datasets has prepared the test set in a random-access format, append `+tfds`, as in
`configs/eval/imagenet.py:v2+tfds`. The data_dir is TFDS's default folder, or `.data.path=DATA_DIR`.

The protocol behind the published numbers: short side 256, center crop 224, bicubic, 80 templates.
"""

from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig, to_config_dict

# Test set -> its folder, and its name and split in TensorFlow Datasets.
VARIANTS = {
    "1k": ("data/imagenet/val", "imagenet2012", "validation"),
    "v2": (
        "data/imagenetv2-matched-frequency-format-val",
        "imagenet_v2/matched-frequency",
        "test",
    ),
    "a": ("data/imagenet-a", "imagenet_a", "test"),
    "r": ("data/imagenet-r", "imagenet_r", "test"),
    "sketch": ("data/sketch", "imagenet_sketch", "test"),
}


def get_config(argument="1k"):
    """Returns the evaluation on a test set in `VARIANTS`, followed by +tfds for TFDS."""
    variant, _, source = argument.partition("+")
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; choose among {', '.join(VARIANTS)}")
    if source not in ("", "tfds"):
        raise ValueError(f"source {source!r} is unknown; choose tfds, or leave it out")
    folder, name, split = VARIANTS[variant]
    images = {"name": name, "split": split} if source else {"path": folder}
    data = DataConfig(
        source=source or "folder",
        classes="imagenet1k",
        # TFDS labels A and R among all 1000 classes.
        only="present" if variant in ("a", "r") else "",
        image_size=224,
        resize=256,
        augmentation="center_crop",
        **images,
    )
    task = "imagenet" if variant == "1k" else f"imagenet_{variant}"
    published = "imagenet1k" if variant == "1k" else ""
    tasks = {
        task: TaskConfig(
            kind="classification", data=data, templates="openai_80", published=published
        )
    }
    return to_config_dict(EvaluationConfig(tasks=tasks))
