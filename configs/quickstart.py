"""The whole pipeline on drawn scenes: no download, about three minutes on two CPU cores.

The backbone is the tiny DINOv2 with random weights that the tests contain (real weights cannot be
shipped here), so only the head and the text transformer learn to see; the same commands with a real
backbone are in the README.
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
    """Returns the config for training on drawn scenes."""
    image = {"image_size": 98, "augmentation": "squash", "threads": 2}
    held_out = DataConfig(source="scenes", split="test", num_scenes=500, **image)
    return to_config_dict(
        Config(
            steps=400,
            batch_size=64,
            data=DataConfig(source="scenes", split="train", num_scenes=4096, **image),
            tokenizer=TokenizerConfig(kind="bpe", vocabulary_size=512, context_length=56),
            head=HeadTrainingConfig(drop_path=0.0),
            text=TextTrainingConfig(width=128, depth=3, num_heads=4, pack=True),
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=40),
            precision=PrecisionConfig(compute="float32", frozen="float32"),
            checkpoint=CheckpointConfig(every=200),
            evaluation=EvaluationConfig(
                tasks={"scenes": TaskConfig(kind="retrieval", data=held_out)}, every=200
            ),
        )
    )
