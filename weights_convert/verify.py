"""Does a model directory compute what a reference file says, and if not, from which layer on?

A reference is an `.npz` that any framework can write (docs/conversion.md has the lines for
PyTorch). All arrays but one are optional:

    images            [b h w 3] or [b 3 h w], normalised
    layers/0, ...     [b t d]   [class, registers, patches] after block 0, ..., not normalised
    class_token       [b d]     after the final norm, as
    register_tokens   [b r d]
    patch_tokens      [b n d]
    image_features    [b D]     of a whole dino.txt, not normalised
    tokens            [c l]     token rows, and
    text_features     [c D]     their features, not normalised
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
from etils import epath

from dinotxt_jax.errors import UserError
from dinotxt_jax.inference import load, load_backbone
from dinotxt_jax.storage.model_directory import read_description
from weights_convert.messages import quoted

TOLERANCE = 1e-3
_LAYER = re.compile(r"layers/(0|[1-9]\d*)")
_OF_BACKBONE = ("class_token", "register_tokens", "patch_tokens")
_OF_DINOTXT = ("image_features", "text_features")
_INPUTS = ("images", "tokens")


@dataclass(frozen=True)
class Comparison:
    """One quantity of a reference.

    Attributes:
        name: its name in the file.
        largest: the largest absolute difference.
        relative: that over the root mean square of the reference.
    """

    name: str
    largest: float
    relative: float

    def agrees(self, tolerance: float) -> bool:
        """Whether the relative difference is within the tolerance (NaN never is)."""
        return self.relative <= tolerance


def compare(model: epath.PathLike, reference: Path) -> list[Comparison]:
    """All quantities of a reference, in the order in which a model computes them.

    Args:
        model: a model directory; it computes in float32.
        reference: an `.npz`, see the module.

    Raises:
        UserError: a file that is no such reference, or not of a model of this shape.
    """
    description = read_description(model)
    arrays = _read(reference)
    known = {*_INPUTS, *_OF_BACKBONE, *_OF_DINOTXT}
    layers = sorted(int(found[1]) for name in arrays if (found := _LAYER.fullmatch(name)))
    strange = [n for n in arrays if n not in known and not _LAYER.fullmatch(n)]
    if strange or not set(arrays) - set(_INPUTS):
        held = ", ".join(map(quoted, strange)) or "no outputs"
        raise UserError(
            f"{reference} holds {held}; a reference holds images and outputs named layers/N, "
            f"{', '.join((*_OF_BACKBONE, *_OF_DINOTXT))}."
        )
    if layers and layers[-1] >= description.vision.depth:
        raise UserError(
            f"{reference} has layers/{layers[-1]}, but the backbone of {model} has "
            f"{description.vision.depth} blocks (from 0); compare the right two."
        )
    try:
        # Accelerators would otherwise multiply in fewer bits than the reference did.
        with jax.default_matmul_precision("highest"):
            return [
                _compared(name, found, arrays[name], reference)
                for name, found in _outputs(model, arrays, layers, reference)
            ]
    except ValueError as error:  # images or token rows that this model cannot take
        raise UserError(f"{reference} does not fit {model}: {error}.") from error


def _read(reference: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(reference, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise UserError(
            f"{reference} is not an .npz of arrays ({error}); write it anew."
        ) from error


def _outputs(
    model: epath.PathLike, arrays: Mapping[str, np.ndarray], layers: list[int], reference: Path
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, what the model computes) of everything that the reference has."""
    wanted = set(arrays)
    images = jnp.zeros((0, 0, 0, 3))
    if wanted - {"tokens", "text_features"}:
        images = _images(arrays, reference)
    if layers or wanted & set(_OF_BACKBONE):
        backbone = load_backbone(model)
        if layers:
            kept = backbone.intermediate_layers(images, layers, normalize=False)
            for number, out in zip(layers, kept, strict=True):
                tokens = (out.class_token[:, None], out.register_tokens, out.patch_tokens)
                yield f"layers/{number}", np.concatenate(tokens, axis=1)
        final = backbone(images)
        for name in _OF_BACKBONE:
            if name in wanted:
                yield name, np.asarray(getattr(final, name))
        del backbone, final
    if wanted & set(_OF_DINOTXT):
        whole = load(model)
        if "image_features" in wanted:
            yield "image_features", np.asarray(whole.encode_image(images))
        if "text_features" in wanted:
            if "tokens" not in wanted:
                raise UserError(f"{reference} has text_features but no tokens; add the token rows.")
            yield "text_features", np.asarray(whole.encode_text(jnp.asarray(arrays["tokens"])))


def _images(arrays: Mapping[str, np.ndarray], reference: Path) -> jax.Array:
    images = arrays.get("images")
    if images is None or images.ndim != 4 or 3 not in (images.shape[1], images.shape[-1]):
        found = "no images" if images is None else f"images of shape {list(images.shape)}"
        raise UserError(
            f"{reference} has {found}, expected normalised images [b h w 3] or [b 3 h w]; add them."
        )
    last = images if images.shape[-1] == 3 else np.moveaxis(images, 1, -1)
    return jnp.asarray(last, "float32")


def _compared(name: str, found: np.ndarray, expected: np.ndarray, reference: Path) -> Comparison:
    if found.shape != expected.shape:
        raise UserError(
            f"{reference} has {name} of shape {list(expected.shape)}, but the model computes "
            f"{list(found.shape)}; compare the right two."
        )
    expected = expected.astype(np.float64)
    largest = float(np.abs(found - expected).max(initial=0.0))
    size = float(np.sqrt(np.square(expected).mean())) if expected.size else 0.0
    return Comparison(name, largest, largest / max(size, 1e-30))


def verdict(comparisons: list[Comparison], tolerance: float) -> str:
    """One sentence: whether all agree, or where they first part and how far."""
    parted = [comparison for comparison in comparisons if not comparison.agrees(tolerance)]
    if not parted:
        return f"all {len(comparisons)} agree within {tolerance:g} of their size"
    first = parted[0]
    position = comparisons.index(first)
    before = f"{comparisons[position - 1].name} still agrees, " if position else ""
    return (
        f"{before}{first.name} is the first to part: {first.largest:.2g}, or "
        f"{first.relative:.2g} of its size ({len(parted)} of {len(comparisons)} differ)"
    )
