"""The known layouts for checkpoint files; `matching.recognise` selects the best match."""

from weights_convert.layouts.dinotxt_v2 import TEXT_ENCODER, VISION_HEAD
from weights_convert.layouts.dinotxt_v3 import DINOTXT_V3
from weights_convert.layouts.dinotxt_whole import DINOTXT_V2_WHOLE, DINOTXT_V3_WHOLE
from weights_convert.layouts.dinov2 import DINOV2, DINOV2_REG
from weights_convert.layouts.dinov3 import DINOV3
from weights_convert.layouts.huggingface import (
    HF_DINOV2,
    HF_DINOV2_REG,
    HF_DINOV3,
    HF_DINOV3_GATED,
)
from weights_convert.layouts.rules import Layout
from weights_convert.layouts.timm_dinov3 import TIMM_DINOV3, TIMM_DINOV3_GATED
from weights_convert.layouts.timm_vit import (
    TIMM_DINOV2,
    TIMM_DINOV2_REG,
    TIMM_DINOV2_SWIGLU,
    TIMM_DINOV2_SWIGLU_REG,
    TIMM_VIT,
)

_ALL = (
    DINOV2,
    DINOV2_REG,
    DINOV3,
    VISION_HEAD,
    TEXT_ENCODER,
    DINOTXT_V3,
    DINOTXT_V2_WHOLE,
    DINOTXT_V3_WHOLE,
    HF_DINOV2,
    HF_DINOV2_REG,
    HF_DINOV3,
    HF_DINOV3_GATED,
    TIMM_VIT,
    TIMM_DINOV2,
    TIMM_DINOV2_REG,
    TIMM_DINOV2_SWIGLU,
    TIMM_DINOV2_SWIGLU_REG,
    TIMM_DINOV3,
    TIMM_DINOV3_GATED,
)

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ALL}
"""Every layout by name; if two match equally well, the first is taken."""
