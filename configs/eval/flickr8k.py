"""Retrieval on Flickr8k's 1000 test photos, with five captions each; or of captions alone.

    python -m dinotxt_jax.evaluate --config=configs/eval/flickr8k.py --model=runs/flickr8k/model \\
        --output=runs/flickr8k/evaluation

The argument after the colon is one task, or both joined by + (default: flickr8k):

- `flickr8k`: photos find their captions, and captions their photo;
- `captions`: captions find the other captions of their photo, of which each needs several.

Results to expect: docs/flickr8k.md.
"""

from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig, to_config_dict

KINDS = {"flickr8k": "retrieval", "captions": "text"}


def get_config(names="flickr8k"):
    """Returns the tasks in `KINDS` with these names, joined by +, on the test photos."""
    data = DataConfig(
        source="jsonl",
        path="data/flickr8k/captions.jsonl",
        split="test",
        image_size=224,
        augmentation="squash",
        threads=2,
    )
    tasks = {}
    for name in names.split("+"):
        if name not in KINDS:
            raise ValueError(f"task {name!r} is unknown; choose among {', '.join(KINDS)}")
        tasks[name] = TaskConfig(kind=KINDS[name], data=data)
    return to_config_dict(EvaluationConfig(tasks=tasks))
