"""Builds the `repr` text for a loaded model: size, tokenizer, preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from dinotxt_jax.storage.model_directory import ModelDescription

_PARTS = {"backbone": "backbone", "head": "vision head", "text": "text transformer"}


def summary(title: str, description: ModelDescription, arrays: Mapping[str, Any]) -> str:
    """Returns several lines that describe a model.

    Args:
        title: the model's class name.
        description: the content of `model.json`.
        arrays: the arrays of each part: "backbone", and "head" and "text" if present.
    """
    lines = [f"{title} ({_size(arrays)})"]
    for part, name in _PARTS.items():
        if part in arrays:
            lines.append(f"  {name}: {_architecture(part, description)} ({_size(arrays[part])})")
    if "text" in arrays:
        lines.append(f"  tokenizer: {_tokenizer(description)}")
    images = description.preprocessing
    mean, std = (", ".join(f"{value:g}" for value in row) for row in (images.mean, images.std))
    lines.append(f"  images: {images.described}, mean ({mean}), std ({std})")
    return "\n".join(lines)


def _size(arrays: Any) -> str:
    """Returns the parameter count, dtypes and memory as text."""
    leaves = jax.tree.leaves(arrays)
    count = sum(leaf.size for leaf in leaves)
    dtypes = " and ".join(sorted({str(leaf.dtype) for leaf in leaves}))
    megabytes = sum(leaf.nbytes for leaf in leaves) / 1e6
    return f"{count / 1e6:.4g} M parameters, {dtypes}, {megabytes:.4g} MB"


def _architecture(part: str, description: ModelDescription) -> str:
    if part == "backbone":
        vision = description.vision
        preset = f"{description.preset}, " if description.preset else ""
        return (
            f"{preset}patch {vision.patch_size}, width {vision.dim}, {vision.depth} blocks, "
            f"{vision.num_heads} heads, {vision.num_registers} registers"
        )
    config = description.dinotxt
    if part == "head":
        return f"{config.head.num_blocks} blocks, pooling {config.head.pooling}"
    text = config.text
    return (
        f"width {text.width}, {text.depth} blocks, {text.num_heads} heads, "
        f"features of {text.embed_dim} dimensions"
    )


def _tokenizer(description: ModelDescription) -> str:
    if description.tokenizer is None:
        return "none (encode_text takes token ids)"
    spec = description.tokenizer
    return (
        f"{spec['kind']}, {spec['vocabulary_size']} token ids, {spec['context_length']} tokens "
        "for each text"
    )
