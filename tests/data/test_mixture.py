"""Mixtures: weights, epochs and order, for any number of readers and any number of examples."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinotxt_jax import UserError
from dinotxt_jax.config import (
    Config,
    CurationConfig,
    DataConfig,
    IngestionConfig,
    check,
    from_dict,
    to_config_dict,
)
from dinotxt_jax.config.overrides import override
from dinotxt_jax.config.sources import MixtureConfig
from dinotxt_jax.data.mixture import Mixture, whole_weights
from dinotxt_jax.data.order import Draw, Turns, _shuffled_by_feistel
from dinotxt_jax.data.pipeline import ImageTextExample, make_training_iterator
from dinotxt_jax.data.shares import Share, shared
from dinotxt_jax.data.sources import open_source


def scenes(**weights: float) -> DataConfig:
    """Three sources with 30, 20 and 10 scenes."""
    mixture = {
        name: MixtureConfig(num_scenes=size, weight=weights.get(name, 0.0))
        for name, size in (("a", 30), ("b", 20), ("c", 10))
    }
    return DataConfig(mixture=mixture, image_size=32)


def draw_as_arrays(draw: Draw) -> dict[str, np.ndarray]:
    return {"index": np.asarray(draw.index), "epoch": np.asarray(draw.epoch)}


def rows(source: Any, readers: int, steps: range) -> list[tuple[int, int]]:
    """Returns (epoch, index) in the rows of steps, read by several readers."""
    batches = []
    for reader in range(readers):
        iterator = make_training_iterator(
            source,
            draw_as_arrays,
            batch_size=16,
            seed=3,
            parts=(reader,),
            part_count=readers,
            threads=0,
        )
        iterator.set_state(iterator.get_state() | {"next_step": steps.start})
        batches.append([next(iterator) for _ in steps])
        iterator.close()
    return [
        (int(epoch), int(index))
        for step in range(len(steps))
        for reader in range(readers)
        for epoch, index in zip(
            batches[reader][step]["epoch"], batches[reader][step]["index"], strict=True
        )
    ]


def test_no_example_is_lost_or_repeated_when_the_number_of_readers_changes() -> None:
    """Fifteen steps of sixteen rows are four epochs of sixty examples."""
    source = open_source(scenes())
    read = rows(source, 8, range(5)) + rows(source, 4, range(5, 9)) + rows(source, 16, range(9, 15))
    assert read == rows(source, 1, range(15))
    assert collections.Counter(read) == {(e, i): 1 for e in range(4) for i in range(60)}


def test_weights_set_how_often_each_source_is_used_in_every_stretch() -> None:
    source = open_source(scenes(a=0.1, b=0.2, c=0.7))
    assert isinstance(source, Mixture)
    read = rows(source, 1, range(30))
    for start in range(0, 480, 96):
        stretch = [index for _, index in read[start : start + 96]]
        counts = [
            sum(low <= i < high for i in stretch) for low, high in ((0, 30), (30, 50), (50, 60))
        ]
        np.testing.assert_allclose(counts, (9.6, 19.2, 67.2), atol=3)
    # Each source has epochs of its own, in which every example is used once.
    of_c = [row for row in read if row[1] >= 50][:330]
    assert collections.Counter(of_c) == {(e, i): 1 for e in range(33) for i in range(50, 60)}
    assert source.described(480) == [
        "a: 30 examples, 10.00% of the pairs, 1.6 passes",
        "b: 20 examples, 20.00% of the pairs, 4.8 passes",
        "c: 10 examples, 70.00% of the pairs, 33.6 passes",
    ]


@pytest.mark.parametrize("weights", [(1,), (1, 1), (3, 5, 7, 11), (1, 10**9), (10**9, 1, 1)])
def test_positions_are_shared_exactly_and_number_each_share_without_a_gap(
    weights: tuple[int, ...],
) -> None:
    shares = [Share(0, 1, weight) for weight in weights]
    counts = [0] * len(weights)
    for position in range(2000):
        number, used = shared(position, shares)
        assert used == counts[number]
        counts[number] += 1
        expected = np.multiply(position + 1, weights) / sum(weights)
        np.testing.assert_allclose(counts, expected, atol=len(weights))


def test_whole_weights_have_the_proportions_of_decimal_numbers() -> None:
    assert whole_weights([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert whole_weights([1e-6, 1]) == [1, 10**6]
    assert whole_weights([0, 0]) == []


def test_sources_of_equal_size_are_read_in_different_orders() -> None:
    parts = {"a": MixtureConfig(num_scenes=50), "b": MixtureConfig(num_scenes=50)}
    read = rows(open_source(DataConfig(mixture=parts)), 1, range(5))
    first = [i for _, i in read if i < 50]
    second = [i - 50 for _, i in read if i >= 50]
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 5


@pytest.mark.parametrize("size", [1, 2, 3, 64, 1000, 1025])
def test_the_shuffle_for_large_data_is_a_permutation(size: int) -> None:
    shuffled = [_shuffled_by_feistel(index, size, 5) for index in range(size)]
    assert sorted(shuffled) == [*range(size)]
    if size > 500:
        # Of a random permutation: one fixed point and one pair of neighbours on average.
        assert sum(index == value for index, value in enumerate(shuffled)) < 8
        assert np.count_nonzero(np.diff(shuffled) == 1) < 8
        assert shuffled != [_shuffled_by_feistel(index, size, 6) for index in range(size)]


def test_positions_beyond_two_to_the_32_are_drawn_from_all_examples() -> None:
    size = 2**33 + 12345
    turns = Turns((Share(0, size, 1),), 8, 1, True, (0,), 1, first_step=2**31)
    draws = [turns[number] for number in range(2000)]
    assert [draw.position for draw in draws[:2]] == [2**34, 2**34 + 1]
    assert {draw.epoch for draw in draws} == {1}
    indices = np.array([draw.index for draw in draws])
    assert len(set(indices)) == 2000
    # Uniform: the mean of 2000 numbers lies within 5 standard deviations, 5 / sqrt(12 * 2000).
    assert abs(indices.mean() / size - 0.5) < 0.033
    source = open_source(DataConfig(num_scenes=size, image_size=32))
    make = ImageTextExample(source, DataConfig(image_size=32), lambda _: np.zeros(1, np.int32))
    assert int(make(draws[0])["index"]) == draws[0].index


def test_a_bad_image_is_replaced_from_the_same_source(tmp_path: Path) -> None:
    for name, sides in (("good", (8, 8, 8)), ("bad", (8, 0, 8))):
        folder = tmp_path / name
        folder.mkdir()
        lines = []
        for number, side in enumerate(sides):
            if side:
                Image.new("RGB", (side, side)).save(folder / f"{number}.png")
            else:
                (folder / f"{number}.png").write_bytes(b"broken")
            lines.append(json.dumps({"image": f"{number}.png", "caption": name}))
        (folder / "index.jsonl").write_text("\n".join(lines))
    parts = {
        name: MixtureConfig(source="jsonl", path=str(tmp_path / name / "index.jsonl"))
        for name in ("good", "bad")
    }
    config = DataConfig(mixture=parts, image_size=8, max_bad_fraction=0.5)
    source = open_source(config)
    assert [source.key(index) for index in (0, 4)] == ["good/0.png", "bad/1.png"]
    make = ImageTextExample(source, config, lambda text: np.array([len(text)]))
    example = make(Draw(0, 4, 0, 0))
    assert int(example["skipped"]) == 1
    assert int(example["index"]) in (3, 5)
    assert int(example["tokens"][0]) == len("bad")


def test_each_source_has_filters_and_templates() -> None:
    config = scenes()
    parts = {
        **config.mixture,
        "c": dataclasses.replace(config.mixture["c"], caption_templates="a drawing: {}"),
    }
    config = dataclasses.replace(config, mixture=parts)
    texts: list[str] = []
    source = open_source(config)

    def tokenize(text: str) -> np.ndarray:
        texts.append(text)
        return np.zeros(1, np.int32)

    make = ImageTextExample(source, config, tokenize)
    for index in (0, 35, 55):
        make(Draw(0, index, 0, 0))
    assert [text.startswith("a drawing: ") for text in texts] == [False, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "x"}, r"config\.data\.path is 'x', but the sources of config\.data\.mixture are"),
        (
            {"mixture": {"a": {"weight": 1.0}, "b": {}}},
            r"config\.data\.mixture\.b\.weight is 0, expected weights for all sources or for none",
        ),
        (
            {"mixture": {"a": {"source": "jsonl"}}},
            r"config\.data\.mixture\.a\.path is empty, expected the path that",
        ),
        (
            {"mixture": {"a": {"source": "masks", "name": "voc_20", "path": "x"}}},
            r"config\.data\.mixture\.a\.source is 'masks', which has no captions",
        ),
        ({"mixture": {"a": {"wieght": 1.0}}}, r"did you mean config\.data\.mixture\.a\.weight\?"),
        ({"image_size": 28}, r"at least 32 for config\.data\.mixture\.a\.source=scenes"),
        (
            {"mixture": {"a": {"caption_key": "x+y", "caption_weights": (1.0,)}}},
            r"config\.data\.mixture\.a\.caption_weights has 1 numbers, expected one for each of",
        ),
        ({"mixture": {"a": {"caption_key": "x+"}}}, "expected different columns separated by +"),
        (
            {"mixture": {"a": {"min_caption_length": 5, "max_caption_length": 4}}},
            "expected at least config.data.mixture.a.min_caption_length=5",
        ),
    ],
)
def test_wrong_settings_are_named_before_anything_is_read(
    changes: dict[str, Any], message: str
) -> None:
    values = to_config_dict(Config(backbone="b", data=scenes())).to_dict()
    values["data"] |= changes
    with pytest.raises(UserError, match=message):
        check(from_dict(Config, values))


def test_commands_besides_training_refuse_filters_and_templates() -> None:
    for config in (CurationConfig, IngestionConfig):
        with pytest.raises(
            UserError, match=r"config\.data\.caption_templates is set, expected its"
        ):
            check(config(data=DataConfig(caption_templates="a {}")))
        with pytest.raises(UserError, match=r"config\.data\.mixture is set"):
            check(config(data=scenes()))


def test_a_weight_is_changed_on_the_command_line() -> None:
    config = Config(data=scenes(a=1, b=1, c=1))
    changed = override(config, "data.mixture.b.weight", "0.5")
    assert changed.data.mixture["b"].weight == 0.5
    with pytest.raises(UserError, match="choose among a, b, c"):
        override(config, "data.mixture.web.weight", "0.5")


def test_a_missing_source_names_its_key(tmp_path: Path) -> None:
    part = MixtureConfig(source="jsonl", path=str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"correct config\.data\.mixture\.web\.path"):
        open_source(DataConfig(mixture={"web": part}))


def test_epochs_set_the_steps_when_the_number_of_examples_is_known() -> None:
    config = Config(epochs=2.5, batch_size=16, accumulate_steps=2)
    assert config.for_examples(60) == dataclasses.replace(config, epochs=0, steps=5)
    assert Config().for_examples(60) == Config()
    with pytest.raises(UserError, match="config.epochs is 2.5, which takes 234375000000000 steps"):
        config.for_examples(3 * 10**15)
    with pytest.raises(UserError, match="expected only one of them; set config.epochs=0"):
        check(Config(epochs=1, steps=7))
