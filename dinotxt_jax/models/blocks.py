"""The transformer block and the layer scan that every model here is built from.

Shapes: b batch, n tokens, d width of the residual stream, h heads, k head width, f hidden
width of the MLP, l layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dinotxt_jax.config.architecture import BlockConfig
from dinotxt_jax.config.training import REMAT_POLICIES
from dinotxt_jax.models.attention import attention
from dinotxt_jax.models.drop_path import DropPath, add_branch, for_part
from dinotxt_jax.models.initialization import Initializer, Normal
from dinotxt_jax.models.layers import Dense, DTypes, LayerNorm, LayerScale
from dinotxt_jax.models.rope import Rotation, rotate
from dinotxt_jax.sharding import constrain


def initializers(config: BlockConfig) -> tuple[Initializer, Initializer, Initializer]:
    """Returns the initialisers for the qkv projection, for fc1/gate/up, and for output projections.

    The output projections are attention out and fc2/down, which write to the residual stream.
    "clip" is the text transformer's rule, with the standard deviations dim^-0.5 for qkv,
    (2 dim)^-0.5 for fc1/gate/up, and dim^-0.5 (2 num_layers)^-0.5 for output projections.
    """
    if config.initialization == "clip":
        width = config.dim**-0.5
        out = width * (2 * config.num_layers) ** -0.5
        return Normal(width), Normal((2 * config.dim) ** -0.5), Normal(out)
    small = Normal(0.02)
    return small, small, small


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns an activation function by name (`config.architecture.ACTIVATIONS`)."""
    functions: dict[str, Callable[[jax.Array], jax.Array]] = {
        "gelu": functools.partial(jax.nn.gelu, approximate=False),
        "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "relu": jax.nn.relu,
    }
    return functions[name]


MIXINGS = ("plain", "value", "csa", "kk")
"""Ways in which the last block may mix tokens, for dense features without training.

    plain  the block as it was trained.
    value  each token keeps its own value; residual and MLP stay (MaskCLIP, arXiv 2112.01071).
    csa    weights softmax(q q') + softmax(k k'); residual and MLP stay (SCLIP, arXiv 2312.01597).
    kk     weights softmax(k k'), without residual and MLP (ClearCLIP, arXiv 2407.12442).
"""


class Attention(nnx.Module):
    """Multi-head self-attention with one packed query/key/value projection."""

    def __init__(self, config: BlockConfig, *, dtypes: DTypes):
        dim, heads, width = config.dim, config.num_heads, config.head_dim
        into, _, out = initializers(config)
        self.causal = config.causal
        self.implementation = config.attention
        self.softmax_dtype = dtypes.normalization
        self.qkv = Dense(
            (dim,),
            (3, heads, width),
            ("embed", "qkv", "heads", "head_dim"),
            use_bias=config.qkv_bias,
            use_bias_mask=config.qkv_bias_mask,
            initializer=into,
            dtypes=dtypes,
        )
        self.out = Dense(
            (heads, width),
            (dim,),
            ("heads", "head_dim", "embed"),
            use_bias=True,
            initializer=out,
            dtypes=dtypes,
        )

    def __call__(
        self,
        x: Float[Array, "b n d"],
        rotation: Rotation | None = None,
        segment_ids: Int[Array, "b n"] | None = None,
        mixing: str = "plain",
    ) -> Float[Array, "b n d"]:
        query, key, value = jnp.moveaxis(self.qkv(x), -3, 0)  # [b n 3 h k] -> 3 x [b n h k]
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        mix = functools.partial(
            attention,
            value=value,
            causal=self.causal,
            softmax_dtype=self.softmax_dtype,
            segment_ids=segment_ids,
            implementation=self.implementation,
        )
        if mixing == "value":
            return self.out(value)
        if mixing == "csa":
            return self.out(mix(query, query) + mix(key, key))
        return self.out(mix(key if mixing == "kk" else query, key))


class Mlp(nnx.Module):
    """Computes fc2(activation(fc1(x)))."""

    def __init__(self, config: BlockConfig, *, dtypes: DTypes):
        _, into, out = initializers(config)
        dim, hidden = config.dim, config.mlp_hidden_dim
        self.activation = config.activation
        common: dict[str, Any] = dict(use_bias=True, dtypes=dtypes)
        self.fc1 = Dense((dim,), (hidden,), ("embed", "mlp"), initializer=into, **common)
        self.fc2 = Dense((hidden,), (dim,), ("mlp", "embed"), initializer=out, **common)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.fc2(activation(self.activation)(self.fc1(x)))


class SwiGlu(nnx.Module):
    """Computes down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: BlockConfig, *, dtypes: DTypes):
        _, into, out = initializers(config)
        dim, hidden = config.dim, config.mlp_hidden_dim
        common: dict[str, Any] = dict(use_bias=True, dtypes=dtypes)
        self.gate = Dense((dim,), (hidden,), ("embed", "mlp"), initializer=into, **common)
        self.up = Dense((dim,), (hidden,), ("embed", "mlp"), initializer=into, **common)
        self.down = Dense((hidden,), (dim,), ("mlp", "embed"), initializer=out, **common)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """A pre-norm block: x + attention(norm1(x)), then x + mlp(norm2(x)).

    Each branch has optional LayerScale and drop path.
    """

    def __init__(self, config: BlockConfig, *, dtypes: DTypes):
        self.drop_path = config.drop_path
        common: dict[str, Any] = dict(dtypes=dtypes)
        mlp = {"mlp": Mlp, "swiglu": SwiGlu}[config.mlp]
        self.norm1 = LayerNorm(config.dim, config.layer_norm_epsilon, **common)
        self.attention = Attention(config, **common)
        self.norm2 = LayerNorm(config.dim, config.layer_norm_epsilon, **common)
        self.mlp = mlp(config, **common)
        scale = config.layer_scale
        self.layer_scale1 = None if scale is None else LayerScale(config.dim, scale, **common)
        self.layer_scale2 = None if scale is None else LayerScale(config.dim, scale, **common)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        drop: DropPath | None = None,
        rotation: Rotation | None = None,
        segment_ids: Int[Array, "b n"] | None = None,
        mixing: str = "plain",
    ) -> Float[Array, "b n d"]:
        """Returns the tokens after the block; `mixing` is one of `MIXINGS`."""
        if segment_ids is not None and drop is not None and self.drop_path:
            raise ValueError("drop path leaves out whole rows, and packed rows hold several texts")

        def attend(rows: jax.Array) -> jax.Array:
            y = self.attention(self.norm1(rows), rotation, segment_ids, mixing)
            return y if self.layer_scale1 is None else self.layer_scale1(y)

        def transform(rows: jax.Array) -> jax.Array:
            y = self.mlp(self.norm2(rows))
            return y if self.layer_scale2 is None else self.layer_scale2(y)

        if mixing == "kk":
            return attend(x)
        for number, branch in enumerate((attend, transform)):
            x = add_branch(x, branch, self.drop_path, for_part(drop, number))
            x = constrain(x, "batch", "tokens", None)
        return x


ModuleT = TypeVar("ModuleT", bound=nnx.Module)


def stack(module: ModuleT, num_layers: int) -> ModuleT:
    """Adds a leading "layers" dimension to every array declaration in the module, in place.

    The returned module declares the arrays for `num_layers` layers; `apply_stack` runs it.
    """
    for _, variable in nnx.iter_graph(module):
        if isinstance(variable, nnx.Variable):
            shape = (num_layers, *variable.shape)
            variable.set_value(jax.ShapeDtypeStruct(shape, variable.dtype))
            axes = ("layers", *variable.get_metadata("logical_axes"))
            variable.set_metadata("logical_axes", axes)
    return module


def apply_stack(
    blocks: Block,
    x: Float[Array, "b n d"],
    *,
    drop: DropPath | None = None,
    remat: str = "none",
    rotation: Rotation | None = None,
    segment_ids: Int[Array, "b n"] | None = None,
    keep: Sequence[int] = (),
    last_mixing: str = "plain",
) -> tuple[Float[Array, "b n d"], Float[Array, "l b n d"]]:
    """Runs stacked blocks in sequence with `jax.lax.scan`.

    Args:
        blocks: a module returned by `stack`.
        x: tokens.
        drop: randomness for drop path; None disables drop path.
        remat: recomputation in the backward pass: "none", "full" (everything), "dots" (everything
            except matrix products).
        rotation: rotary positions of the tokens, the same in every block.
        segment_ids: tokens attend only to tokens with the same ID in the same row (`attention`).
        keep: indices of the blocks, from 0, whose outputs are also returned; only these outputs
            use memory.
        last_mixing: how the last block mixes tokens (`MIXINGS`); with another way than "plain",
            `keep` must be empty.

    Returns:
        The output of the last block, and the outputs of the blocks in `keep`, in that order.
    """
    graphdef, state = nnx.split(blocks)
    arrays = nnx.to_pure_dict(state)
    num_layers = jax.tree.leaves(arrays)[0].shape[0]
    if last_mixing != "plain":
        last = nnx.merge(graphdef, jax.tree.map(lambda array: array[-1], arrays))
        if num_layers > 1:
            first = nnx.merge(graphdef, jax.tree.map(lambda array: array[:-1], arrays))
            x, _ = apply_stack(first, x, rotation=rotation, segment_ids=segment_ids)
        return last(x, None, rotation, segment_ids, last_mixing), jnp.zeros((0, *x.shape), x.dtype)
    # The scan carries one buffer of the requested outputs, [slots b n d], because stacked scan
    # results would store every layer. slots[i] is the slot for block i; unrequested layers write to
    # a scratch slot at the end, so that all blocks run the same program.
    slots = np.full(num_layers, len(keep))
    slots[list(keep)] = np.arange(len(keep))

    def body(carry: Any, layer: Any) -> tuple[Any, None]:
        x, layer_outputs = carry  # [b n d], [slots b n d]
        block_arrays, number, slot = layer
        # The scan slices off the "layers" dimension: these are the arrays of one ordinary block.
        block = nnx.merge(graphdef, block_arrays)
        x = block(x, for_part(drop, number), rotation, segment_ids)
        if keep:
            layer_outputs = jax.lax.dynamic_update_index_in_dim(layer_outputs, x, slot, axis=0)
        return (x, layer_outputs), None

    if remat == "full":
        body = jax.checkpoint(body)
    elif remat == "dots":
        body = jax.checkpoint(body, policy=jax.checkpoint_policies.dots_saveable)
    elif remat != "none":
        raise ValueError(f"remat={remat!r} is not one of {', '.join(REMAT_POLICIES)}")
    # The output buffer with its scratch slot; empty if no layer is requested.
    layer_outputs = jnp.zeros((len(keep) + 1 if keep else 0, *x.shape), x.dtype)
    x = constrain(x, "batch", "tokens", None)
    (x, layer_outputs), _ = jax.lax.scan(
        body, (x, layer_outputs), (arrays, np.arange(num_layers), slots)
    )
    return x, layer_outputs[: len(keep)]
