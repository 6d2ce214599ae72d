"""Retrieval on Flickr8k's 1000 test photos, with five captions each.

    python -m dinotxt_jax.evaluate --config=configs/eval/flickr8k.py --model=runs/flickr8k/model \\
        --output=runs/flickr8k/evaluation

Results to expect: docs/flickr8k.md.
"""

from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig, to_config_dict


def get_config():
    """Returns the retrieval task on the test photos."""
    data = DataConfig(
        source="jsonl",
        path="data/flickr8k/captions.jsonl",
        split="test",
        image_size=224,
        augmentation="squash",
        threads=2,
    )
    return to_config_dict(
        EvaluationConfig(tasks={"flickr8k": TaskConfig(kind="retrieval", data=data)})
    )
