"""The run-time shape checks are on, and detect shapes or dtypes excluded by an annotation."""

from __future__ import annotations

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from shape_checks import unchecked

from dinotxt_jax.losses import gram_losses
from dinotxt_jax.tokenizers import trimmed_length


def test_a_wrong_shape_is_an_error() -> None:
    tokens = jnp.zeros((2, 5, 4))
    with pytest.raises(jaxtyping.TypeCheckError, match="backbone_patch_tokens"):
        gram_losses(tokens, jnp.zeros((2, 6, 4)))


def test_a_wrong_dtype_is_an_error() -> None:
    tokens = jnp.zeros((2, 5, 4), "int32")
    with pytest.raises(jaxtyping.TypeCheckError, match="patch_tokens"):
        gram_losses(tokens, tokens)


def test_other_types_are_left_to_mypy() -> None:
    assert trimmed_length(np.int64(3), 4, 8) == 4


def test_a_test_may_pass_a_wrong_dtype_on_purpose() -> None:
    with unchecked():
        tokens = jnp.ones((2, 5, 4), "int32")
        np.testing.assert_array_equal(gram_losses(tokens, tokens), 0)
