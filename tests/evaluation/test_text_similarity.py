"""Texts compared with texts: recalls and correlations against plain computations, and bad files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from models import with_tokenizer

from dinotxt_jax import UserError
from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig
from dinotxt_jax.config.evaluation import TextTaskConfig
from dinotxt_jax.evaluation.report import evaluate
from dinotxt_jax.evaluation.text_similarity import (
    caption_recalls,
    chance_caption_recalls,
    correlations,
    embedded_part,
    read_pairs,
)

OWNERS = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
WORDS = ("a dog runs", "a cat sleeps")
SENTENCES = "sentence1\tsentence2\tscore\n"


def features(rows: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_recalls_equal_a_plain_search_among_the_other_captions() -> None:
    texts = features(len(OWNERS))
    similarity = texts @ texts.T
    hits: dict[int, list[bool]] = {1: [], 5: [], 10: []}
    for query, owner in enumerate(OWNERS):
        others = [i for i in np.argsort(-similarity[query], kind="stable") if i != query]
        if (owner == OWNERS).sum() > 1:
            for k, found in hits.items():
                found.append(owner in OWNERS[others[:k]])
    expected = {f"caption_r{k}": 100 * np.mean(found) for k, found in hits.items()}
    assert caption_recalls(texts, OWNERS) == pytest.approx(expected)


def test_a_caption_does_not_find_itself_and_ties_are_misses() -> None:
    texts = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]]
    assert caption_recalls(texts, np.array([0, 0, 1, 1]))["caption_r1"] == 0
    pairs = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
    assert caption_recalls(pairs, np.array([0, 0, 1, 1]))["caption_r1"] == 100


def test_chance_is_the_mean_of_random_features() -> None:
    drawn = [caption_recalls(features(len(OWNERS), seed), OWNERS) for seed in range(400)]
    chance = chance_caption_recalls(OWNERS)
    for name in ("caption_r1", "caption_r5"):
        values = [result[name] for result in drawn]
        assert np.mean(values) == pytest.approx(chance[name], abs=4 * np.std(values) / 400**0.5)
    assert chance["caption_r10"] == 100


def test_correlations_equal_numbers_computed_by_hand() -> None:
    # Ranks of the cosines 1 2.5 2.5 4, of the scores 1 2 3 4: their covariance is 4.5 / 4.
    result = correlations(np.array([0.1, 0.4, 0.4, 0.9]), np.array([0.0, 1.0, 3.0, 5.0]))
    assert result["spearman"] == pytest.approx(100 * 4.5 / (4.5 * 5) ** 0.5)
    assert result["pearson"] == pytest.approx(100 * np.corrcoef([1, 4, 4, 9], [0, 1, 3, 5])[0, 1])
    assert correlations(np.full(3, 0.5), np.arange(3.0)) == {"spearman": 0, "pearson": 0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", SENTENCES + "x\ty\tgood\n", "has score='good' in row 1, expected a number"),
        ("a.tsv", SENTENCES + "x\ty\n", "has no 'score' in row 1"),
        ("a.csv", "a,b\n1,2\n", "has no 'sentence1' in row 1, expected the columns sentence1, "),
        ("a.tsv", SENTENCES + "x\ty\t1\n" * 3, "has equal scores in all pairs"),
        ("a.tsv", SENTENCES + "x\ty\t1\nx\ty\t2\n", "has 2 pairs, expected at least 3"),
        ("a.jsonl", "[1]\n", r"cannot be read \(a line holds \[1\]\)"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.txt", "", "ends in .csv, .tsv or .jsonl"),
        ("missing.csv", None, "which does not exist; correct the path"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_pairs(TextTaskConfig(pairs=str(tmp_path / name)), "config.tasks.sts.text")


def test_both_forms_are_evaluated_and_reported(tiny_dinotxt: Path, tmp_path: Path) -> None:
    model = with_tokenizer(tiny_dinotxt, tmp_path / "model", WORDS)
    rows = [{"image": f"{n}.png", "captions": [f"dog {n}", f"a dog {n}"]} for n in range(6)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [{"sentence1": "a dog", "sentence2": "cat" * n, "score": n} for n in range(1, 5)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    data = DataConfig(source="jsonl", path=str(tmp_path / "captions.jsonl"))
    captions = TaskConfig(kind="text", data=data)
    rated = TaskConfig(kind="text", text=TextTaskConfig(pairs=str(tmp_path / "pairs.jsonl")))
    config = EvaluationConfig(tasks={"captions": captions, "sts": rated}, batch_size=8)
    evaluate(str(model), config, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["captions"]["protocol"]["captions"] == 12
    assert set(results["sts"]["metrics"]) == {"spearman", "pearson"}
    page = (tmp_path / "out" / "report.md").read_text()
    assert "caption->caption R@1" in page
    lonely = dataclasses.replace(captions, max_examples=1)
    rows[0]["captions"] = ["dog"]
    (tmp_path / "captions.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(UserError, match=r"no image of config.tasks.captions.data has two captions"):
        evaluate(str(model), EvaluationConfig(tasks={"captions": lonely}), tmp_path / "none")


def test_halves_of_text_features_are_those_of_class_and_patch_tokens(
    tiny_dinotxt: Path, tmp_path: Path
) -> None:
    from dinotxt_jax import load

    model = load(with_tokenizer(tiny_dinotxt, tmp_path / "model", WORDS))
    whole = embedded_part(model, ["a dog", "a cat"], 2, "whole")
    dim = whole.shape[1] // 2
    for part, half in (("class", whole[:, :dim]), ("patch", whole[:, dim:])):
        expected = half / np.linalg.norm(half, axis=1, keepdims=True)
        np.testing.assert_allclose(embedded_part(model, ["a dog", "a cat"], 2, part), expected)
