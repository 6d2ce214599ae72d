"""Retrieval on the 500 held-out drawn scenes from configs/quickstart.py."""

from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig, to_config_dict


def get_config():
    """Returns the retrieval task on the held-out scenes."""
    data = DataConfig(
        source="scenes",
        split="test",
        num_scenes=500,
        image_size=98,
        augmentation="squash",
        threads=2,
    )
    return to_config_dict(
        EvaluationConfig(tasks={"scenes": TaskConfig(kind="retrieval", data=data)})
    )
