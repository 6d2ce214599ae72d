"""Retrieval on Flickr8k's 1000 test photos, with five captions each; and of captions alone.

    python -m dinotxt_jax.evaluate --config=configs/eval/flickr8k.py --model=runs/flickr8k/model \\
        --output=runs/flickr8k/evaluation

Results to expect: docs/flickr8k.md.
"""

from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig, to_config_dict


def get_config():
    """Returns the retrieval task on the test photos, and captions that find each other."""
    data = DataConfig(
        source="jsonl",
        path="data/flickr8k/captions.jsonl",
        split="test",
        image_size=224,
        augmentation="squash",
        threads=2,
    )
    kinds = {"flickr8k": "retrieval", "captions": "text"}
    tasks = {name: TaskConfig(kind=kind, data=data) for name, kind in kinds.items()}
    return to_config_dict(EvaluationConfig(tasks=tasks))
