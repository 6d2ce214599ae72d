"""Measures whether curation helps: trains on a dirty pool, and on curated subsets.

    python benchmarks/curation_study.py --flickr8k=DIR --msrc=DIR --backbone=FILE --output=DIR
        [--steps=120] [--seeds=3]

The pool contains the 6000 Flickr8k training photos, and is deliberately unbalanced and dirty:

- originals: every photo once, with all five captions;
- repeats by Zipf's law: words with more than two letters, except function words, are ranked by the
  number of photos with the word in a caption. A photo's rank r is the best rank among its words,
  if r <= 50. The photo is repeated round(5 / r) more times, each time as a different crop (50 to
  100 % of the area) with a single caption;
- duplicates: 50 photos, each 30 more times with different JPEG qualities and captions from other
  photos;
- boilerplate: 1500 more random photos, with captions such as "IMG_0042" or "click here to enlarge".

Training runs on five lists. Except for `all`, they have the same size: `--target`, or less if
`both` is smaller.

- all: the whole pool;
- random: a random subset, as a control;
- text: `curate text` with entries from the pool's captions;
- image: `embed`, `curate cluster`, `deduplicate` and `sample`;
- both: the intersection of a text list and an image list with twice the size.

All runs have the same settings and number of steps. They are evaluated by retrieval on Flickr8k's
test photos (mean of six recalls) and segmentation on MSRC (protocol whole). Finished runs in
--output are kept, so the script may be interrupted and restarted.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import processor
from PIL import Image

from dinotxt_jax.config import (
    CheckpointConfig,
    Config,
    CurationConfig,
    DataConfig,
    EvaluationConfig,
    HeadTrainingConfig,
    OptimizerConfig,
    SegmentationConfig,
    TaskConfig,
    TextTrainingConfig,
    TokenizerConfig,
)
from dinotxt_jax.config.curation import MetadataConfig
from dinotxt_jax.config.image_curation import ImageCurationConfig
from dinotxt_jax.curation.combining import combine
from dinotxt_jax.curation.deduplication import deduplicate
from dinotxt_jax.curation.embed_pool import embed_pool
from dinotxt_jax.curation.hierarchy import cluster
from dinotxt_jax.curation.metadata_step import write_entries
from dinotxt_jax.curation.report import write_report
from dinotxt_jax.curation.runners import in_processes
from dinotxt_jax.curation.sampling import sample_clusters
from dinotxt_jax.curation.text_step import balance_text
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.kept import read_kept, write_kept
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.evaluation.report import evaluate
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.precompute import precompute

FUNCTION_WORDS = frozenset(
    ["the", "and", "with", "are", "for", "his", "her", "its", "their", "that", "this", "out"]
)
SIDE = 112  # training image side in pixels; needs a quarter of the compute that 224 needs
ORIGINAL, REPEAT, DUPLICATE, BOILERPLATE = "original", "repeat", "duplicate", "boilerplate"
ARMS = ("all", "random", "text", "image", "both")


def write_pool(flickr8k: Path, folder: Path) -> list[str]:
    """Writes the pool and its index; returns each example's kind."""
    lines = map(json.loads, (flickr8k / "captions.jsonl").read_text().splitlines())
    photos = [line for line in lines if line["split"] == "train"]
    rng = np.random.default_rng(0)
    texts = [" ".join(photo["captions"]).lower() for photo in photos]
    words = [set(re.findall(r"[a-z]{3,}", text)) - FUNCTION_WORDS for text in texts]
    frequency = collections.Counter(word for photo_words in words for word in photo_words)
    ranks = {word: rank for rank, (word, _) in enumerate(frequency.most_common(50), start=1)}
    examples: list[tuple[str, int, list[str]]] = []  # kind, photo, captions
    for number, photo in enumerate(photos):
        examples.append((ORIGINAL, number, photo["captions"]))
        best = min((ranks[word] for word in words[number] if word in ranks), default=99)
        for repeat in range(round(5 / best)):
            examples.append((REPEAT, number, [photo["captions"][repeat % 5]]))
    for number in rng.choice(len(photos), 50, replace=False).tolist():
        for other in rng.choice(len(photos), 30).tolist():
            examples.append((DUPLICATE, number, [photos[other]["captions"][0]]))
    for number in rng.choice(len(photos), 1500).tolist():
        text = rng.choice([f"IMG_{rng.integers(10_000):04d}", "click here to enlarge", "photo 1"])
        examples.append((BOILERPLATE, number, [str(text)]))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    order = rng.permutation(len(examples)).tolist()
    with (folder / "pool.jsonl").open("w") as index:
        for place, row in enumerate(order):
            kind, number, captions = examples[row]
            name = f"images/{place:05d}.jpg"
            write_photo(flickr8k / photos[number]["image"], folder / name, kind, place)
            index.write(json.dumps({"image": name, "captions": captions}) + "\n")
    return [examples[row][0] for row in order]


def write_photo(source: Path, target: Path, kind: str, seed: int) -> None:
    """Writes an original unchanged, a repeat as a random crop, other kinds as JPEG re-encodings."""
    if target.exists():
        return
    if kind == ORIGINAL:
        shutil.copyfile(source, target)
        return
    rng = np.random.default_rng(seed)
    with Image.open(source) as image:
        photo = image.convert("RGB")
    if kind == REPEAT:
        share = rng.uniform(0.5, 1) ** 0.5
        width, height = round(share * photo.width), round(share * photo.height)
        left, top = rng.integers(photo.width - width + 1), rng.integers(photo.height - height + 1)
        photo = photo.crop((left, top, left + width, top + height))
    photo.save(target, "JPEG", quality=int(rng.integers(60, 96)))


def lists(
    config: CurationConfig, backbone: str, folder: Path, target: int
) -> dict[str, Path | None]:
    """Writes all lists, with `target` examples each; returns arm -> list file (None: all)."""

    def made(name: str, step: Callable[[Path], object]) -> Path:
        if not (folder / name).exists():
            step(folder / name)
        return folder / name

    def text(size: int) -> Path:
        settings = dataclasses.replace(config, target=size)
        print(balance_text(settings, [str(entries)], folder / f"text{size}", in_processes))
        return folder / f"text{size}" / "kept.npz"

    def image(size: int) -> Path:
        settings = dataclasses.replace(config, target=size)
        files = [str(clusters), str(unique)]
        return made(f"image{size}.npz", lambda out: sample_clusters(settings, files, out))

    entries = made("metadata", lambda output: write_entries(config, [], output))
    embeddings = folder / "embeddings"
    print(embed_pool(config, backbone, embeddings, 64, "float32"))
    clusters = folder / "clusters"
    print(cluster(config, [str(embeddings)], clusters))
    both_folders = [str(embeddings), str(clusters)]
    unique = made("unique.npz", lambda output: deduplicate(config, both_folders, output))
    wide = [str(text(2 * target)), str(image(2 * target))]
    combine(config, wide, folder / "common.npz")
    common = len(read_kept(folder / "common.npz", "both").rows)
    print(f"{common} examples are in both lists of {2 * target}")
    target = min(target, common)
    result: dict[str, Path | None] = {"all": None, "text": text(target), "image": image(target)}
    settings = dataclasses.replace(config, target=target)
    result["both"] = made("both.npz", lambda output: combine(settings, wide, output) and None)
    source = open_source(config.data)
    chosen = np.random.default_rng(1).permutation(len(source))[:target]
    counts = np.bincount(chosen, minlength=len(source))
    identity = data_identity(source, 2)
    result["random"] = made("random.npz", lambda out: write_kept(out, counts, identity, {}))
    paths = [
        str(folder / f"text{target}"),
        str(clusters),
        str(result["image"]),
        str(result["both"]),
    ]
    made("report.html", lambda output: write_report(config, paths, output))
    return result


def training(
    data: DataConfig, backbone: str, features: Path, steps: int, batch: int, seed: int
) -> Config:
    """Returns a run's settings: configs/flickr8k_vit_tiny.py with smaller images."""
    return Config(
        steps=steps,
        batch_size=batch,
        seed=seed,
        backbone=backbone,
        features=str(features),
        data=data,
        tokenizer=TokenizerConfig(kind="bpe", vocabulary_size=4096, context_length=24),
        head=HeadTrainingConfig(),
        text=TextTrainingConfig(width=256, depth=4, num_heads=4, pack=True),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=steps // 10),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def evaluation(flickr8k: Path, msrc: Path) -> EvaluationConfig:
    """Returns the config for retrieval and segmentation."""
    photos = DataConfig(
        source="jsonl",
        path=str(flickr8k / "captions.jsonl"),
        split="test",
        image_size=SIDE,
        augmentation="squash",
        threads=2,
    )
    masks = DataConfig(
        source="csv",
        path=str(msrc / "index.csv"),
        classes=str(msrc / "classes.txt"),
        threads=2,
    )
    segmentation = TaskConfig(
        kind="segmentation",
        data=masks,
        templates="a photo of a {}.",
        segmentation=SegmentationConfig("whole", image_size=2 * SIDE),
    )
    retrieval = TaskConfig(kind="retrieval", data=photos)
    return EvaluationConfig(tasks={"flickr8k": retrieval, "msrc": segmentation}, batch_size=32)


def scores(file: Path) -> tuple[float, float]:
    """Returns mean recall and mIoU from a finished evaluation, in percent."""
    results = json.loads(file.read_text())
    recall, iou = results["flickr8k"]["metrics"], results["msrc"]["metrics"]
    return recall["mean_recall"], iou["mean_iou"]


def print_lists(files: dict[str, Path | None], kinds: np.ndarray) -> None:
    """Prints the number of examples by kind for each list."""
    names = (ORIGINAL, REPEAT, DUPLICATE, BOILERPLATE)
    print("| list | examples | " + " | ".join(names) + " |")
    print("|---|---|" + "---|" * len(names))
    for arm in ARMS:
        file = files[arm]
        kept = np.ones(len(kinds), int)
        if file is not None:
            kept = read_kept(file, arm).rows.counts(len(kinds))
        numbers = " | ".join(str(int(kept[kinds == name].sum())) for name in names)
        print(f"| {arm} | {int(kept.sum())} | {numbers} |", flush=True)


def main() -> None:
    """Prints the lists' content by kind, and a table with results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flickr8k", type=Path, required=True, help="folder with captions.jsonl")
    parser.add_argument("--msrc", type=Path, required=True, help="folder with index.csv")
    parser.add_argument("--backbone", required=True, help="weights to convert, such as ViT-Ti")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--target", type=int, default=4000, help="examples in each list")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    folder: Path = arguments.output
    kinds = np.array(write_pool(arguments.flickr8k, folder))
    data = DataConfig(
        source="jsonl",
        path=str(folder / "pool.jsonl"),
        image_size=SIDE,
        augmentation="squash",
        threads=2,
    )
    backbone = str(folder / "backbone")
    if not (folder / "backbone").exists():
        command = [sys.executable, "-m", "weights_convert", arguments.backbone]
        subprocess.run([*command, f"--output={backbone}"], check=True, env=os.environ)
    config = CurationConfig(
        data=data,
        workers=2,
        metadata=MetadataConfig(min_count=5),
        image=ImageCurationConfig(levels=(400, 80, 16), rounds=(0, 5, 5)),
    )
    files = lists(config, backbone, folder, arguments.target)
    print(f"{processor()}; {len(kinds)} examples, {arguments.steps} steps of {arguments.batch}")
    print_lists(files, kinds)
    tasks = evaluation(arguments.flickr8k, arguments.msrc)
    for seed in range(arguments.seeds):
        for arm in ARMS:
            run = folder / f"{arm}.{seed}"
            if (run / "evaluation" / "results.json").exists():
                continue
            chosen = dataclasses.replace(data, kept=str(files[arm] or ""))
            settings = training(
                chosen, backbone, folder / "features" / arm, arguments.steps, arguments.batch, seed
            )
            precompute(settings)
            model = train(settings, run)
            evaluate(str(model), tasks, run / "evaluation")
            recall, miou = scores(run / "evaluation" / "results.json")
            print(f"{arm}, seed {seed}: {recall:.1f} {miou:.1f}", flush=True)
    print("| list | mean recall, % | seeds | MSRC mIoU, % | seeds |\n|---|---|---|---|---|")
    for arm in ARMS:
        results = [
            scores(folder / f"{arm}.{seed}" / "evaluation" / "results.json")
            for seed in range(arguments.seeds)
        ]
        cells = []
        for values in zip(*results, strict=True):
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.1f} ± {spread / len(values) ** 0.5:.1f}")
            cells.append(", ".join(f"{value:.1f}" for value in values))
        print(f"| {arm} | " + " | ".join(cells) + " |")
    print("± is the standard error of the mean over seeds.")


if __name__ == "__main__":
    main()
