"""Finite checks on the device: a step with a non-finite loss or gradient changes no parameters.

The check needs no transfer to the host: the compiled step decides whether to apply the update. The
training loop reads the record together with the metrics, before saving and before evaluating
(`training.divergence`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from dinotxt_jax import sharding
from dinotxt_jax.runtime import processes


class Health(NamedTuple):
    """A record of non-finite steps, replicated on all devices.

    Attributes:
        finite: whether the last step was finite.
        nonfinite_steps: number of steps without an update so far.
        in_a_row: number of consecutive non-finite steps, up to the last step.
        failed_step: the step at which the run failed; no later step updates anything (0: none).
        last_loss: loss at the last finite step (nan: none yet).
        failed_loss, failed_norm: loss and gradient norm at the last non-finite step.
    """

    finite: Bool[Array, ""]
    nonfinite_steps: Int[Array, ""]
    in_a_row: Int[Array, ""]
    failed_step: Int[Array, ""]
    last_loss: Float[Array, ""]
    failed_loss: Float[Array, ""]
    failed_norm: Float[Array, ""]

    @classmethod
    def abstract(cls, mesh: Mesh) -> Self:
        """Returns shapes, dtypes and shardings."""
        replicated = sharding.replicated(mesh)
        dtypes = ("bool", "int32", "int32", "int32", "float32", "float32", "float32")
        structs: Any = [jax.ShapeDtypeStruct((), dtype, sharding=replicated) for dtype in dtypes]
        return cls(*structs)

    @classmethod
    def initial(cls, mesh: Mesh, nonfinite_steps: int = 0) -> Self:
        """Returns the record for a new run, or for a resumed run with `nonfinite_steps`."""
        values = (True, nonfinite_steps, 0, 0, np.nan, np.nan, np.nan)
        replicated = sharding.replicated(mesh)
        return cls(
            *(
                processes.placed(np.asarray(value, struct.dtype), replicated)
                for value, struct in zip(values, cls.abstract(mesh), strict=True)
            )
        )

    def after(
        self, step: Int[Array, ""], loss: Float[Array, ""], grad_norm: Float[Array, ""], limit: int
    ) -> Health:
        """Returns the record after a step.

        Args:
            step: the step number, from 1.
            loss, grad_norm: the step's loss and gradient norm.
            limit: number of consecutive non-finite steps at which the run fails.
        """
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        running = self.failed_step == 0
        in_a_row = jnp.where(finite, 0, self.in_a_row + 1)
        noted = running & ~finite  # steps after the failure must not overwrite the record
        return Health(
            finite=running & finite,
            nonfinite_steps=self.nonfinite_steps + noted,
            in_a_row=in_a_row,
            failed_step=jnp.where(running & (in_a_row >= limit), step, self.failed_step),
            last_loss=jnp.where(running & finite, loss.astype("float32"), self.last_loss),
            failed_loss=jnp.where(noted, loss.astype("float32"), self.failed_loss),
            failed_norm=jnp.where(noted, grad_norm.astype("float32"), self.failed_norm),
        )


def applied(health: Health, updated: Any, before: Any) -> Any:
    """Returns `updated` after a finite step, otherwise `before` (trees with equal shapes)."""
    return jax.tree.map(lambda new, old: jnp.where(health.finite, new, old), updated, before)
