"""The known layouts of checkpoint files; `matching.recognise` picks the one that fits."""

from weights_convert.layouts.dinotxt_v2 import TEXT_ENCODER, VISION_HEAD
from weights_convert.layouts.dinov2 import DINOV2
from weights_convert.layouts.timm_vit import TIMM_VIT

LAYOUTS = (DINOV2, TIMM_VIT, VISION_HEAD, TEXT_ENCODER)
"""Every layout; of two that fit equally well the first is taken."""
