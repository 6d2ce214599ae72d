"""Makes folders like CIFAR-10's from ImageNet photos: 32 x 32 pixels, a folder for each class.

    python benchmarks/cifar_like.py --source=data/imagenet_sample --output=data/cifar_like

`CLASSES` maps CIFAR-10 classes to ImageNet labels. All photos in the index `labels.csv` (columns
file, label) with such a label are center-cropped and resized to 32 x 32 (bicubic). ImageNet has no
deer, so nine classes remain. Class sizes differ widely, so look at the mean over classes.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from dinotxt_jax.data.resizing import center_crop
from dinotxt_jax.data.transforms import decode_image

# CIFAR-10 class -> ImageNet labels, first and last in each range.
CLASSES: dict[str, tuple[tuple[int, int], ...]] = {
    "airplane": ((404, 404), (895, 895)),
    "automobile": (*((n, n) for n in (436, 468, 511, 609, 627, 656, 661, 751, 817)),),
    "bird": ((7, 24), (80, 100), (127, 146)),
    "cat": ((281, 285),),
    "dog": ((151, 268),),
    "frog": ((30, 32),),
    "horse": ((339, 339),),
    "ship": (*((n, n) for n in (403, 484, 510, 554, 625, 628, 724, 780, 814, 871, 914)),),
    "truck": (*((n, n) for n in (555, 569, 675, 717, 734, 864, 867)),),
}


def main() -> None:
    """Writes the folders and prints the number of photos in each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path("data/imagenet_sample"))
    parser.add_argument("--output", type=Path, default=Path("data/cifar_like"))
    arguments = parser.parse_args()
    with (arguments.source / "labels.csv").open(newline="") as file:
        rows = [(row["file"], int(row["label"])) for row in csv.DictReader(file)]
    for name, ranges in CLASSES.items():
        folder = arguments.output / name
        folder.mkdir(parents=True, exist_ok=True)
        chosen = [file for file, label in rows if any(low <= label <= high for low, high in ranges)]
        for file in chosen:
            photo = arguments.source / file
            if not photo.is_file():
                photo = arguments.source / "images" / file
            image = center_crop(decode_image(photo.read_bytes()), 32, 32)
            image.save((folder / Path(file).name).with_suffix(".png"))
        print(f"{name}: {len(chosen)}")


if __name__ == "__main__":
    main()
