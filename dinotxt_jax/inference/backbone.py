"""A frozen backbone, ready to run."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
from etils import epath
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
from dinotxt_jax.storage.model_directory import ModelDescription


class Backbone:
    """A frozen VisionTransformer: callable, compiled once per image shape.

    Attributes:
        config: architecture.
        description: what the model directory's `model.json` says (preprocessing, fingerprint).
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
        """Memory of the arrays."""
        return sum(array.nbytes for array in jax.tree.leaves(self._arrays))

    def __call__(self, images: Float[Array, "b h w 3"]) -> VisionOutput:
        """Class [b d], register [b r d] and patch tokens [b n d] after the final LayerNorm.

        Args:
            images: RGB, normalised with `description.preprocessing`.
        """
        return self._run("__call__", checked_images(images))

    def intermediate_layers(
        self,
        images: Float[Array, "b h w 3"],
        layers: int | Sequence[int] = 1,
        *,
        normalize: bool = True,
        as_grid: bool = False,
    ) -> list[VisionOutput]:
        """Tokens after some blocks, as the official `get_intermediate_layers` gives them.

        Args:
            images: RGB, normalised with `description.preprocessing`.
            layers: the last so many blocks, or their numbers from 0 (negative ones count from the
                end).
            normalize: apply the final LayerNorm to them.
            as_grid: patch tokens as [b gh gw d] instead of [b n d].

        Returns:
            One `VisionOutput` a layer, in the order asked for.

        Raises:
            UserError: a block that does not exist, or one twice.
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


def load_backbone(path: epath.PathLike, dtype: str = "float32", products: str = "none") -> Backbone:
    """The backbone of a model directory.

    Args:
        path: a directory made by `python -m weights_convert` or by training.
        dtype: of arrays and matrix products; "float32" or "bfloat16".
        products: "int8" or "float8_e4m3fn" stores and multiplies the kernels of blocks so
            (`models.quantization`); "none" leaves them in `dtype`.

    Raises:
        UserError: not a model directory, or an unknown dtype.
    """
    check_choice("products", products, PRODUCTS)
    check_choice("dtype", dtype, DTYPE_NAMES)
    dtypes = DTypes(dtype, dtype, products=products)
    module, description = load_vision_transformer(path, dtypes)
    return Backbone(module, description)
