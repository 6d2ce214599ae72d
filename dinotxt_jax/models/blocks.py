"""One block, one way to stack it: what every transformer here is made of.

Shapes: b batch, n tokens, d width of the residual stream, h heads, k width of a head, f hidden
width of the MLP, l layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from dinotxt_jax.config.architecture import BlockConfig
from dinotxt_jax.config.training import REMAT_POLICIES
from dinotxt_jax.models.attention import attention
from dinotxt_jax.models.layers import Dense, DTypes, Initializer, LayerNorm, LayerScale, normal
from dinotxt_jax.models.rope import Rotation, rotate
from dinotxt_jax.sharding import constrain

# Random keys, one for each group of examples (`drop_path_keys`).
Keys = Shaped[jax.Array, " g"]


def initializers(config: BlockConfig) -> tuple[Initializer, Initializer, Initializer]:
    """Initialisers of what reads the stream, of fc1/gate/up, and of what writes back.

    "clip" is the text transformer's rule: attention in dim^-0.5, fc (2 dim)^-0.5, out
    dim^-0.5 (2 num_layers)^-0.5.
    """
    if config.initialization == "clip":
        width = config.dim**-0.5
        out = width * (2 * config.num_layers) ** -0.5
        return normal(width), normal((2 * config.dim) ** -0.5), normal(out)
    small = jax.nn.initializers.truncated_normal(0.02)
    return small, small, small


class Attention(nnx.Module):
    """Multi-head self-attention with one packed query/key/value projection."""

    def __init__(self, config: BlockConfig, *, dtypes: DTypes, rngs: nnx.Rngs):
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
            rngs=rngs,
        )
        self.out = Dense(
            (heads, width),
            (dim,),
            ("heads", "head_dim", "embed"),
            use_bias=True,
            initializer=out,
            dtypes=dtypes,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "b n d"],
        rotation: Rotation | None = None,
        segment_ids: Int[Array, "b n"] | None = None,
    ) -> Float[Array, "b n d"]:
        query, key, value = jnp.moveaxis(self.qkv(x), -3, 0)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        y = attention(
            query,
            key,
            value,
            causal=self.causal,
            softmax_dtype=self.softmax_dtype,
            segment_ids=segment_ids,
            implementation=self.implementation,
        )
        return self.out(y)


class Mlp(nnx.Module):
    """fc2(gelu(fc1(x))) with the exact (erf) GELU."""

    def __init__(self, config: BlockConfig, *, dtypes: DTypes, rngs: nnx.Rngs):
        _, into, out = initializers(config)
        dim, hidden = config.dim, config.mlp_hidden_dim
        common: dict[str, Any] = dict(use_bias=True, dtypes=dtypes, rngs=rngs)
        self.fc1 = Dense((dim,), (hidden,), ("embed", "mlp"), initializer=into, **common)
        self.fc2 = Dense((hidden,), (dim,), ("mlp", "embed"), initializer=out, **common)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class SwiGlu(nnx.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: BlockConfig, *, dtypes: DTypes, rngs: nnx.Rngs):
        _, into, out = initializers(config)
        dim, hidden = config.dim, config.mlp_hidden_dim
        common: dict[str, Any] = dict(use_bias=True, dtypes=dtypes, rngs=rngs)
        self.gate = Dense((dim,), (hidden,), ("embed", "mlp"), initializer=into, **common)
        self.up = Dense((dim,), (hidden,), ("embed", "mlp"), initializer=into, **common)
        self.down = Dense((hidden,), (dim,), ("mlp", "embed"), initializer=out, **common)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """x + attention(norm1(x)), then + mlp(norm2(x)), each branch with LayerScale and drop path."""

    def __init__(self, config: BlockConfig, *, dtypes: DTypes, rngs: nnx.Rngs):
        self.drop_path = config.drop_path
        common: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs)
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
        keys: Keys | None = None,
        rotation: Rotation | None = None,
        segment_ids: Int[Array, "b n"] | None = None,
    ) -> Float[Array, "b n d"]:
        if segment_ids is not None and keys is not None and self.drop_path:
            raise ValueError("drop path leaves out whole rows, and packed rows hold several texts")

        def attend(rows: jax.Array) -> jax.Array:
            y = self.attention(self.norm1(rows), rotation, segment_ids)
            return y if self.layer_scale1 is None else self.layer_scale1(y)

        def transform(rows: jax.Array) -> jax.Array:
            y = self.mlp(self.norm2(rows))
            return y if self.layer_scale2 is None else self.layer_scale2(y)

        of_branches = (None, None) if keys is None else split_keys(keys, 2)
        for branch, branch_keys in zip((attend, transform), of_branches, strict=True):
            x = add_branch(x, branch, self.drop_path, branch_keys)
            x = constrain(x, "batch", "tokens", None)
        return x


# Drop path picks its examples within groups of this many consecutive examples of the global
# batch: small enough that a device holds whole groups at any real batch size (so nothing crosses
# devices), and fixed, so that the choice does not depend on the number of devices.
DROP_PATH_GROUP = 32


def drop_path_keys(key: jax.Array, batch: int, group: int) -> Keys:
    """A key for each group of `group` consecutive examples of a batch, for `add_branch`.

    A key belongs to its group wherever the group is computed, alone too.
    """
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(batch // group))


def add_branch(
    x: Float[Array, "b n d"],
    branch: Callable[[Float[Array, "c n d"]], Float[Array, "c n d"]],
    drop_path: float,
    keys: Keys | None,
) -> Float[Array, "b n d"]:
    """`x + branch(x)`, with stochastic depth when `keys` are given, one for each group of examples.

    As in the official code the branch is *computed* only for the examples that keep it: of every
    group of g examples, max(int(g (1 - drop_path)), 1) chosen at random, whose branch output is
    multiplied by g / kept.
    """
    if keys is None or drop_path == 0.0:
        return x + branch(x)
    group = x.shape[0] // len(keys)
    kept = max(int(group * (1 - drop_path)), 1)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (group,)))(keys).argsort(-1)[:, :kept]
    chosen = jax.nn.one_hot(drawn, group, dtype=x.dtype)
    return x + put_rows(branch(take_rows(x, chosen)) * (group / kept), chosen)


def split_keys(keys: Keys, count: int) -> Shaped[jax.Array, "count g"]:
    """`count` independent sets of keys."""
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)


# Taking rows and putting them back are products with a 0/1 matrix: exact, and each other's
# transpose for autodiff, so that no backward pass scatters.
def take_rows(x: Float[Array, "b n d"], chosen: Float[Array, "g c s"]) -> Float[Array, "g*c n d"]:
    """The chosen examples of each of the g groups of s that `x` consists of.

    Args:
        x: examples.
        chosen: one-hot: which example of its group each taken one is.
    """
    grouped = x.reshape(*chosen.shape[::2], -1)
    taken = jnp.einsum("gcs,gsx->gcx", chosen, grouped, precision="highest")
    return taken.reshape(-1, *x.shape[1:])


def put_rows(
    taken: Float[Array, "gc n d"], chosen: Float[Array, "g c s"]
) -> Float[Array, "g*s n d"]:
    """The inverse of `take_rows`: each example back in its place, zero where none was taken."""
    grouped = taken.reshape(*chosen.shape[:2], -1)
    back = jnp.einsum("gcs,gcx->gsx", chosen, grouped, precision="highest")
    return back.reshape(-1, *taken.shape[1:])


ModuleT = TypeVar("ModuleT", bound=nnx.Module)


def stack(create: Callable[[nnx.Rngs], ModuleT], num_layers: int, rngs: nnx.Rngs) -> ModuleT:
    """`num_layers` equal modules as one, every array with a leading "layers" dimension."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: create(nnx.Rngs(0))))
    arrays = jax.vmap(lambda key: nnx.to_pure_dict(nnx.state(create(nnx.Rngs(key)))))(
        jax.random.split(rngs.params(), num_layers)
    )
    module = nnx.merge(graphdef, arrays)
    for _, variable in nnx.iter_graph(module):
        if isinstance(variable, nnx.Variable):
            axes = ("layers", *variable.get_metadata("logical_axes"))
            variable.set_metadata("logical_axes", axes)
    return module


def apply_stack(
    blocks: Block,
    x: Float[Array, "b n d"],
    *,
    keys: Keys | None = None,
    remat: str = "none",
    rotation: Rotation | None = None,
    segment_ids: Int[Array, "b n"] | None = None,
    keep: Sequence[int] = (),
) -> tuple[Float[Array, "b n d"], Float[Array, "l b n d"]]:
    """Runs stacked blocks one after the other with `jax.lax.scan`.

    Args:
        blocks: what `stack` returned.
        x: tokens.
        keys: of `drop_path_keys`, randomness for drop path; None evaluates without.
        remat: what the backward pass recomputes: "none", "full" (everything), "dots" (all but
            matrix products).
        rotation: rotary positions of the tokens, the same in every block.
        segment_ids: which tokens of a row see each other (`attention`).
        keep: numbers of blocks, from 0, whose outputs are returned too; only these take memory.

    Returns:
        The last block's output, and those of the blocks `keep`, in that order.
    """
    graphdef, state = nnx.split(blocks)
    arrays = nnx.to_pure_dict(state)
    num_layers = jax.tree.leaves(arrays)[0].shape[0]
    of_layers = None if keys is None else split_keys(keys, num_layers)
    # The scan carries one buffer of all requested outputs, [slots b n d], because its stacked
    # results would hold every layer. slots[i] is where block i writes; unrequested layers write to
    # a scratch slot at the end, so that all blocks run the same program.
    slots = np.full(num_layers, len(keep))
    slots[list(keep)] = np.arange(len(keep))

    def body(carry: Any, layer: Any) -> tuple[Any, None]:
        x, kept = carry  # [b n d], [slots b n d]
        block_arrays, block_keys, slot = layer
        x = nnx.merge(graphdef, block_arrays)(x, block_keys, rotation, segment_ids)
        if keep:
            kept = jax.lax.dynamic_update_index_in_dim(kept, x, slot, axis=0)
        return (x, kept), None

    if remat == "full":
        body = jax.checkpoint(body)
    elif remat == "dots":
        body = jax.checkpoint(body, policy=jax.checkpoint_policies.dots_saveable)
    elif remat != "none":
        raise ValueError(f"remat={remat!r} is not one of {', '.join(REMAT_POLICIES)}")
    # The output buffer with its scratch slot; empty if no layer is requested.
    kept = jnp.zeros((len(keep) + 1 if keep else 0, *x.shape), x.dtype)
    x = constrain(x, "batch", "tokens", None)
    (x, kept), _ = jax.lax.scan(body, (x, kept), (arrays, of_layers, slots))
    return x, kept[: len(keep)]
