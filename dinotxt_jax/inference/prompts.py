"""Computes class text features: every class name in every template, averaged.

Each prompt feature is L2-normalised, then averaged over the templates, then normalised again (as
in CLIP and the official dino.txt). Features are cached on disk by content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dinotxt_jax.data.texts import BACKGROUND, filled
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference.dense import DenseTexts
from dinotxt_jax.inference.encoder import Encoder
from dinotxt_jax.models.dinotxt import normalized
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.progress import watched
from dinotxt_jax.storage.downloads import cache_folder
from dinotxt_jax.storage.files import new_file

_PROMPTS = 4096  # number of prompts encoded before averaging


def class_features(
    model: Encoder,
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
    *,
    patch_features: bool = False,
) -> Float[np.ndarray, "c D"]:
    """Returns one L2-normalised feature per class.

    Args:
        model: the model.
        class_names: the classes; equal names give equal features.
        templates: prompts with `{}` for the class name.
        batch_size: number of prompts encoded at once.
        patch_features: returns only the patch features [c d], the second half (for models with a
            single part, such as LiT and CLIP, the whole feature), sliced *before* any
            normalisation.

    Raises:
        UserError: there is no class, or a class name is blank.
    """
    _check(class_names)
    features = _cached_features(model, class_names, templates, batch_size)
    dim = model.description.dinotxt.token_dim
    return features[:, -dim:] if patch_features else features[:, :-dim]


def dense_texts(
    model: Encoder,
    class_names: Sequence[str],
    templates: Sequence[str],
    background: float | str | Sequence[str] | None = None,
) -> tuple[tuple[str, ...], DenseTexts]:
    """Returns class names and the text features that pixels are compared with.

    Args:
        model: the model.
        class_names: the classes, without the background.
        templates: prompts with `{}` for the class name.
        background: adds the class "background" after the others. A number is the score below which
            a pixel is background; words describe the background. None adds no background class.
    """
    names = tuple(class_names)
    if background is None:
        return names, placed_texts(model, names, templates)
    words: Sequence[str] = ()
    score = -1.0
    if isinstance(background, str):
        words = (background,)
    elif isinstance(background, Sequence):
        words = background
        _check(words)
    else:
        score = float(background)
    texts = placed_texts(model, (*names, BACKGROUND), templates, len(names), score, words)
    return (*names, BACKGROUND), texts


def placed_texts(
    model: Encoder,
    class_names: Sequence[str],
    templates: Sequence[str],
    background: int | None = None,
    score: float = -1.0,
    words: Sequence[str] = (),
) -> DenseTexts:
    """Returns the text features that pixels are compared with.

    Args:
        model: the model.
        class_names: all classes.
        templates: prompts with `{}` for the class name.
        background: index of the background class in `class_names`, if there is one.
        score: a pixel with a lower score is background, and the background name is not used as a
            text (-1: no threshold).
        words: texts used for the background instead of the class name.
    """
    texts = [(name, label) for label, name in enumerate(class_names)]
    if background is not None and (score > -1 or words):
        _check(class_names)
        texts = [(name, label) for name, label in texts if label != background]
        texts += [(word, background) for word in words]
    names, classes = [name for name, _ in texts], [label for _, label in texts]
    features = class_features(model, names, templates, patch_features=True)
    return DenseTexts(features, np.asarray(classes, np.int32), background, score)


def _check(class_names: Sequence[str]) -> None:
    if isinstance(class_names, str):
        raise UserError(
            f"the class names are the text {class_names!r}, expected a list such as ['dog', "
            "'cat']; put the names in a list."
        )
    if not len(class_names):
        raise UserError("the list of class names is empty, expected at least one; add names.")
    for number, name in enumerate(class_names, 1):
        if not isinstance(name, str) or not name.strip():
            raise UserError(
                f"class name {number} of {len(class_names)} is {name!r}, expected a text that is "
                "not blank; correct or remove it."
            )


def _cached_features(
    model: Encoder, class_names: Sequence[str], templates: Sequence[str], batch_size: int
) -> Float[np.ndarray, "c E"]:
    """Returns class features [whole; patches], concatenated; encodes them if not cached."""
    if not model.cache_texts:
        return _encoded(model, class_names, templates, batch_size)
    spec = None if model.description.tokenizer is None else model.tokenizer.spec()
    described = json.dumps([model.text_fingerprint, spec, list(class_names), list(templates)])
    name = hashlib.sha256(described.encode()).hexdigest()
    file = cache_folder() / "text_features" / f"{name}.npy"
    # Each process has a separate cache folder, but encoding needs all processes.
    if processes.gathered([file.is_file()]).all():
        return np.load(file)
    features = _encoded(model, class_names, templates, batch_size)
    with new_file(file) as partial, partial.open("wb") as stream:
        np.save(stream, features)
    return features


def _encoded(
    model: Encoder, class_names: Sequence[str], templates: Sequence[str], batch_size: int
) -> Float[np.ndarray, "c E"]:
    dim, at_once = model.description.dinotxt.token_dim, max(_PROMPTS // len(templates), 1)
    blocks = [class_names[i : i + at_once] for i in range(0, len(class_names), at_once)]
    class_rows = []
    # Show a progress bar only if there are several blocks.
    for names in watched(blocks, "block", "encoding prompts") if len(blocks) > 1 else blocks:
        prompts = [filled(template, name) for name in names for template in templates]
        features = model.embed_texts(prompts, batch_size)
        both = [_averaged(part, len(templates)) for part in (features, features[:, -dim:])]
        class_rows.append(np.concatenate(both, axis=1))
    return np.concatenate(class_rows)


def _averaged(features: Float[np.ndarray, "p D"], templates: int) -> Float[np.ndarray, "c D"]:
    """Normalises features, averages over the templates of each class, and normalises again."""
    # Prompts of the same class are adjacent: [c * templates D] -> [c templates D].
    rows = normalized(jnp.asarray(features)).reshape(-1, templates, features.shape[1])
    return np.asarray(normalized(rows.mean(axis=1)))
