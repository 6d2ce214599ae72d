"""Model directories: Orbax arrays beside a readable `model.json`.

model.json      architecture, preprocessing, tokenizer, sources and their sha256, version
arrays/         parts "backbone", "head", "text", "logit_scale", each readable alone
tokenizer files whatever `model.json` names under "tokenizer"
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from dinotxt_jax.config import from_dict
from dinotxt_jax.config.architecture import DinoTxtConfig, HeadConfig, TextConfig, VisionConfig
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
from dinotxt_jax.storage.files import new_folder

FORMAT_VERSION = 2
# What an older format lacks has a default that means the same; what would not is changed here.
# Version 1 knew only learned positions and noted no layouts.
READABLE_VERSIONS = (1, 2)
ARRAYS = "arrays"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How the backbone wants its images.

    Attributes:
        mean, std: per RGB channel, of pixels in [0, 1].
        resize, crop: evaluation: short side, then side of the center crop, pixels.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: int = 256
    crop: int = 224


@dataclasses.dataclass(frozen=True)
class SourceCheckpoint:
    """What a model directory was made from: one checkpoint, of one file or several.

    Attributes:
        file: its name.
        sha256: of the file; of several, of their hashes in order of names.
        layout: the key table it was read with (`weights_convert.layouts`).
        dtype: of most of its arrays, and other_dtypes of the others, by name: an export writes
            the same.
    """

    file: str
    sha256: str
    layout: str = ""
    dtype: str = ""
    other_dtypes: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """What `model.json` says.

    Attributes:
        vision, head, text: architecture; head and text are None for a backbone alone.
        preprocessing: of images.
        fingerprint: sha256 over the backbone's arrays (`fingerprint`).
        tokenizer: what `tokenizers.load_tokenizer` takes; None for a backbone alone.
        preset: name of the architecture, if it has one.
        sources: the files converted.
        backbone_path: model directory that holds the backbone's arrays, if not this one.
        format_version: of the layout of the directory.
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

    @property
    def dinotxt(self) -> DinoTxtConfig:
        """The whole architecture; raises `UserError` for a backbone alone."""
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
    """Writes a model directory; it appears under its name only when it is complete.

    Of several processes all must call it; each writes its parts of the arrays.

    Args:
        path: the directory.
        description: becomes `model.json`.
        arrays: `{"backbone": tree, "head": tree, "text": tree, "logit_scale": array}` or some.
        overwrite: replace a directory of that name.
        write_tokenizer: puts the tokenizer's files into the folder it is given.

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
    """A folder to write `ARRAYS` and a description into; it gets its name when the block ends.

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
    """`model.json` of a model directory.

    Raises:
        UserError: no model directory, not readable, or of a newer format.
    """
    if str(path).startswith(("hf://", "http://", "https://")):
        raise UserError(
            f"{path} is not a model directory; make one with python -m weights_convert {path} "
            "--output=DIR."
        )
    file = epath.Path(path) / "model.json"
    if not file.exists():
        inside = epath.Path(path) / "model"  # of a work directory
        cure = (
            f"take {inside}"
            if (inside / "model.json").exists()
            else "correct the path, or make one with python -m weights_convert SOURCE --output=DIR"
        )
        missing = "it does not exist" if not epath.Path(path).exists() else "no model.json in it"
        raise UserError(f"{path or repr('')} is not a model directory ({missing}); {cure}.")
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); convert the model again.") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version not in READABLE_VERSIONS:
        raise UserError(
            f"{file} has format version {version}, this dinotxt_jax reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; upgrade dinotxt_jax (pip install -U), "
            "or convert the model again."
        )
    values["format_version"] = FORMAT_VERSION
    return from_dict(ModelDescription, values, str(file))


class Fingerprint:
    """sha256 over names, dtypes, shapes and values of a tree of arrays, in order of names.

    Values may come in pieces, first dimension first.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def begin(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        """The next array; `name` has dots between its parts."""
        self._digest.update(f"{name} {dtype} {shape}\n".encode())

    def add(self, values: np.ndarray) -> None:
        """The next elements of the array begun."""
        if values.size:
            self._digest.update(np.ascontiguousarray(values).view(np.uint8).data)

    def hexdigest(self) -> str:
        """The fingerprint of all arrays so far."""
        return self._digest.hexdigest()


def fingerprint(arrays: Any) -> str:
    """The `Fingerprint` of a tree of arrays in memory (of all processes, which must call it)."""
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
    """Arrays of a model directory, each read straight into its dtype and sharding.

    Kernels that are wanted quantised are read and quantised a layer at a time.

    Args:
        path: the model directory; a backbone that it only names is read from where it lies.
        abstract: `{part: tree of jax.ShapeDtypeStruct}`.

    Raises:
        UserError: the backbone is not where it should be, or is another one.
    """
    path = epath.Path(path)
    description = read_description(path)
    wanted = dict(abstract)
    loaded: dict[str, Any] = {}
    if description.backbone_path is not None and "backbone" in wanted:
        elsewhere = read_description(description.backbone_path)
        if elsewhere.fingerprint != description.fingerprint:
            raise UserError(
                f"{path} was trained on the backbone {description.fingerprint[:12]}, but "
                f"{description.backbone_path} now holds {elsewhere.fingerprint[:12]}; put the "
                "first one back or train again."
            )
        backbone = {"backbone": wanted.pop("backbone")}
        loaded |= load_parts(description.backbone_path, backbone)
    if wanted:
        others = quantized_kernels.without_kernels(wanted)
        read = load_arrays(path / ARRAYS, others, some=True)
        loaded |= quantized_kernels.with_kernels(read, wanted, open_arrays(path / ARRAYS))
    return loaded


def stored_arrays(
    path: epath.PathLike, description: ModelDescription
) -> dict[tuple[str, ...], StoredArray]:
    """All arrays of a model by their names, those of a backbone elsewhere too; none is read."""
    found = open_arrays(epath.Path(path) / ARRAYS)
    if description.backbone_path is not None:
        elsewhere = open_arrays(epath.Path(description.backbone_path) / ARRAYS)
        found |= {place: array for place, array in elsewhere.items() if place[0] == "backbone"}
    return found


def load_stored(path: epath.PathLike, part: str, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """One part in the dtypes it is stored in, placed as `abstract[part]` says."""
    description = read_description(path)
    holder = description.backbone_path if part == "backbone" else None
    shapes = stored_shapes(epath.Path(holder or path) / ARRAYS)[part]
    placed = jax.tree.map(
        lambda stored, wanted: jax.ShapeDtypeStruct(
            wanted.shape, stored.dtype, sharding=wanted.sharding
        ),
        shapes,
        quantized_kernels.without_scales(abstract[part]),
    )
    return load_parts(path, {part: placed})
