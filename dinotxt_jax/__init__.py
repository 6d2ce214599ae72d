"""dino.txt in JAX: a frozen DINOv2 backbone that understands free text, per image and per patch."""

from dinotxt_jax.errors import UserError
from dinotxt_jax.inference import load, load_backbone

__all__ = ["UserError", "load", "load_backbone"]
