"""Layouts of a whole dino.txt in one file: the state dict of the official `DinoTxt` module.

Training checkpoints of the official code have this layout, and PyTorch loads it with a single
`load_state_dict`. Rows and axes are those of the parts.
"""

import dataclasses

from weights_convert.layouts.dinotxt_v2 import TEXT_ENCODER, VISION_HEAD
from weights_convert.layouts.dinotxt_v3 import DINOTXT_V3
from weights_convert.layouts.dinov2 import DINOV2_REG
from weights_convert.layouts.dinov3 import DINOV3
from weights_convert.layouts.rules import Rule, under

DINOTXT_V2_WHOLE = dataclasses.replace(
    DINOV2_REG,
    name="dinotxt_v2_whole",
    title="whole dino.txt on DINOv2 with registers",
    rules=(
        Rule("logit_scale", "logit_scale", "1 -> "),
        *under("visual_model.backbone.", "", DINOV2_REG.rules),
        *under("visual_model.head.", "", VISION_HEAD.rules),
        *under("text_model.", "", TEXT_ENCODER.rules),
    ),
    default_export=lambda vision: False,
)

DINOTXT_V3_WHOLE = dataclasses.replace(
    DINOV3,
    name="dinotxt_v3_whole",
    title="whole dino.txt on DINOv3",
    rules=(*under("visual_model.backbone.", "", DINOV3.rules), *DINOTXT_V3.rules),
    default_export=lambda vision: False,
)
