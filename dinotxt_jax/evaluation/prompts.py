"""Classes as text features: every class name in every template, averaged.

Each prompt's feature is L2-normalised, then averaged over the templates, then normalised again (as
in CLIP and the official dino.txt). Features are cached on disk by content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dinotxt_jax.data.texts import filled
from dinotxt_jax.downloads import cache_folder
from dinotxt_jax.inference import Model


def class_features(
    model: Model,
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
    *,
    of_patches: bool = False,
) -> Float[np.ndarray, "c D"]:
    """One L2-normalised feature a class.

    Args:
        model: the model.
        class_names: the classes; equal names give equal features.
        templates: with `{}` for the class name.
        batch_size: prompts encoded at once.
        of_patches: only the second half of the features, which speaks of patches [c D/2], taken
            *before* anything is normalised.
    """
    prompts = [filled(template, name) for name in class_names for template in templates]
    features = _cached_features(model, prompts, batch_size)
    if of_patches:
        features = features[:, features.shape[1] // 2 :]
    features = _normalized(features).reshape(len(class_names), len(templates), -1)
    return _normalized(features.mean(axis=1))


def _cached_features(
    model: Model, prompts: Sequence[str], batch_size: int
) -> Float[np.ndarray, "n D"]:
    """Text features of prompts, from the cache folder if they were encoded before."""
    spec = None if model.description.tokenizer is None else model.tokenizer.spec()
    described = json.dumps([model.text_fingerprint, spec, list(prompts)])
    name = hashlib.sha256(described.encode()).hexdigest()
    file = cache_folder() / "text_features" / f"{name}.npy"
    if file.is_file():
        return np.load(file)
    features = model.embed_texts(prompts, batch_size)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{name}.{id(features)}.partial")
    with partial.open("wb") as stream:
        np.save(stream, features)
    partial.replace(file)
    return features


def _normalized(features: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.maximum(norm, 1e-12)
