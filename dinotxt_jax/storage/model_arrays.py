"""Reads the arrays of model directories: verified, sharded, cast, or one layer at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage import quantized_kernels
from dinotxt_jax.storage.addresses import Address, AddressLike
from dinotxt_jax.storage.arrays import load_arrays, stored_shapes
from dinotxt_jax.storage.checksums import REPLACE_MODEL, check_sums, is_verifying
from dinotxt_jax.storage.model_directory import ARRAYS, ModelDescription, read_description
from dinotxt_jax.storage.pieces import StoredArray, open_arrays


def load_parts(path: AddressLike, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Reads arrays from a model directory, each directly into the requested sharding.

    All arrays are compared with their checksums, in the stored dtypes, and then cast; with
    DINOTXT_CHECKSUMS=off they are read directly into the requested dtypes. Quantised kernels are
    read and quantised one layer at a time.

    Args:
        path: the model directory; if its backbone is in another directory, that one is read too.
        abstract: `{part: tree of jax.ShapeDtypeStruct}`.

    Raises:
        UserError: the arrays are damaged or belong to another model, or the backbone's directory
            does not exist or holds another backbone.
    """
    description = read_description(path)
    folder = description.folder(path)
    requested = dict(abstract)
    loaded: dict[str, Any] = {}
    if description.backbone_path is not None and "backbone" in requested:
        backbone = {"backbone": requested.pop("backbone")}
        loaded |= load_parts(_backbone_holder(path, description), backbone)
    if requested:
        others = quantized_kernels.without_kernels(requested)
        stored = open_arrays(folder / ARRAYS, _sums(description))
        _check_same_arrays(folder, requested, stored)
        read = _load(folder, others, stored)
        loaded |= quantized_kernels.with_kernels(read, requested, stored)
    return loaded


def _sums(description: ModelDescription) -> dict[str, str] | None:
    return description.checksums if is_verifying() else None


def _check_same_arrays(
    path: Address,
    requested: Mapping[str, Any],
    stored: Mapping[tuple[str, ...], StoredArray],
) -> None:
    """Raises `UserError` if the stored arrays of the requested parts have other names or shapes.

    An array without a place in the model is an error, too: model.json may have lost the setting
    that makes the model use it, such as the number of register tokens.
    """
    expected = {
        place: target.shape
        for place, target in _by_place(requested).items()
        if place[-1] != quantized_kernels.SCALE
    }
    actual = {place: array.shape for place, array in stored.items() if place[0] in requested}
    wrong = [
        f"{'.'.join(place)} is {actual.get(place, 'missing')}, expected "
        f"{expected.get(place, 'no such array')}"
        for place in expected | actual
        if actual.get(place) != expected.get(place)
    ]
    if wrong:
        raise UserError(
            f"{path / ARRAYS} does not hold the model that model.json describes ({wrong[0]}); "
            f"{REPLACE_MODEL}."
        )


# Bytes that are verified at a time: while a model is loaded, so much more memory is used if the
# stored dtypes are not the requested ones.
_GROUP = 2**30


def _load(
    path: Address, requested: Mapping[str, Any], stored: Mapping[tuple[str, ...], StoredArray]
) -> dict[str, Any]:
    """Reads arrays in groups of about `_GROUP` bytes, verifies each group, and casts it."""
    targets = _by_place(requested)
    loaded: dict[tuple[str, ...], Any] = {}
    group: dict[tuple[str, ...], StoredArray] = {}
    for place in targets:
        group[place] = stored[place]
        size = sum(math.prod(array.shape) * array.dtype.itemsize for array in group.values())
        if size >= _GROUP or len(loaded) + len(group) == len(targets):
            loaded |= _load_group(path, {place: targets[place] for place in group}, group)
            group = {}
    return nested(loaded)


def _load_group(
    path: Address,
    targets: Mapping[tuple[str, ...], jax.ShapeDtypeStruct],
    stored: Mapping[tuple[str, ...], StoredArray],
) -> dict[tuple[str, ...], jax.Array]:
    sums = {
        ".".join(place): array.checksum
        for place, array in stored.items()
        if array.checksum is not None
    }
    if not sums:
        return _by_place(load_arrays(path / ARRAYS, nested(targets), subset=True))
    as_stored = {
        place: jax.ShapeDtypeStruct(target.shape, stored[place].dtype, sharding=target.sharding)
        for place, target in targets.items()
    }
    arrays = load_arrays(path / ARRAYS, nested(as_stored), subset=True)
    check_sums(arrays, sums, str(path), REPLACE_MODEL)
    read = _by_place(arrays)
    other = {place: read[place] for place in read if read[place].dtype != targets[place].dtype}
    dtypes = tuple(str(targets[place].dtype) for place in other)
    return read | dict(zip(other, _cast(list(other.values()), dtypes), strict=True))


@functools.partial(jax.jit, static_argnames="dtypes")
def _cast(arrays: list[Array], dtypes: tuple[str, ...]) -> list[Array]:
    return [array.astype(dtype) for array, dtype in zip(arrays, dtypes, strict=True)]


def _by_place(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Returns the leaves of a nested dict by path."""
    return {
        tuple(str(getattr(key, "key", key)) for key in keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(dict(tree))
    }


def nested(by_place: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Returns the nested dict of values that are given by path."""
    tree: dict[str, Any] = {}
    for (*folders, name), value in by_place.items():
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[name] = value
    return tree


def _backbone_holder(path: AddressLike, description: ModelDescription) -> AddressLike:
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
    path: AddressLike, description: ModelDescription
) -> dict[tuple[str, ...], StoredArray]:
    """Returns all stored arrays by path, including a backbone elsewhere; reads no values."""
    arrays = open_arrays(description.folder(path) / ARRAYS, _sums(description))
    if description.backbone_path is not None:
        holder = _backbone_holder(path, description)
        backbone_model = read_description(holder)
        backbone_arrays = open_arrays(backbone_model.folder(holder) / ARRAYS, _sums(backbone_model))
        arrays |= {
            place: array for place, array in backbone_arrays.items() if place[0] == "backbone"
        }
    return arrays


def load_stored(path: AddressLike, part: str, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Reads one part in the stored dtypes, sharded like `abstract[part]`."""
    description = read_description(path)
    holder = _backbone_holder(path, description) if part == "backbone" else path
    shapes = stored_shapes(read_description(holder).folder(holder) / ARRAYS)[part]
    placed = jax.tree.map(
        lambda stored, target: jax.ShapeDtypeStruct(
            target.shape, stored.dtype, sharding=target.sharding
        ),
        shapes,
        quantized_kernels.without_scales(abstract[part]),
    )
    return load_parts(path, {part: placed})
