"""The plain vision transformer of timm (`vit_tiny_patch16_224` and its kin): no LayerScale.

Axes and names as in `layouts.dinov2`. The classifier has no place in a frozen backbone.
"""

from weights_convert.layouts.dinov2 import ATTENTION_BLOCK, EMBEDDING, MLP, QKV_BIAS
from weights_convert.layouts.rules import Layout, under

TIMM_VIT = Layout(
    name="timm_vit",
    title="plain timm vision transformer",
    rules=(
        *under("", "backbone/", EMBEDDING),
        *under("blocks.{layer}.", "backbone/blocks/", (*ATTENTION_BLOCK, *QKV_BIAS, *MLP)),
    ),
    alternatives=(("mlp",),),
    ignored={"head": "the classifier, which a backbone does not use"},
    # As timm prepares images for its AugReg weights: 224 px, crop_pct 0.9.
    preprocessing={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize": 248, "crop": 224},
)
