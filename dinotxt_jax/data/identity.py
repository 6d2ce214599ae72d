"""The identity of training data: a run continues only on the same examples in the same order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.pipeline import in_threads

# Larger data is sampled, because reading a key may mean reading the whole record with the image.
_MAX_SAMPLED = 4096


def data_identity(source: Source, threads: int) -> dict[str, Any]:
    """Returns the number of examples, and a hash over all keys and captions in order.

    Above 4096 examples, the hash covers 4096 evenly spaced examples. Inserting, removing or
    shuffling examples changes nearly all sampled examples; edits to a few examples can be missed.
    """
    count = len(source)
    sampled = min(count, _MAX_SAMPLED)
    rows = [number * count // sampled for number in range(sampled)]

    def described(index: int) -> list[str]:
        try:
            return [source.key(index), *source.captions(index)]
        except BadImageError:  # a damaged record has neither key nor captions
            return []

    digest = hashlib.sha256()
    for texts in in_threads(rows, described, threads, 64):
        digest.update(json.dumps(texts).encode())
    return {"examples": count, "order": digest.hexdigest()}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describes how two identities differ, as a clause for messages; "" if they are equal."""
    if before["examples"] != now["examples"]:
        return f"{before['examples']} examples there, {now['examples']} here"
    if before["order"] != now["order"]:
        return f"{now['examples']} examples, but in another order or with other keys or captions"
    return ""
