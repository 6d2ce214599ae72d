"""Measures how much packing saves: text tokens computed, and train step time.

    python benchmarks/packing.py --captions=data/flickr8k/captions.jsonl \\
        --vocabulary=bpe_simple_vocab_16e6.txt.gz [--dtype=bfloat16] [--batch=256] [--steps=5]

Tokens are counted over random caption batches, for different device counts, with 77-token rows,
rows trimmed to the longest caption (`config.text.trim=8`), and packed rows (`config.text.pack`,
with as many rows as a run would plan). The timed steps are those in benchmarks/train_step.py with
cached features, on a batch of these captions.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from machine import device
from train_step import CONTEXT, seconds_per_step, step_config

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.packing import pack, planned_rows, row_counts, rows_needed, stacked
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.tokenizers import ClipTokenizer, trimmed_length
from dinotxt_jax.training.texts import sampled_lengths

BATCHES = 100


def computed(batches: list[np.ndarray], sample: list[np.ndarray], devices: int) -> dict:
    """Returns mean tokens per batch, and the number of steps that needed more rows than planned."""
    size = len(batches[0])
    planned = planned_rows(sample, size // devices, devices, CONTEXT)
    counts = row_counts(planned, size // devices)
    rows, overflows = [], 0
    for lengths in batches:
        rows_per_part = max(rows_needed(part, CONTEXT) for part in np.split(lengths, devices))
        rows.append(next(count for count in counts if count >= rows_per_part))
        overflows += rows_per_part > planned
    return {
        "whole": size * CONTEXT,
        "trimmed": size * np.mean([trimmed_length(int(b.max()), 8, CONTEXT) for b in batches]),
        "packed": devices * CONTEXT * np.mean(rows),
        "overflows": overflows,
    }


def print_tokens(flat: np.ndarray, sample: list[np.ndarray]) -> None:
    """Prints the token table."""
    print(f"{len(flat)} captions of {flat.mean():.2f} tokens on average, {flat.max()} at most;")
    print(f"{BATCHES} random batches each\n")
    print(
        "| batch | devices | rows of 77 | trimmed | packed | overflows |\n|---|---|---|---|---|---|"
    )
    rng = np.random.default_rng(1)
    for size, devices in ((256, 1), (256, 8), (4096, 1), (4096, 8), (4096, 64)):
        batches = [rng.choice(flat, size) for _ in range(BATCHES)]
        counts = computed(batches, sample, devices)
        whole = counts["whole"]
        cells = [
            f"{counts[kind]:,.0f} (1 / {whole / counts[kind]:.2f})"
            for kind in ("trimmed", "packed")
        ]
        print(f"| {size} | {devices} | {whole:,} | {' | '.join(cells)} | {counts['overflows']} |")


def print_seconds(
    tokens: np.ndarray, lengths: np.ndarray, planned: int, dtype: str, steps: int
) -> None:
    """Prints the table with step times."""
    config = step_config(dtype, len(tokens))
    start = time.perf_counter()
    packed = stacked([pack(tokens, lengths)], planned)
    spent = time.perf_counter() - start
    longest = trimmed_length(int(lengths.max()), 8, CONTEXT)
    lines = {
        "rows of 77 tokens": {"tokens": tokens},
        f"rows trimmed to {longest} tokens": {"tokens": tokens[:, :longest]},
        f"packed into {planned} rows": packed._asdict(),
    }
    print(f"\nbatch {len(tokens)}, {dtype}; packing it took {1000 * spent:.1f} ms\n")
    print("| step | seconds | ratio |\n|---|---|---|")
    reference = 0.0
    for name, text in lines.items():
        seconds = seconds_per_step(config, steps, cached=True, text=text)
        reference = reference or seconds
        print(f"| {name} | {seconds:.2f} | {seconds / reference:.2f} |", flush=True)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=Path, required=True, help="an index of jsonl pairs")
    parser.add_argument("--vocabulary", required=True, help="CLIP's vocabulary file")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    print(device())
    tokenizer = ClipTokenizer(options.vocabulary, CONTEXT)
    source = open_source(DataConfig(source="jsonl", path=str(options.captions), split="train"))
    rows = [tokenizer(source.captions(index)) for index in range(len(source))]
    flat = np.concatenate(rows)
    lengths, sample = tokenizer.lengths(flat), sampled_lengths(source, tokenizer, DataConfig(), 0)
    print_tokens(lengths, sample)
    chosen = np.random.default_rng(2).choice(len(flat), options.batch, replace=False)
    planned = planned_rows(sample, options.batch, 1, CONTEXT)
    print_seconds(flat[chosen], lengths[chosen], planned, options.dtype, options.steps)


if __name__ == "__main__":
    main()
