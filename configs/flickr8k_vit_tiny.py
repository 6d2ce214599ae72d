"""ViT-Ti/16 and Flickr8k on one workstation: head and text transformer from scratch in minutes.

Hardware, time and result, and the longer runs to compare with: docs/flickr8k.md.

Data: an index `captions.jsonl` with lines {"image", "split", "captions"} next to the photos.
Weights: timm's vit_tiny_patch16_224, as safetensors.

    python -m weights_convert vit_tiny_patch16_224.safetensors --output=models/vit_tiny
    python -m dinotxt_jax.precompute --config=configs/flickr8k_vit_tiny.py
    python -m dinotxt_jax.train --config=configs/flickr8k_vit_tiny.py --workdir=runs/flickr8k

Differences from the released recipe: captions are tokenized with a vocabulary trained on them and
cut at 24 tokens (2 % are longer), the text transformer is 256 wide and 4 deep, half the patch
tokens enter the head in training, and the photos are encoded once. Captions share token rows, which
changes no result.
"""

from dinotxt_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    HeadTrainingConfig,
    OptimizerConfig,
    PrecisionConfig,
    TaskConfig,
    TextTrainingConfig,
    TokenizerConfig,
    to_config_dict,
)


def get_config():
    """Returns the config for training on Flickr8k from cached tokens."""
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
            steps=310,
            batch_size=256,
            backbone="models/vit_tiny",
            features="runs/flickr8k_features",
            data=DataConfig(split="train", **photos),
            tokenizer=TokenizerConfig(kind="bpe", vocabulary_size=4096, context_length=24),
            head=HeadTrainingConfig(patch_tokens=98),
            text=TextTrainingConfig(width=256, depth=4, num_heads=4, pack=True),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=31),
            precision=PrecisionConfig(compute="bfloat16", frozen="float32"),
            checkpoint=CheckpointConfig(every=100, keep=2),
            evaluation=EvaluationConfig(tasks={"flickr8k": test}, every=100),
        )
    )
