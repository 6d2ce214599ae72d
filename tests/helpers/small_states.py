"""Small training states that any processes and devices can save and restore."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dinotxt_jax import sharding
from dinotxt_jax.training.health import Health
from dinotxt_jax.training.step import TrainState


def state(step: int) -> TrainState:
    """Returns a state over all devices; noise does not compress, so that file bytes are values."""
    mesh = sharding.make_mesh()

    def placed(values: np.ndarray, place: Any) -> jax.Array:
        return jax.make_array_from_callback(values.shape, place, lambda at: values[at])

    whole = sharding.replicated(mesh)
    noise = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
    rows = placed(noise, sharding.batch_sharding(mesh))
    trainable = {
        "rows": rows,
        "scale": placed(np.float32([step]), whole),
        "half": placed(noise.astype("bfloat16"), whole),
    }
    counter = placed(np.asarray(step, np.int32), whole)
    return TrainState(counter, trainable, {"moment": rows}, Health.initial(mesh))


def abstract() -> TrainState:
    """Returns shapes, dtypes and shardings of these states."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0)
    )
