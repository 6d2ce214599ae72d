"""Loads and runs a model: `load` and `load_backbone`; methods are compiled once per shape."""

from dinotxt_jax.inference.backbone import Backbone, load_backbone
from dinotxt_jax.inference.model import Model, load

__all__ = ["Backbone", "Model", "load", "load_backbone"]
