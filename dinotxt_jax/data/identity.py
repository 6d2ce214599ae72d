"""What identifies training data: a run may continue only on the same examples in the same order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dinotxt_jax.data.examples import Source

# Larger data is sampled, evenly spaced, so that a start takes seconds.
_MOST = 65_536


def data_identity(source: Source) -> dict[str, Any]:
    """Returns the number of examples, and a hash over keys and captions in their order.

    Above 65,536 examples, the hash covers this many, evenly spaced: examples that were inserted,
    removed or shuffled move most of these; a change of single captions can be missed.
    """
    count = len(source)
    digest = hashlib.sha256()
    for number in range(min(count, _MOST)):
        index = number * count // min(count, _MOST)
        digest.update(json.dumps([source.key(index), *source.captions(index)]).encode())
    return {"examples": count, "order": digest.hexdigest()}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns how two identities differ, for a sentence; empty if they are equal."""
    if before["examples"] != now["examples"]:
        return f"{before['examples']} examples there, {now['examples']} here"
    if before["order"] != now["order"]:
        return f"{now['examples']} examples, but in another order or with other keys or captions"
    return ""
