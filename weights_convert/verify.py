"""Compares a model directory's outputs with a reference, and finds the first difference.

A reference is an `.npz` file that any framework can write (docs/conversion.md shows how with
PyTorch). At least one output is required:

    images            [b h w 3] or [b 3 h w], normalised
    layers/0, ...     [b t d]   [class, registers, patches] after block 0, ..., not normalised
                                (SigLIP: patches only)
    class_token       [b d]     after the final norm
    register_tokens   [b r d]   after the final norm
    patch_tokens      [b n d]   after the final norm
    image_features    [b D]     image descriptors from a whole model, not normalised
    tokens            [c l]     token rows
    text_features     [c D]     text features for these rows, not normalised
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np

from dinotxt_jax.errors import UserError
from dinotxt_jax.inference import load, load_backbone
from dinotxt_jax.storage.addresses import AddressLike
from dinotxt_jax.storage.model_directory import read_description
from weights_convert.messages import quoted

_LAYER = re.compile(r"layers/(0|[1-9]\d*)")
_BACKBONE_OUTPUTS = ("class_token", "register_tokens", "patch_tokens")
_DINOTXT_OUTPUTS = ("image_features", "text_features")
_INPUTS = ("images", "tokens")


@dataclass(frozen=True)
class Comparison:
    """How far one quantity in the model is from the reference.

    Attributes:
        name: name in the reference file.
        largest: largest absolute difference.
        relative: `largest` divided by the root mean square of the reference.
    """

    name: str
    largest: float
    relative: float

    def agrees(self, tolerance: float) -> bool:
        """Returns whether the relative difference is within the tolerance (NaN never is)."""
        return self.relative <= tolerance


def compare(model: AddressLike, reference: Path) -> list[Comparison]:
    """Compares all quantities in a reference, in the order in which a model computes them.

    Args:
        model: a model directory; outputs are computed in float32.
        reference: an `.npz` file as described in the module docstring.

    Raises:
        UserError: the file is not a reference, or belongs to a model with another shape.
    """
    description = read_description(model)
    arrays = _read(reference)
    known_names = {*_INPUTS, *_BACKBONE_OUTPUTS, *_DINOTXT_OUTPUTS}
    layers = sorted(int(match[1]) for name in arrays if (match := _LAYER.fullmatch(name)))
    strange = [n for n in arrays if n not in known_names and not _LAYER.fullmatch(n)]
    if strange or not set(arrays) - set(_INPUTS):
        contents = ", ".join(map(quoted, strange)) or "no outputs"
        raise UserError(
            f"{reference} holds {contents}; a reference holds images and outputs named layers/N, "
            f"{', '.join((*_BACKBONE_OUTPUTS, *_DINOTXT_OUTPUTS))}."
        )
    if layers and layers[-1] >= description.vision.depth:
        raise UserError(
            f"{reference} has layers/{layers[-1]}, but the backbone of {model} has "
            f"{description.vision.depth} blocks (from 0); pass a reference for this model."
        )
    try:
        # By default, accelerators multiply float32 with fewer bits than the reference.
        with jax.default_matmul_precision("highest"):
            return [
                _compared(name, computed, arrays[name], reference)
                for name, computed in _outputs(model, arrays, layers, reference)
            ]
    except ValueError as error:  # image or token shapes that this model does not accept
        raise UserError(f"{reference} does not fit {model}: {error}.") from error


def _read(reference: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(reference, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise UserError(
            f"{reference} is not an .npz file with arrays ({error}); write it again."
        ) from error


def _outputs(
    model: AddressLike, arrays: Mapping[str, np.ndarray], layers: list[int], reference: Path
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, model output) for every output in the reference."""
    names = set(arrays)
    images = jnp.zeros((0, 0, 0, 3))
    if names - {"tokens", "text_features"}:
        images = _images(arrays, reference)
    if layers or names & set(_BACKBONE_OUTPUTS):
        backbone = load_backbone(model)
        if layers:
            outputs = backbone.intermediate_layers(images, layers, normalize=False)
            pools = backbone.config.attention_pooling  # then no class token enters the blocks
            for number, out in zip(layers, outputs, strict=True):
                first = () if pools else (out.class_token[:, None],)
                tokens = (*first, out.register_tokens, out.patch_tokens)
                yield f"layers/{number}", np.concatenate(tokens, axis=1)
        final = backbone(images)
        for name in _BACKBONE_OUTPUTS:
            if name in names:
                yield name, np.asarray(getattr(final, name))
        del backbone, final
    if names & set(_DINOTXT_OUTPUTS):
        whole = load(model)
        if "image_features" in names:
            yield "image_features", np.asarray(whole.encode_image(images))
        if "text_features" in names:
            if "tokens" not in names:
                raise UserError(f"{reference} has text_features but no tokens; add the token rows.")
            yield "text_features", np.asarray(whole.encode_text(jnp.asarray(arrays["tokens"])))


def _images(arrays: Mapping[str, np.ndarray], reference: Path) -> jax.Array:
    images = arrays.get("images")
    if images is None or images.ndim != 4 or 3 not in (images.shape[1], images.shape[-1]):
        actual = "no images" if images is None else f"images of shape {list(images.shape)}"
        raise UserError(
            f"{reference} has {actual}, expected normalised images [b h w 3] or [b 3 h w]; "
            "add them."
        )
    channels_last = images if images.shape[-1] == 3 else np.moveaxis(images, 1, -1)
    return jnp.asarray(channels_last, "float32")


def _compared(name: str, computed: np.ndarray, expected: np.ndarray, reference: Path) -> Comparison:
    if computed.shape != expected.shape:
        raise UserError(
            f"{reference} has {name} of shape {list(expected.shape)}, but the model computes "
            f"{list(computed.shape)}; pass a reference for this model."
        )
    expected = expected.astype(np.float64)
    largest = float(np.abs(computed - expected).max(initial=0.0))
    root_mean_square = float(np.sqrt(np.square(expected).mean())) if expected.size else 0.0
    return Comparison(name, largest, largest / max(root_mean_square, 1e-30))


def verdict(comparisons: list[Comparison], tolerance: float) -> str:
    """Summarises the comparisons in one sentence, naming the first difference."""
    differing = [comparison for comparison in comparisons if not comparison.agrees(tolerance)]
    if not differing:
        return f"all {len(comparisons)} agree within {tolerance:g} of their size"
    first = differing[0]
    position = comparisons.index(first)
    before = f"{comparisons[position - 1].name} still agrees, " if position else ""
    return (
        f"{before}{first.name} is the first to differ: by {first.largest:.2g}, or "
        f"{first.relative:.2g} of its size ({len(differing)} of {len(comparisons)} differ)"
    )
