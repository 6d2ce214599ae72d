"""Model directories for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from stored import stored_tree

from dinotxt_jax.models.layers import abstract_arrays, initial_arrays
from dinotxt_jax.storage.model_directory import read_description, write_model_directory
from dinotxt_jax.tokenizers import TrainedTokenizer

ModuleT = TypeVar("ModuleT", bound=nnx.Module)


def initialized(module: ModuleT, mesh: Mesh | None = None) -> ModuleT:
    """Initialises the arrays in a module with seed 0."""
    arrays = initial_arrays(module, abstract_arrays(lambda: module, mesh), 0)
    return nnx.merge(nnx.graphdef(module), arrays)


def with_tokenizer(model: Path, folder: Path, captions: Sequence[str]) -> Path:
    """Writes the reference dino.txt for images of 56 pixels, with a tokenizer of captions."""
    tokenizer = TrainedTokenizer.train(list(captions) * 3, 300, context_length=77)
    description = read_description(model)
    assert description.text is not None
    text = dataclasses.replace(description.text, vocabulary_size=300)
    arrays = stored_tree(model)
    table = np.asarray(arrays["text"]["token_embedding"])
    arrays["text"]["token_embedding"] = np.tile(table, (3, 1))[:300]
    # Small images are enough, and quick.
    preprocessing = dataclasses.replace(description.preprocessing, resize=64, crop=56)
    description = dataclasses.replace(
        description, text=text, tokenizer=tokenizer.spec(), preprocessing=preprocessing
    )
    write_model_directory(
        folder, description, jax.device_get(arrays), write_tokenizer=tokenizer.save
    )
    return folder
