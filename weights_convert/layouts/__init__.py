"""The known layouts for checkpoint files; `matching.recognise` selects the best match."""

from weights_convert.layouts.big_vision import (
    BIG_VISION,
    BIG_VISION_NAFLEX,
    BIG_VISION_SCANNED,
)
from weights_convert.layouts.clip import CLIP, CLIP_CUSTOM_TEXT, OPEN_CLIP_SIGLIP
from weights_convert.layouts.dinotxt_v2 import TEXT_ENCODER, VISION_HEAD
from weights_convert.layouts.dinotxt_v3 import DINOTXT_V3
from weights_convert.layouts.dinotxt_whole import DINOTXT_V2_WHOLE, DINOTXT_V3_WHOLE
from weights_convert.layouts.dinov2 import DINOV2, DINOV2_REG
from weights_convert.layouts.dinov3 import DINOV3
from weights_convert.layouts.hf_dual import HF_CLIP, HF_SIGLIP, HF_SIGLIP2
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
from weights_convert.layouts.tips import (
    HF_TIPSV2,
    TIPS_SCENIC_TEXT,
    TIPS_SCENIC_VISION,
    TIPS_TEXT,
    TIPS_VISION,
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
    CLIP,
    CLIP_CUSTOM_TEXT,
    OPEN_CLIP_SIGLIP,
    HF_CLIP,
    HF_SIGLIP,
    HF_SIGLIP2,
    BIG_VISION,
    BIG_VISION_SCANNED,
    BIG_VISION_NAFLEX,
    TIPS_VISION,
    TIPS_TEXT,
    TIPS_SCENIC_VISION,
    TIPS_SCENIC_TEXT,
    HF_TIPSV2,
)

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ALL}
"""Every layout by name; if two match equally well, the first is taken."""
