"""dino.txt on DINOv2 with registers: the released recipe at its full size, for each backbone.

    python -m weights_convert dinov2_vitl14_reg4_pretrain.pth --output=models/dinov2_vitl14_reg
    python -m dinotxt_jax.train --config=configs/dinotxt_dinov2_reg.py:vitl14 --workdir=runs/vitl14

The argument behind the colon is the backbone: vits14, vitb14, vitl14 (the default) or vitg14.
Intended for 256 chips of TPU v6e (mesh 16 x 16, 32 GB a chip), for which the step was compiled
(`python -m dinotxt_jax.plan`; memory and estimates, also for v5e and v5p, are in docs/planning.md).
**Not run at full size here**: no time or result is promised. What is known is derived, not
measured:

- ViT-L trains 563 million parameters (text 538, head 25): 6.3 GiB with both moments of AdamW in
  float32, 0.39 GiB a chip split 16 ways;
- FLOPs a pair for ViT-L: frozen forward pass 165 G, text forward and backward on 77 tokens 220 G,
  head 41 G; 1.4e21 in all. Captions share rows (`text.pack`, which changes no result), so that of
  the 220 G about a fifth is left where captions are as short as Flickr8k's.

All else is a default of `Config`, and those are the released recipe (docs/recipes.md). A slice of
256 chips has several hosts: start the command on each (docs/distributed.md).
"""

from dinotxt_jax.config import (
    Config,
    DataConfig,
    MeshConfig,
    TextTrainingConfig,
    to_config_dict,
)

BACKBONES = ("vits14", "vitb14", "vitl14", "vitg14")


def get_config(backbone="vitl14"):
    """The released recipe on one of `BACKBONES`."""
    if backbone not in BACKBONES:
        raise ValueError(f"backbone {backbone!r} is unknown; choose among {', '.join(BACKBONES)}")
    return to_config_dict(
        Config(
            backbone=f"models/dinov2_{backbone}_reg",
            include_backbone=False,
            remat="full" if backbone == "vitg14" else "dots",
            data=DataConfig(source="array_record", path="data/pairs/*.array_record"),
            text=TextTrainingConfig(pack=True),
            mesh=MeshConfig(fsdp=16),
            topology="v6e:16x16",
        )
    )
