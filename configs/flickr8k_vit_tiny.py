"""ViT-Ti/16 and Flickr8k on one workstation: head and text transformer from scratch in minutes.

Hardware and time, results and the runs that they are compared with: docs/flickr8k.md.

Data: Flickr8k as an index `captions.jsonl` with lines {"image", "split", "captions"} beside the
photos; weights: timm's vit_tiny_patch16_224.augreg_in21k_ft_in1k, converted.

    python -m weights_convert vit_tiny_patch16_224.safetensors --output=models/vit_tiny
    python -m dinotxt_jax.precompute --config=configs/flickr8k_vit_tiny.py
    python -m dinotxt_jax.train --config=configs/flickr8k_vit_tiny.py --workdir=runs/flickr8k
"""

from dinotxt_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    PrecisionConfig,
    TaskConfig,
    TextTrainingConfig,
    TokenizerConfig,
    to_config_dict,
)


def get_config():
    photos = {
        "source": "jsonl",
        "path": "data/flickr8k/captions.jsonl",
        "image_size": 224,
        "augmentation": "squash",
        "threads": 2,
    }
    test = TaskConfig(kind="retrieval", data=DataConfig(split="test", **photos))
    return to_config_dict(
        Config(
            steps=300,
            batch_size=256,
            backbone="models/vit_tiny",
            features="runs/flickr8k_features",
            data=DataConfig(split="train", **photos),
            tokenizer=TokenizerConfig(kind="clip", context_length=40),
            text=TextTrainingConfig(width=256, depth=6, num_heads=4, trim=4),
            optimizer=OptimizerConfig(learning_rate=7e-4, warmup_steps=30),
            precision=PrecisionConfig(compute="bfloat16", frozen="float32"),
            checkpoint=CheckpointConfig(every=100, keep=2),
            evaluation=EvaluationConfig(tasks={"flickr8k": test}, every=50),
        )
    )
