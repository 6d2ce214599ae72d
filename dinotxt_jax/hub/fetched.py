"""Turns the address of a model on a hub into a model directory in the cache folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import filelock
from jax.sharding import Mesh

from dinotxt_jax.hub.known import KNOWN_SOURCES
from dinotxt_jax.inference import Backbone, Model, load, load_backbone
from dinotxt_jax.storage.addresses import AddressLike
from dinotxt_jax.storage.downloads import cache_folder
from dinotxt_jax.storage.model_directory import FILE, FORMAT_VERSION
from weights_convert.convert import convert
from weights_convert.fetching import HUB, fetch, fetch_model_directory

_CONVERSION = 1  # raise it when conversions of the same files change


def load_named(path: AddressLike, dtype: str = "float32", mesh: Mesh | None = None) -> Model:
    """Loads a complete model: dino.txt, LiT, CLIP, SigLIP or TIPS.

    Args:
        path: a directory made by `python -m weights_convert` or by training, local or in gs://; or
            hf://ORG/NAME[@REVISION][/FILE], which is fetched and converted once into the cache; or
            a name in `list_models()`.
        dtype: dtype of arrays and matrix products; "float32" or "bfloat16".
        mesh: device mesh over which arrays and batches are sharded; None uses the first device.

    Raises:
        UserError: the path is not a model directory or holds only a backbone, or the files cannot
            be fetched or converted (the sentence says which setting is missing).
    """
    return load(local_model(path), dtype, mesh)


def load_backbone_named(
    path: AddressLike, dtype: str = "float32", products: str = "none"
) -> Backbone:
    """Loads the backbone of a model.

    Args:
        path: as for `load`; a backbone alone is enough.
        dtype: dtype of arrays and matrix products; "float32" or "bfloat16".
        products: "int8" or "float8_e4m3fn" stores and multiplies block kernels in that dtype
            (`models.quantization`); "none" keeps them in `dtype`.

    Raises:
        UserError: as for `load`, or a dtype is unknown.
    """
    return load_backbone(local_model(path), dtype, products)


def local_model(path: AddressLike) -> AddressLike:
    """Returns a model directory; models on a hub are fetched and converted once.

    Args:
        path: a model directory, which is returned; hf://ORG/NAME[@REVISION][/FILE]; or a name in
            `list_models()`.

    Raises:
        UserError: the files cannot be fetched or converted.
    """
    address = KNOWN_SOURCES.get(str(path), str(path))
    if not address.startswith(HUB):
        return path
    pushed = fetch_model_directory(address)
    if pushed is not None:
        return pushed
    file = fetch(address)
    folder = cache_folder() / "models" / _identity(address, file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Processes on one machine share the cache; one of them converts.
    with filelock.FileLock(folder.with_suffix(".lock")):
        if not (folder / FILE).exists():
            convert([address], folder)
    return folder


def _identity(address: str, file: Path) -> str:
    """Returns a name for the conversion of a file; the hub's cache has the commit in the path."""
    named = f"{address.partition('@')[0]} {file.resolve().parent.name} {file.parent.name}"
    text = f"{named} {file.name} {FORMAT_VERSION} {_CONVERSION}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]
