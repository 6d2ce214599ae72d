"""Pictures of what a run learned and a model found."""

from dinotxt_jax.visualize.curves import training_curves
from dinotxt_jax.visualize.sheets import retrieval_sheet

__all__ = ["retrieval_sheet", "training_curves"]
