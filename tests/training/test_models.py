"""The model that a run builds on a mesh."""

from __future__ import annotations

import meshes
import pytest

from dinotxt_jax.training.models import warn_of_whole_heads


@pytest.mark.parametrize(("name", "warned"), [("2x2x2", False), ("1x1x8", True)])
def test_heads_that_the_tensor_axis_does_not_split_are_named(
    name: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """All model parts have two heads."""
    warn_of_whole_heads(meshes.trainer("1").model, meshes.mesh(name))
    message = "config.mesh.tensor=8 does not divide the attention heads (2 of the backbone, 2 of"
    assert (message in caplog.text) == warned
    assert bool(caplog.records) == warned
