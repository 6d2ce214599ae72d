"""dino.txt in JAX: a frozen DINOv2 backbone that understands free text, per image and per patch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dinotxt_jax.errors import UserError

if TYPE_CHECKING:
    from dinotxt_jax.inference import load, load_backbone

__all__ = ["UserError", "load", "load_backbone"]


def __getattr__(name: str) -> Any:
    """Imports JAX and the models on first use, when `load` or `load_backbone` is accessed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dinotxt_jax import inference

    return getattr(inference, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
