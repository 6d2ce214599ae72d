"""Layout of dino.txt's trained parts on DINOv3: `..._vision_head_and_text_encoder_*.pth`.

Axes and rows as in `layouts.dinotxt_v2`. Names follow `dinov3/hub/dinotxt.py` and
`dinov3/eval/text/` of facebookresearch/dinov3. The official code loads the file non-strictly, so
backbone arrays in it are ignored: they come from the backbone's file.
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
