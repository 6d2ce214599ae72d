"""Plots for training runs and pictures for model outputs.

Only `training_curves` needs matplotlib (the extra `[plots]`); the rest uses Pillow and numpy.
Pictures for segmentations, similarities and tokens are returned as images for the caller to save.
"""

from dinotxt_jax.visualize.components import patch_pca
from dinotxt_jax.visualize.curves import training_curves
from dinotxt_jax.visualize.heat import heat_maps, similarity_map
from dinotxt_jax.visualize.samples import samples_sheet
from dinotxt_jax.visualize.segmentation import (
    segmentation_comparison,
    segmentation_overlay,
    segmentation_sheet,
)
from dinotxt_jax.visualize.sheets import RetrievedCaptions, retrieval_sheet

__all__ = [
    "RetrievedCaptions",
    "heat_maps",
    "patch_pca",
    "retrieval_sheet",
    "samples_sheet",
    "segmentation_comparison",
    "segmentation_overlay",
    "segmentation_sheet",
    "similarity_map",
    "training_curves",
]
