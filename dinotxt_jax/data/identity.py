"""The identity of training data: a run continues only on the same examples in the same order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.pipeline import in_threads

# Larger data is sampled, because some sources read a whole record, with the image, for its key.
_MOST = 4096


def data_identity(source: Source, threads: int) -> dict[str, Any]:
    """Returns the number of examples, and a hash over keys and captions in their order.

    Above 4096 examples, the hash covers this many, evenly spaced. Inserted, removed or shuffled
    examples change nearly all of these; a change of a few examples can be missed.
    """
    count = len(source)
    rows = [number * count // min(count, _MOST) for number in range(min(count, _MOST))]

    def described(index: int) -> list[str]:
        try:
            return [source.key(index), *source.captions(index)]
        except BadImageError:  # a damaged record, whose key and captions are lost
            return []

    digest = hashlib.sha256()
    for texts in in_threads(rows, described, threads, 64):
        digest.update(json.dumps(texts).encode())
    return {"examples": count, "order": digest.hexdigest()}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns how two identities differ, for a sentence; empty if they are equal."""
    if before["examples"] != now["examples"]:
        return f"{before['examples']} examples there, {now['examples']} here"
    if before["order"] != now["order"]:
        return f"{now['examples']} examples, but in another order or with other keys or captions"
    return ""
