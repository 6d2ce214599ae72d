"""dino.txt on DINOv3: the released recipe with backbones up to 7 billion parameters.

    python -m weights_convert dinov3_vit7b16_pretrain.pth --dtype=bfloat16 \
        --output=models/dinov3_vit7b16
    python -m dinotxt_jax.train --config=configs/dinotxt_dinov3.py:vit7b16 --workdir=runs/vit7b16

The argument after the colon is the backbone: vitl16 (the default) or vit7b16. Intended for 256 TPU
v6e chips (mesh 16 x 16), for which the step was compiled (docs/planning.md). **Not run at full size
here**: no time or result is promised.

The 7B backbone takes 12.5 GiB in bfloat16, sharded 16 ways by `mesh.fsdp`; each block is gathered
just before it runs. Everything else is as in configs/dinotxt_dinov2_reg.py.
"""

from dinotxt_jax.config import (
    Config,
    DataConfig,
    MeshConfig,
    TextTrainingConfig,
    to_config_dict,
)

BACKBONES = ("vitl16", "vit7b16")


def get_config(backbone="vitl16"):
    """Returns the released recipe for a backbone in `BACKBONES`."""
    if backbone not in BACKBONES:
        raise ValueError(f"backbone {backbone!r} is unknown; choose among {', '.join(BACKBONES)}")
    return to_config_dict(
        Config(
            backbone=f"models/dinov3_{backbone}",
            include_backbone=False,
            remat="full" if backbone == "vit7b16" else "dots",
            data=DataConfig(source="array_record", path="data/pairs/*.array_record"),
            text=TextTrainingConfig(pack=True),
            mesh=MeshConfig(fsdp=16),
            topology="v6e:16x16",
        )
    )
