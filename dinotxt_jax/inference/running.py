"""Compiles and runs module methods, and checks the inputs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference.interpolation import to_whole_patches
from dinotxt_jax.models.vit import PatchBatch
from dinotxt_jax.runtime.compiler_options import compiler_options
from dinotxt_jax.storage.model_directory import Preprocessing


def run_method(
    graphdef: Any,
    arrays: Any,
    method: str,
    rows: Any,
    *,
    mesh: Mesh | None = None,
    pixels: Preprocessing | None = None,
    **options: Any,
) -> Any:
    """Runs a module method as a pure function, compiled once per module, options and shapes.

    Args:
        graphdef, arrays: the split module.
        method: method name.
        rows: first method argument: images [b h w 3] or a `PatchBatch`, or tokens [b l] or [b t d].
        mesh: the mesh on which the arrays are placed; None runs on the arrays' device.
        pixels: given for uint8 images, which are then normalised inside the compiled function, and
            stretched to whole patches (not those in a `PatchBatch`).
        options: the other method arguments, which must be hashable.
    """
    leaves = jax.tree.leaves((arrays, rows))
    # Compiler options apply only to the outermost jit: omit them when a caller already traces.
    inside = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    dtypes = {str(leaf.dtype) for leaf in leaves}
    compiled = _compiled(() if inside else tuple(compiler_options(dtypes).items()))
    # The mesh is part of jit's cache key, so that activations are pinned if there is a mesh.
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return compiled(graphdef, arrays, method, tuple(sorted(options.items())), pixels, rows)


@functools.cache
def _compiled(chosen: tuple[tuple[str, str], ...]) -> Callable[..., Any]:
    return jax.jit(
        _run_method,
        static_argnames=("graphdef", "method", "options", "pixels"),
        compiler_options=dict(chosen),
    )


def _run_method(
    graphdef: Any,
    arrays: Any,
    method: str,
    options: tuple[tuple[str, Any], ...],
    pixels: Preprocessing | None,
    rows: Any,
) -> Any:
    module = nnx.merge(graphdef, arrays)
    if isinstance(rows, PatchBatch) and pixels is not None:
        by_pixel = jnp.asarray(rows.patches).reshape(*rows.patches.shape[:2], -1, 3)
        normalized = normalize(by_pixel, pixels.mean, pixels.std)
        rows = rows._replace(patches=normalized.reshape(rows.patches.shape))
    elif pixels is not None:
        normalized = normalize(rows, pixels.mean, pixels.std)
        rows = to_whole_patches(normalized, module.config.vision.patch_size)
    return getattr(module, method)(rows, **dict(options))


def checked_images(images: Any) -> Float[Array, "b h w 3"]:
    """Returns images as an array, or raises a `UserError` that states the expected format."""
    array = images if isinstance(images, jax.Array) else np.asarray(images)
    if array.ndim != 4 or array.shape[-1] != 3 or not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(
            f"images are {array.dtype}{list(array.shape)}, expected floating point [b h w 3], "
            "normalised with description.preprocessing (data.transforms.normalize does it)."
        )
    return jnp.asarray(array)


def checked_tokens(tokens: Any, vocabulary_size: int) -> Int[Array | np.ndarray, "b l"]:
    """Returns token rows as an array, or raises a `UserError` that states the expected format.

    IDs in a device array are not checked, because the check would block on the devices.
    """
    array = tokens if isinstance(tokens, jax.Array) else np.asarray(tokens)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise UserError(
            f"token rows are {array.dtype}{list(array.shape)}, expected integers [b l]; encode "
            "texts with model.tokenizer(texts) first."
        )
    if isinstance(array, np.ndarray) and array.size:
        lowest, highest = int(array.min()), int(array.max())
        if lowest < 0 or highest >= vocabulary_size:
            wrong = lowest if lowest < 0 else highest
            raise UserError(
                f"token rows hold the id {wrong}, but the model's vocabulary has {vocabulary_size} "
                f"tokens (0 to {vocabulary_size - 1}); encode texts with model.tokenizer(texts)."
            )
    return array
