"""dino.txt on DINOv2 ViT-L/14 with registers: the released recipe at its full size.

Intended for 256 chips of TPU v6e (mesh 16 x 16, 32 GB a chip). **Not run at full size here**:
no time or result is promised. What is known is derived, not measured:

- 563 million trained parameters (text 538, head 25): 6.3 GiB with both moments of
  AdamW in float32, 0.39 GiB a chip split 16 ways.
- FLOPs a pair: frozen forward pass 165 G, text forward and backward on 77 tokens 220 G, head 41 G;
  1.4e21 in all.

All else is a default of `Config`, and those are the released recipe (docs/recipes.md). A slice of
256 chips has several hosts; docs/troubleshooting.md says what that still lacks.

    python -m weights_convert dinov2_vitl14_reg4_pretrain.pth --output=models/dinov2_vitl14_reg
    python -m dinotxt_jax.train --config=configs/dinotxt_vitl14_reg.py --workdir=runs/vitl14
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
            backbone="models/dinov2_vitl14_reg",
            include_backbone=False,
            remat="dots",
            data=DataConfig(source="array_record", path="data/pairs/*.array_record"),
            tokenizer=TokenizerConfig(kind="clip"),
            text=TextTrainingConfig(trim=0),
            mesh=MeshConfig(data=-1, fsdp=16),
            checkpoint=CheckpointConfig(every=1000),
        )
    )
