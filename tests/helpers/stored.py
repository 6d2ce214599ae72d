"""Reads model directories back as stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from dinotxt_jax.storage.arrays import load_arrays, stored_shapes


def stored_tree(model: Path) -> dict[str, Any]:
    """Returns every part in a model directory as stored."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        stored_shapes(model / "arrays"),
    )
    return load_arrays(model / "arrays", abstract)
