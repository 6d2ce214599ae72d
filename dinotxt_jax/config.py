"""Every setting of the project: frozen dataclasses, and the one place where a key is checked.

A file in `configs/` returns `to_config_dict(Config(...))`; `--config.KEY=VALUE` changes it;
`from_dict` turns it back into the dataclass that everything else takes. A key that no dataclass
has, or a value of another type, is a `UserError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from dinotxt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where image-text pairs come from and how an image is prepared.

    Attributes:
        source: "scenes" (drawn), "jsonl", "array_record" or "tfds"; with class labels "folder" (a
            folder a class) or "csv".
        path: jsonl, csv: the index file; array_record: file, folder or glob; tfds: its data_dir.
        image_root: jsonl, csv: folder the image paths are relative to (default: the index's own).
        name: tfds: name of the data set.
        split: jsonl, array_record, csv: keep examples whose "split" equals it ("" keeps all);
            tfds: the split; scenes: "train" or "test".
        label_key: csv: the column of labels: numbers or names, several separated by ";".
        classes: folder, csv: class names in the order of the labels: a list that comes with the
            project (`data/texts`) or a text file ("": what the data says).
        only: folder, csv: keep the classes that this list names, and their examples ("": all).
        image_key, caption_key: tfds: feature names; nested as "captions/text".
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
class HeadTrainingConfig:
    """The trainable vision head; the defaults are the released recipe.

    Attributes:
        num_blocks: number of blocks. num_heads: attention heads (0: the backbone's).
        pooling: of patch tokens: "mean", "max" or "gem"; "none" compares the class token alone,
            and with num_blocks=0 as well the model is LiT (arXiv 2111.07991).
        drop_path: share of examples that skip a branch in training.
        layer_scale: initial LayerScale factor.
        patch_tokens: so many patch tokens, drawn anew for every step, enter the head in training
            (0: all, as released). Half of them cost half and lose little (as in arXiv 2212.00794);
            evaluation and inference always take all.
    """

    num_blocks: int = 2
    num_heads: int = 0
    pooling: str = "mean"
    drop_path: float = 0.3
    layer_scale: float = 1e-5
    patch_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class TextTrainingConfig:
    """The text transformer; the defaults are the released recipe.

    Attributes:
        width, depth, num_heads: of the transformer; its MLP is four times as wide.
        trim: rows of a batch are cut to the longest caption, rounded up to a multiple of this many
            tokens (exact, since attention is causal; each length is compiled once); 0 never cuts.
    """

    width: int = 1280
    depth: int = 24
    num_heads: int = 20
    trim: int = 0


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


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule; the defaults are the released recipe.

    Attributes:
        learning_rate: peak, after `warmup_steps` of linear warm-up from 0; a cosine then ends at 0
            with the last step.
        beta1, beta2, epsilon: of Adam.
        weight_decay: decoupled, on arrays of two or more dimensions.
        warmup_steps: steps of linear warm-up.
    """

    learning_rate: float = 7e-4
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    warmup_steps: int = 2000


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective.

    Attributes:
        kind: "softmax" (CLIP's) or "sigmoid" (SigLIP's, with a learned bias).
        max_logit_scale: exp(logit_scale) is clamped to [1, this] after every step.
        gram_weight: weight of the Gram loss, which holds the similarities among the head's patch
            tokens to the backbone's; 0 leaves it out.
        gram_patches: patch tokens of an image drawn for it (0: all).
        gram_normalize: whether patch tokens are L2-normalised in it.
    """

    kind: str = "softmax"
    max_logit_scale: float = 100.0
    gram_weight: float = 0.0
    gram_patches: int = 0
    gram_normalize: bool = True


DTYPE_NAMES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    """Dtypes, by name (`DTYPE_NAMES`).

    Attributes:
        parameters: of trained arrays. compute: of matrix products in training.
        normalization: softmax, LayerNorm statistics. frozen: the backbone's arrays and products.
    """

    parameters: str = "float32"
    compute: str = "bfloat16"
    normalization: str = "float32"
    frozen: str = "bfloat16"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices: `data` replicas (-1: what is left) times `fsdp` parts of the parameters."""

    data: int = -1
    fsdp: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Training checkpoints: one every `every` steps and after the last; the `keep` newest stay."""

    every: int = 1000
    keep: int = 3


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """One evaluation.

    Attributes:
        kind: "retrieval", "classification" or "segmentation".
        data: the examples; augmentation must be "center_crop" or "squash".
        max_examples: evaluate on the first so many only (0: all).
        templates: classification, segmentation: prompt templates: a list that comes with the
            project (`data/texts`), a text file, or one template such as "a photo of a {}.".
        protocol: segmentation: "slide" or "whole" (`evaluation.segmentation`).
        short_side, window, stride: of the protocol "slide", pixels.
    """

    kind: str = "retrieval"
    data: DataConfig = DataConfig(augmentation="center_crop", split="test")
    max_examples: int = 0
    templates: str = "openai_80"
    protocol: str = "slide"
    short_side: int = 512
    window: int = 384
    stride: int = 192


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated: by `python -m dinotxt_jax.evaluate`, or in training every `every` steps.

    Attributes:
        tasks: by name; the name stands before each result.
        batch_size: images, and token rows, encoded at once.
        every: training only: evaluate every so many steps, and after the last (0: never).
    """

    tasks: dict[str, TaskConfig] = dataclasses.field(default_factory=dict)
    batch_size: int = 256
    every: int = 0


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run.

    Attributes:
        seed: everything random derives from (seed, step, example index).
        steps, batch_size: optimizer steps, and image-text pairs a step over all devices.
        backbone: model directory of the frozen backbone (`python -m weights_convert`).
        features: folder of cached backbone tokens (`python -m dinotxt_jax.precompute`); "" runs
            the backbone in every step.
        feature_views: precompute: prepared views of each image; epoch e trains on view e modulo
            this, so that augmentation survives caching.
        include_backbone: whether the final model directory holds the backbone's arrays, or names
            it by path and fingerprint.
        remat: what the backward pass recomputes: "none", "full" or "dots".
        log_every: steps between two lines of `metrics.jsonl`.
    """

    seed: int = 0
    steps: int = 50_000
    batch_size: int = 65_536
    backbone: str = ""
    features: str = ""
    feature_views: int = 1
    include_backbone: bool = True
    remat: str = "none"
    log_every: int = 10
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    head: HeadTrainingConfig = HeadTrainingConfig()
    text: TextTrainingConfig = TextTrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    precision: PrecisionConfig = PrecisionConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """Any of these dataclasses as a locked `ConfigDict`: setting a key it lacks raises."""
    return ml_collections.ConfigDict(dataclasses.asdict(config)).lock()


DataclassT = TypeVar("DataclassT")


def from_dict(
    cls: type[DataclassT], values: Mapping[str, Any], where: str = "config"
) -> DataclassT:
    """A dataclass from a (nested) mapping, every key and type checked.

    Args:
        cls: the dataclass; fields that `values` lacks keep their defaults.
        values: a dict, `ConfigDict` or parsed JSON.
        where: what the mapping is called in errors.

    Raises:
        UserError: an unknown key, a missing one without default, or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            advice = (
                f"did you mean {where}.{close[0]}?" if close else f"known: {', '.join(fields)}."
            )
            raise UserError(f"{where}.{key} is not a setting; {advice}")
    converted = {
        key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()
    }
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; add what is missing.")
    return cls(**converted)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that a field is annotated with."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is dict and isinstance(value, Mapping):
        return {key: _convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, (list, tuple)):
        variadic = len(arguments) == 2 and arguments[1] is Ellipsis
        kinds = [arguments[0]] * len(value) if variadic else list(arguments)
        if len(kinds) == len(value):
            return tuple(
                _convert(item, kind, f"{where}[{i}]")
                for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
            )
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise UserError(f"{where} is {value!r}, expected {expected}; correct its value.")


def check_image_size(data: DataConfig, patch_size: int, where: str = "config") -> None:
    """Raises `UserError` when prepared images would not consist of whole patches."""
    if data.image_size < patch_size or data.image_size % patch_size:
        lower = max(data.image_size // patch_size, 1) * patch_size
        raise UserError(
            f"{where} has data.image_size={data.image_size}, but the backbone's patches have "
            f"{patch_size} pixels; take a multiple ({lower} or {lower + patch_size})."
        )


def flatten(config: Any, prefix: str = "config") -> dict[str, Any]:
    """A dataclass as {dotted key: value}, for comparing two runs."""
    flat: dict[str, Any] = {}
    items = config.items() if isinstance(config, Mapping) else dataclasses.asdict(config).items()
    for key, value in items:
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}.{key}")
        else:
            flat[f"{prefix}.{key}"] = value
    return flat
