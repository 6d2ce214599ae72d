"""dino.txt on DINOv2 with registers: the released recipe at its full size, for each backbone.

    python -m weights_convert dinov2_vitl14_reg4_pretrain.pth --output=models/dinov2_vitl14_reg
    python -m dinotxt_jax.train --config=configs/dinotxt_dinov2_reg.py:vitl14 --workdir=runs/vitl14

The argument after the colon is the backbone: vits14, vitb14, vitl14 (the default) or vitg14.
Intended for 256 TPU v6e chips (mesh 16 x 16, 32 GB per chip), for which the step was compiled
(`python -m dinotxt_jax.plan`; memory and estimates, also for v5e and v5p, are in docs/planning.md).
**Not run at full size here**: no time or result is promised. The known figures are derived, not
measured:

- ViT-L trains 563 million parameters (text 538, head 25): 6.3 GiB with both AdamW moments in
  float32, 0.39 GiB per chip when sharded 16 ways;
- FLOPs per pair for ViT-L: frozen forward pass 165 G, text forward and backward on 77 tokens 220 G,
  head 41 G; 1.4e21 for the whole run. Captions share rows (`text.pack`, which changes no result),
  so that about a fifth of the 220 G remains if captions are as short as Flickr8k's.

Everything else is a default in `Config`, and the defaults are the released recipe
(docs/recipes.md). A slice with 256 chips has several hosts: start the command on each host
(docs/distributed.md).
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
    """Returns the released recipe for a backbone in `BACKBONES`."""
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
