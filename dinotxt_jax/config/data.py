"""Settings of data: where examples come from, how images are prepared, how texts become ids."""

from __future__ import annotations

import dataclasses

from dinotxt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where image-text pairs come from and how an image is prepared.

    Attributes:
        source: "scenes" (drawn), "jsonl", "array_record", "tfds", "karpathy" or "coco" (published
            caption files); with class labels "folder" (a folder a class), "csv" or "tfds"; with
            masks "csv", "masks" (a published data set in its own folders) or "scenes".
        path: jsonl, csv, karpathy, coco: the file; array_record: file, folder or glob; folder: the
            folder of the classes' folders; tfds: its data_dir; masks: the data set's root folder.
        image_root: jsonl, csv, karpathy, coco: folder the image paths are relative to (default:
            the file's own).
        name: tfds: name of the data set; masks: one of `data.mask_layouts.LAYOUTS`.
        split: jsonl, array_record, csv: keep examples whose "split" equals it ("" keeps all);
            karpathy: the same, several joined by "+"; coco: ""; tfds: the split; scenes: "train" or
            "test"; masks: the split ("": the one to evaluate on).
        image_key, caption_key: tfds: feature names; nested as "captions/text".
        label_key: csv: the column of labels: numbers or names, several separated by ";"; tfds: the
            feature of class labels, nested as "objects/label".
        classes: folder, csv, tfds, masks: class names in the order of the labels: a list that comes
            with the project (`data/texts`) or a text file ("": what the data says).
        only: folder, csv, tfds: keep the classes that this list names, and their examples;
            "present": those that have an example ("": all).
        num_scenes: scenes: how many.
        image_size: side of the square that enters the backbone, pixels.
        augmentation: "random_resized_crop" (with flips), "center_crop" or "squash" to a square.
        resize: short side before a center crop, pixels.
        crop_scale, crop_ratio: area fraction and aspect ratio of the random crop.
        flip_probability: of a horizontal flip, with random_resized_crop.
        max_bad_fraction: share of images that may fail to decode before training stops.
        threads: decoding threads. prefetch: examples decoded ahead. workers: extra decoding
            processes (0: threads only).
    """

    source: str = "scenes"
    path: str = ""
    image_root: str = ""
    name: str = ""
    split: str = ""
    image_key: str = "image"
    caption_key: str = "captions"
    label_key: str = "label"
    classes: str = ""
    only: str = ""
    num_scenes: int = 4096
    image_size: int = 224
    augmentation: str = "random_resized_crop"
    resize: int = 256
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    max_bad_fraction: float = 0.01
    threads: int = 16
    prefetch: int = 64
    workers: int = 0


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How captions become token ids.

    Attributes:
        kind: "clip" (CLIP's BPE) or "bpe" (trained on the captions of `config.data`).
        vocabulary: clip: the vocabulary file; "" downloads the official one on first use.
        vocabulary_size: bpe: number of token ids.
        context_length: tokens of a row.
    """

    kind: str = "clip"
    vocabulary: str = ""
    vocabulary_size: int = 8192
    context_length: int = 77


def check_image_size(data: DataConfig, patch_size: int, where: str = "config") -> None:
    """Raises `UserError` when prepared images would not consist of whole patches."""
    if data.image_size < patch_size or data.image_size % patch_size:
        lower = max(data.image_size // patch_size, 1) * patch_size
        raise UserError(
            f"{where} has data.image_size={data.image_size}, but the backbone's patches have "
            f"{patch_size} pixels; take a multiple ({lower} or {lower + patch_size})."
        )
