"""dino.txt in JAX: a frozen DINOv2 backbone that understands free text, per image and per patch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dinotxt_jax.errors import UserError

if TYPE_CHECKING:
    from dinotxt_jax.hub.fetched import load_backbone_named as load_backbone
    from dinotxt_jax.hub.fetched import load_named as load
    from dinotxt_jax.hub.known import list_models

__all__ = ["UserError", "list_models", "load", "load_backbone"]
# Where the functions are: those that load take addresses on a hub as well as directories.
_PLACES = {
    "list_models": ("dinotxt_jax.hub.known", "list_models"),
    "load": ("dinotxt_jax.hub.fetched", "load_named"),
    "load_backbone": ("dinotxt_jax.hub.fetched", "load_backbone_named"),
}


def __getattr__(name: str) -> Any:
    """Imports JAX and the models on first use, when a function is accessed."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _PLACES[name]
    return getattr(importlib.import_module(module), function)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
