"""The trained parts of dino.txt on DINOv3: `..._vision_head_and_text_encoder_*.pth`, one file.

Axes and rows as in `layouts.dinotxt_v2`. Names read off `dinov3/hub/dinotxt.py` and
`dinov3/eval/text/` of facebookresearch/dinov3. The official code loads the file non-strictly: what
it may hold of the backbone is the backbone file's business.
"""

from weights_convert.layouts.dinotxt_v2 import HEAD_BLOCK, HEAD_NORM, TEXT_RULES
from weights_convert.layouts.rules import Layout, Rule, under

DINOTXT_V3 = Layout(
    name="dinotxt_v3",
    title="dino.txt vision head and text encoder on DINOv3",
    rules=(
        Rule("logit_scale", "logit_scale", "1 -> "),
        *under(
            "visual_model.head.",
            "head/",
            (*under("blocks.{layer}.", "blocks/", HEAD_BLOCK), *HEAD_NORM),
        ),
        *under("text_model.", "text/", TEXT_RULES),
    ),
    ignored={"visual_model.backbone.": "the backbone, which has a file of its own"},
    default_export=lambda vision: vision.positions == "rope",
)
