"""Loads model directories as callable modules."""

from __future__ import annotations

import jax
from flax import nnx
from jax.sharding import Mesh

from dinotxt_jax.errors import UserError
from dinotxt_jax.models import attention
from dinotxt_jax.models.dinotxt import DinoTxt
from dinotxt_jax.models.layers import DTypes, abstract_arrays
from dinotxt_jax.models.vit import VisionTransformer
from dinotxt_jax.storage.addresses import AddressLike
from dinotxt_jax.storage.model_arrays import load_parts
from dinotxt_jax.storage.model_directory import ModelDescription, read_description


def load_vision_transformer(
    path: AddressLike, dtypes: DTypes, mesh: Mesh | None = None
) -> tuple[VisionTransformer, ModelDescription]:
    """Loads the backbone and the description from any model directory."""
    description = read_description(path)

    vision = description.vision
    chosen = _attention(dtypes, vision.block().head_dim)

    def create() -> VisionTransformer:
        return VisionTransformer(vision, dtypes=dtypes, attention=chosen)

    parts = load_parts(path, {"backbone": abstract_arrays(create, mesh)})
    return nnx.merge(nnx.graphdef(create()), parts["backbone"]), description


def load_dinotxt(
    path: AddressLike, dtypes: DTypes, mesh: Mesh | None = None
) -> tuple[DinoTxt, ModelDescription]:
    """Loads a complete dino.txt model and the directory's description."""
    description = read_description(path)
    if description.head is None:
        raise UserError(
            f"{path} holds a backbone without head and text transformer; train them (python -m "
            "dinotxt_jax.train) or use dt.load_backbone."
        )
    config = description.dinotxt
    chosen = _attention(dtypes, *config.head_dims)

    def create() -> DinoTxt:
        return DinoTxt(config, dtypes=dtypes, attention=chosen)

    # A head without blocks has no arrays; then the directory must not hold any either.
    parts = load_parts(path, {"head": {}, **abstract_arrays(create, mesh)})
    return nnx.merge(nnx.graphdef(create()), {k: v for k, v in parts.items() if v}), description


def _attention(dtypes: DTypes, *head_dims: int) -> str:
    """Chooses the best attention implementation for a loaded model on this process's devices."""
    return attention.choose("auto", jax.default_backend(), (dtypes.compute,), head_dims)
