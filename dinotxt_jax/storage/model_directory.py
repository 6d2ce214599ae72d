"""Model directories: Orbax arrays next to a readable `model.json`.

model.json      architecture, preprocessing, tokenizer, sources with sha256, checksums, version
arrays/         parts "backbone", "head", "text", "logit_scale", which can be read separately
tokenizer files the files that `model.json` names under "tokenizer"

In a bucket, where folders cannot be renamed, arrays and tokenizer files are in a folder with a
unique name, and `model.json`, which names that folder, is written last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dinotxt_jax.config import check, from_dict
from dinotxt_jax.config.architecture import (
    DinoTxtConfig,
    HeadConfig,
    TextConfig,
    VisionConfig,
    descriptor_dim,
    divides,
)
from dinotxt_jax.config.data import TOKENIZER_KINDS
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import (
    Address,
    AddressLike,
    is_remote,
    remove_folder,
    to_address,
)
from dinotxt_jax.storage.arrays import save_arrays
from dinotxt_jax.storage.checksums import REPLACE_MODEL, checksums
from dinotxt_jax.storage.files import new_folder, read_json
from dinotxt_jax.storage.preprocessing import Preprocessing
from dinotxt_jax.storage.retries import retried

FORMAT_VERSION = 3
# Fields that an older format lacks have defaults with the same meaning. Version 1 supported only
# learned positions and did not record layouts; version 2 had no checksums.
READABLE_VERSIONS = (1, 2, 3)
ARRAYS = "arrays"
FILE = "model.json"


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
        logit_bias: whether the model has a bias that is added to logits (SigLIP).
        preprocessing: image preprocessing.
        fingerprint: sha256 over the backbone's arrays (`fingerprint`).
        tokenizer: the argument for `tokenizers.load_tokenizer`; None for a backbone alone.
        preset: name of the architecture, if it has one.
        sources: the files converted.
        backbone_path: model directory that holds the backbone's arrays, if not this one.
        checksums: {path of an array in `arrays/`, with dots: checksum} (`storage.checksums`); None
            for directories from before they existed.
        content: the folder inside the directory with arrays and tokenizer files; "" if they are
            next to `model.json`.
        format_version: version of the directory format.
    """

    vision: VisionConfig
    preprocessing: Preprocessing
    fingerprint: str
    head: HeadConfig | None = None
    text: TextConfig | None = None
    logit_bias: bool = False
    tokenizer: dict[str, Any] | None = None
    preset: str | None = None
    sources: tuple[SourceCheckpoint, ...] = ()
    backbone_path: str | None = None
    checksums: dict[str, str] | None = None
    content: str = ""
    format_version: int = FORMAT_VERSION

    def folder(self, path: AddressLike) -> Address:
        """Returns the folder with arrays and tokenizer files of the model directory at `path`."""
        return to_address(path) / self.content if self.content else to_address(path)

    def conflicts(self, key: str) -> Iterator[str]:
        """Sentences about values that cannot be combined; `key` is the key of this group."""
        if self.head is not None:
            width = f"{key}.vision.dim={self.vision.dim}"
            heads = self.head.num_heads
            yield from divides(f"{key}.head.num_heads", heads, self.vision.dim, width)
        if self.tokenizer is not None and self.text is not None:
            yield from _tokenizer_conflicts(self.tokenizer, self.text, key)
        if self.head is not None and self.text is not None:
            token_dim = self.head.projection or self.vision.dim
            expected = descriptor_dim(token_dim, self.head.pooling)
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
        return DinoTxtConfig(self.vision, self.head, self.text, self.logit_bias)


def _tokenizer_conflicts(tokenizer: Mapping[str, Any], text: TextConfig, key: str) -> Iterator[str]:
    """Yields sentences about a tokenizer whose rows the text transformer cannot read."""
    if (kind := tokenizer.get("kind")) not in TOKENIZER_KINDS:
        kinds = ", ".join(TOKENIZER_KINDS)
        yield f"{key}.tokenizer.kind is {kind!r}, expected one of {kinds}; {REPLACE_MODEL}."
    length, size = tokenizer.get("context_length"), tokenizer.get("vocabulary_size")
    if length != text.context_length:
        yield (
            f"{key}.tokenizer.context_length is {length!r}, expected {text.context_length} as in "
            f"{key}.text; {REPLACE_MODEL}."
        )
    if type(size) is not int or not 1 <= size <= text.vocabulary_size:
        yield (
            f"{key}.tokenizer.vocabulary_size is {size!r}, expected at most "
            f"{text.vocabulary_size}, the rows of the embedding table in {key}.text; "
            f"{REPLACE_MODEL}."
        )
    # The causal text transformer reads features at the largest id (`models.text`). Tokenizers that
    # do not record the end of text end with their largest id.
    elif (
        text.pooling == "end"
        and text.end_id < 0
        and (end := tokenizer.get("end_id", size - 1)) != size - 1
    ):
        yield (
            f"{key}.tokenizer.end_id is {end!r}, expected {size - 1}, the largest id, at which the "
            f"text transformer reads features; {REPLACE_MODEL}."
        )


def write_model_directory(
    path: AddressLike,
    description: ModelDescription,
    arrays: Mapping[str, Any],
    *,
    overwrite: bool = False,
    write_tokenizer: Callable[[Address], None] | None = None,
) -> None:
    """Writes a model directory, which appears at `path` only when it is complete.

    If there are several processes, all must call it; each writes its shards.

    Args:
        path: the directory.
        description: becomes `model.json`, with the checksums of the arrays.
        arrays: `{"backbone": tree, "head": tree, "text": tree, "logit_scale": array}`; parts may be
            absent.
        overwrite: replace an existing directory.
        write_tokenizer: writes the tokenizer's files into a given folder.

    Raises:
        UserError: the directory exists and `overwrite` is off.
    """
    description = dataclasses.replace(description, checksums=checksums(dict(arrays)), content="")
    with new_model_directory(path, overwrite) as folder:
        save_arrays(folder / ARRAYS, arrays)
        if not processes.is_first():
            return
        if write_tokenizer is not None:
            write_tokenizer(folder)
        write_description(folder, description)


@contextlib.contextmanager
def new_model_directory(path: AddressLike, overwrite: bool = False) -> Iterator[Address]:
    """Yields a folder for `ARRAYS` and a description; the model is at `path` after the block.

    If there are several processes, all must enter the block; they get the same folder.

    Raises:
        UserError: the directory exists and `overwrite` is off.
    """
    address = to_address(path)
    new = _new_content if is_remote(address) else new_folder
    try:
        with new(address, overwrite) as folder:
            yield folder
    except FileExistsError:
        raise UserError(f"{path} exists already; remove it or choose another output.") from None


_CONTENT = "content-"
# No model takes longer to write, seconds.
_ABANDONED_AFTER = 24 * 3600


def _is_abandoned(name: str) -> bool:
    """Returns whether a folder is content that a killed process left, judged by its age."""
    if not name.startswith(_CONTENT):
        return False
    begun, dash, _ = name.removeprefix(_CONTENT).partition("-")
    # Names from before the time was part of them have no dash.
    return not dash or time.time() - int(begun, 16) > _ABANDONED_AFTER


def _content_of(address: Address) -> str:
    """Returns the folder that a model directory's `model.json` names; "" if there is none."""
    if not retried((address / FILE).exists):
        return ""
    return str(json.loads(retried((address / FILE).read_text)).get("content", ""))


@contextlib.contextmanager
def _new_content(address: Address, overwrite: bool) -> Iterator[Address]:
    """Yields a new folder inside a model directory in a bucket, and makes it the content."""
    if (address / FILE).exists() and not overwrite:
        raise FileExistsError(address)
    unique = f"{int(time.time()):010x}-{uuid.uuid4().hex[:8]}"
    name = _CONTENT + processes.gathered_texts(unique)[0]
    processes.wait()
    try:
        yield address / name
    except BaseException:
        if processes.is_first():
            remove_folder(address / name)
        raise
    processes.wait()  # until all processes have written
    if processes.is_first():
        values = read_json(address / name / FILE, "a new description", "write the model again")
        replaced = _content_of(address)
        text = json.dumps(values | {"content": name}, indent=2)
        retried(lambda: (address / FILE).write_text(text + "\n"))
        for other in address.iterdir():
            # Another writer may be filling a folder that is neither replaced nor old.
            if other.name != name and (other.name == replaced or _is_abandoned(other.name)):
                remove_folder(other)
    processes.wait()


def write_description(folder: Address, description: ModelDescription) -> None:
    """Writes `model.json`."""
    text = json.dumps(dataclasses.asdict(description), indent=2)
    retried(lambda: (folder / FILE).write_text(text + "\n"))


def read_description(path: AddressLike) -> ModelDescription:
    """Reads `model.json` from a model directory.

    Raises:
        UserError: not a model directory, not readable, or in a newer format.
    """
    if str(path).startswith(("hf://", "http://", "https://", "s3://")):
        raise UserError(
            f"{path} is not a model directory; make one with python -m weights_convert {path} "
            "--output=DIR."
        )
    address = to_address(path)
    file = address / FILE
    if not retried(file.exists):
        inside = address / "model"  # in a work directory
        cure = (
            f"take {inside}"
            if (inside / FILE).exists()
            else "correct the path, or make one with python -m weights_convert SOURCE --output=DIR"
        )
        missing = "it does not exist" if not address.exists() else f"no {FILE} in it"
        raise UserError(f"{path or repr('')} is not a model directory ({missing}); {cure}.")
    values = read_json(file, "the description of a model", "convert or export the model again")
    version = values.get("format_version")
    if version not in READABLE_VERSIONS:
        raise UserError(
            f"{file} has format version {version}, this dinotxt_jax reads "
            f"{READABLE_VERSIONS[0]} to {READABLE_VERSIONS[-1]}; upgrade dinotxt_jax (pip install "
            "-U), or convert the model again."
        )
    if version == FORMAT_VERSION and not values.get("checksums"):
        raise UserError(f"{file} has lost the checksums of the arrays; {REPLACE_MODEL}.")
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
