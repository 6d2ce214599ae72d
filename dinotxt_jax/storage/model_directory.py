"""Model directories: Orbax arrays next to a readable `model.json`.

model.json      architecture, preprocessing, tokenizer, sources with sha256, version
arrays/         parts "backbone", "head", "text", "logit_scale", which can be read separately
tokenizer files the files that `model.json` names under "tokenizer"
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import jax
import numpy as np
from etils import epath

from dinotxt_jax.config import check, from_dict
from dinotxt_jax.config.architecture import (
    DinoTxtConfig,
    HeadConfig,
    TextConfig,
    VisionConfig,
    descriptor_dim,
    divides,
)
from dinotxt_jax.config.ranges import Range
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage import quantized_kernels
from dinotxt_jax.storage.arrays import (
    StoredArray,
    load_arrays,
    open_arrays,
    save_arrays,
    stored_shapes,
)
from dinotxt_jax.storage.files import new_folder, read_json

FORMAT_VERSION = 2
# Fields that an older format lacks have defaults with the same meaning. Version 1 supported only
# learned positions and did not record layouts.
READABLE_VERSIONS = (1, 2)
ARRAYS = "arrays"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Image preprocessing that the backbone expects.

    Attributes:
        mean, std: per RGB channel, for pixels in [0, 1].
        resize, crop: in evaluation, short side, then side of the center crop, pixels.
    """

    mean: Annotated[tuple[float, float, float], Range(-1000, 1000)] = IMAGENET_MEAN
    std: Annotated[tuple[float, float, float], Range(0, 1000, open_low=True)] = IMAGENET_STD
    resize: Annotated[int, Range(1, 16_384)] = 256
    crop: Annotated[int, Range(1, 16_384)] = 224


@dataclasses.dataclass(frozen=True)
class SourceCheckpoint:
    """A checkpoint, in one file or several, that a model directory was converted from.

    Attributes:
        file: file name.
        sha256: the file's checksum; for several files, the checksum over their checksums in name
            order.
        layout: the key table that read it (`weights_convert.layouts`).
        dtype: dtype of most arrays; an export writes the same dtypes.
        other_dtypes: array name -> dtype, for the other arrays.
    """

    file: str
    sha256: str
    layout: str = ""
    dtype: str = ""
    other_dtypes: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """The content of `model.json`.

    Attributes:
        vision, head, text: architecture; head and text are None for a backbone alone.
        preprocessing: image preprocessing.
        fingerprint: sha256 over the backbone's arrays (`fingerprint`).
        tokenizer: the argument for `tokenizers.load_tokenizer`; None for a backbone alone.
        preset: name of the architecture, if it has one.
        sources: the files converted.
        backbone_path: model directory that holds the backbone's arrays, if not this one.
        format_version: version of the directory format.
    """

    vision: VisionConfig
    preprocessing: Preprocessing
    fingerprint: str
    head: HeadConfig | None = None
    text: TextConfig | None = None
    tokenizer: dict[str, Any] | None = None
    preset: str | None = None
    sources: tuple[SourceCheckpoint, ...] = ()
    backbone_path: str | None = None
    format_version: int = FORMAT_VERSION

    def conflicts(self, key: str) -> Iterator[str]:
        """Sentences about values that cannot be combined; `key` is the key of this group."""
        if self.head is not None:
            width = f"{key}.vision.dim={self.vision.dim}"
            heads = self.head.num_heads
            yield from divides(f"{key}.head.num_heads", heads, self.vision.dim, width)
        if self.head is not None and self.text is not None:
            expected = descriptor_dim(self.vision.dim, self.head.pooling)
            if self.text.embed_dim != expected:
                yield (
                    f"{key}.text.embed_dim is {self.text.embed_dim}, expected {expected}, the "
                    "width of image descriptors; restore the file, or convert the model again."
                )

    @property
    def dinotxt(self) -> DinoTxtConfig:
        """Returns the whole architecture; raises `UserError` for a backbone alone."""
        if self.head is None or self.text is None:
            raise UserError(
                "the model directory holds a backbone without head and text transformer; train "
                "them (python -m dinotxt_jax.train) or use dt.load_backbone."
            )
        return DinoTxtConfig(self.vision, self.head, self.text)


def write_model_directory(
    path: epath.PathLike,
    description: ModelDescription,
    arrays: Mapping[str, Any],
    *,
    overwrite: bool = False,
    write_tokenizer: Callable[[epath.Path], None] | None = None,
) -> None:
    """Writes a model directory, which appears at `path` only when it is complete.

    If there are several processes, all must call it; each writes its shards.

    Args:
        path: the directory.
        description: becomes `model.json`.
        arrays: `{"backbone": tree, "head": tree, "text": tree, "logit_scale": array}`; parts may be
            absent.
        overwrite: replace an existing directory.
        write_tokenizer: writes the tokenizer's files into a given folder.

    Raises:
        UserError: the directory exists and `overwrite` is off.
    """
    with new_model_directory(path, overwrite) as folder:
        save_arrays(folder / ARRAYS, arrays)
        if not processes.is_first():
            return
        if write_tokenizer is not None:
            write_tokenizer(folder)
        write_description(folder, description)


@contextlib.contextmanager
def new_model_directory(path: epath.PathLike, overwrite: bool = False) -> Iterator[epath.Path]:
    """Yields a folder for `ARRAYS` and a description, and renames it to `path` after the block.

    Raises:
        UserError: the directory exists and `overwrite` is off.
    """
    try:
        with new_folder(epath.Path(path), overwrite) as folder:
            yield folder
    except FileExistsError:
        raise UserError(f"{path} exists already; remove it or choose another output.") from None


def write_description(folder: epath.Path, description: ModelDescription) -> None:
    """Writes `model.json`."""
    text = json.dumps(dataclasses.asdict(description), indent=2)
    (folder / "model.json").write_text(text + "\n")


def read_description(path: epath.PathLike) -> ModelDescription:
    """Reads `model.json` from a model directory.

    Raises:
        UserError: not a model directory, not readable, or in a newer format.
    """
    if str(path).startswith(("hf://", "http://", "https://")):
        raise UserError(
            f"{path} is not a model directory; make one with python -m weights_convert {path} "
            "--output=DIR."
        )
    file = epath.Path(path) / "model.json"
    if not file.exists():
        inside = epath.Path(path) / "model"  # in a work directory
        cure = (
            f"take {inside}"
            if (inside / "model.json").exists()
            else "correct the path, or make one with python -m weights_convert SOURCE --output=DIR"
        )
        missing = "it does not exist" if not epath.Path(path).exists() else "no model.json in it"
        raise UserError(f"{path or repr('')} is not a model directory ({missing}); {cure}.")
    values = read_json(file, "the description of a model", "convert or export the model again")
    version = values.get("format_version")
    if version not in READABLE_VERSIONS:
        raise UserError(
            f"{file} has format version {version}, this dinotxt_jax reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; upgrade dinotxt_jax (pip install -U), "
            "or convert the model again."
        )
    values["format_version"] = FORMAT_VERSION
    description = from_dict(ModelDescription, values, str(file))
    check(description, str(file))
    return description


class Fingerprint:
    """sha256 over names, dtypes, shapes and values in a tree of arrays, in name order.

    Values may be added in pieces, in order along the first dimension.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def begin(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        """Starts the next array; dots separate the parts of `name`."""
        self._digest.update(f"{name} {dtype} {shape}\n".encode())

    def add(self, values: np.ndarray) -> None:
        """Adds the next elements of the current array."""
        if values.size:
            self._digest.update(np.ascontiguousarray(values).view(np.uint8).data)

    def hexdigest(self) -> str:
        """Returns the fingerprint of all arrays so far."""
        return self._digest.hexdigest()


def fingerprint(arrays: Any) -> str:
    """Returns the `Fingerprint` of a tree in memory; all processes must call it."""
    result = Fingerprint()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    ):
        value = processes.on_host(leaf)
        result.begin(path, value.dtype, value.shape)
        result.add(value)
    return result.hexdigest()


def load_parts(path: epath.PathLike, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Reads arrays from a model directory, each directly into the requested dtype and sharding.

    Quantised kernels are read and quantised one layer at a time.

    Args:
        path: the model directory; if its backbone is in another directory, that one is read too.
        abstract: `{part: tree of jax.ShapeDtypeStruct}`.

    Raises:
        UserError: the backbone's directory does not exist or holds another backbone.
    """
    path = epath.Path(path)
    description = read_description(path)
    requested = dict(abstract)
    loaded: dict[str, Any] = {}
    if description.backbone_path is not None and "backbone" in requested:
        backbone = {"backbone": requested.pop("backbone")}
        loaded |= load_parts(_backbone_holder(path, description), backbone)
    if requested:
        others = quantized_kernels.without_kernels(requested)
        read = load_arrays(path / ARRAYS, others, subset=True)
        loaded |= quantized_kernels.with_kernels(read, requested, open_arrays(path / ARRAYS))
    return loaded


def _backbone_holder(path: epath.PathLike, description: ModelDescription) -> epath.PathLike:
    """Returns the model directory that holds the backbone's arrays.

    Raises:
        UserError: it does not exist, holds another backbone, or names a third directory.
    """
    holder = description.backbone_path
    if holder is None:
        return path
    backbone_model = read_description(holder)
    if backbone_model.backbone_path is not None:
        raise UserError(
            f"{path} names {holder} as the directory of its backbone, which holds no backbone but "
            "names another directory; correct backbone_path in model.json, or export the model "
            "again."
        )
    if backbone_model.fingerprint != description.fingerprint:
        raise UserError(
            f"{path} was trained on the backbone {description.fingerprint[:12]}, but {holder} now "
            f"holds {backbone_model.fingerprint[:12]}; restore the first backbone or train again."
        )
    return holder


def stored_arrays(
    path: epath.PathLike, description: ModelDescription
) -> dict[tuple[str, ...], StoredArray]:
    """Returns all stored arrays by path, including a backbone elsewhere; reads no values."""
    arrays = open_arrays(epath.Path(path) / ARRAYS)
    if description.backbone_path is not None:
        holder = _backbone_holder(path, description)
        backbone_arrays = open_arrays(epath.Path(holder) / ARRAYS)
        arrays |= {
            place: array for place, array in backbone_arrays.items() if place[0] == "backbone"
        }
    return arrays


def load_stored(path: epath.PathLike, part: str, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Reads one part in the stored dtypes, sharded like `abstract[part]`."""
    description = read_description(path)
    holder = _backbone_holder(path, description) if part == "backbone" else path
    shapes = stored_shapes(epath.Path(holder) / ARRAYS)[part]
    placed = jax.tree.map(
        lambda stored, target: jax.ShapeDtypeStruct(
            target.shape, stored.dtype, sharding=target.sharding
        ),
        shapes,
        quantized_kernels.without_scales(abstract[part]),
    )
    return load_parts(path, {part: placed})
