"""dino.txt on DINOv2 ViT-B/14 with registers: the released recipe at its full size.

Intended for 256 chips of TPU v6e (mesh 16 x 16, 32 GB a chip). **Not run at full size here**:
no time or result is promised. What is known is derived, not measured:

- 552 million trained parameters (text 537, head 14): 6.2 GiB with both moments of
  AdamW in float32, 0.39 GiB a chip split 16 ways.

All else is a default of `Config`, and those are the released recipe (docs/recipes.md). A slice of
256 chips has several hosts; docs/troubleshooting.md says what that still lacks.

    python -m weights_convert dinov2_vitb14_reg4_pretrain.pth --output=models/dinov2_vitb14_reg
    python -m dinotxt_jax.train --config=configs/dinotxt_vitb14_reg.py --workdir=runs/vitb14
"""

from dinotxt_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    MeshConfig,
    TextTrainingConfig,
    TokenizerConfig,
    to_config_dict,
)


def get_config():
    return to_config_dict(
        Config(
            steps=50_000,
            batch_size=65_536,
            backbone="models/dinov2_vitb14_reg",
            include_backbone=False,
            remat="dots",
            data=DataConfig(source="array_record", path="data/pairs/*.array_record"),
            tokenizer=TokenizerConfig(kind="clip"),
            text=TextTrainingConfig(trim=0),
            mesh=MeshConfig(data=-1, fsdp=16),
            checkpoint=CheckpointConfig(every=1000),
        )
    )
