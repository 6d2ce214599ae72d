"""A frozen backbone, ready to run."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.config.training import DTYPE_NAMES, PRODUCTS
from dinotxt_jax.errors import UserError, check_choice
from dinotxt_jax.inference.loading import load_vision_transformer
from dinotxt_jax.inference.running import checked_images, run_method
from dinotxt_jax.inference.summary import summary
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.models.vit import VisionOutput, VisionTransformer
from dinotxt_jax.storage.addresses import AddressLike
from dinotxt_jax.storage.model_directory import ModelDescription


class Backbone:
    """A frozen VisionTransformer: callable, compiled once per image shape.

    Attributes:
        config: architecture.
        description: content of the model directory's `model.json` (preprocessing, fingerprint).
    """

    def __init__(self, module: VisionTransformer, description: ModelDescription):
        self.config: VisionConfig = module.config
        self.description = description
        graphdef, state = nnx.split(module)
        self._arrays = nnx.to_pure_dict(state)
        self._run = functools.partial(run_method, graphdef, self._arrays)

    def __repr__(self) -> str:
        return summary(type(self).__name__, self.description, {"backbone": self._arrays})

    @property
    def size_in_bytes(self) -> int:
        """Memory that the arrays occupy, in bytes."""
        return sum(array.nbytes for array in jax.tree.leaves(self._arrays))

    def __call__(self, images: Float[Array | np.ndarray, "b h w 3"]) -> VisionOutput:
        """Returns class [b d], register [b r d] and patch [b n d] tokens after the final LayerNorm.

        Args:
            images: RGB, normalised with `description.preprocessing`.
        """
        return self._run("__call__", checked_images(images))

    def intermediate_layers(
        self,
        images: Float[Array | np.ndarray, "b h w 3"],
        layers: int | Sequence[int] = 1,
        *,
        normalize: bool = True,
        as_grid: bool = False,
    ) -> list[VisionOutput]:
        """Returns tokens after selected blocks, like the official `get_intermediate_layers`.

        Args:
            images: RGB, normalised with `description.preprocessing`.
            layers: n for the last n blocks, or a list of block numbers from 0 (negative numbers
                count from the end).
            normalize: apply the final LayerNorm to the tokens.
            as_grid: patch tokens as [b gh gw d] instead of [b n d].

        Returns:
            One `VisionOutput` per layer, in the requested order.

        Raises:
            UserError: a block does not exist, or is listed twice.
        """
        depth = self.config.depth
        numbers = range(depth - layers, depth) if isinstance(layers, int) else layers
        chosen = tuple(n + depth if n < 0 else n for n in numbers)
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(depth)):
            raise UserError(
                f"layers={layers!r} does not name blocks of this backbone, which has {depth}; give "
                f"a number from 1 to {depth}, or different block numbers from 0 to {depth - 1}."
            )
        return self._run(
            "intermediate_layers",
            checked_images(images),
            layers=chosen,
            normalize=normalize,
            as_grid=as_grid,
        )


def load_backbone(path: AddressLike, dtype: str = "float32", products: str = "none") -> Backbone:
    """Loads the backbone of a model directory.

    Args:
        path: a directory made by `python -m weights_convert` or by training.
        dtype: dtype of arrays and matrix products; "float32" or "bfloat16".
        products: "int8" or "float8_e4m3fn" stores and multiplies block kernels in that dtype
            (`models.quantization`); "none" keeps them in `dtype`.

    Raises:
        UserError: the path is not a model directory, or the dtype is unknown.
    """
    check_choice("products", products, PRODUCTS)
    check_choice("dtype", dtype, DTYPE_NAMES)
    dtypes = DTypes(dtype, dtype, products=products)
    module, description = load_vision_transformer(path, dtypes)
    return Backbone(module, description)
