"""Filters, caption columns and templates: the caption and the images that training uses."""

from __future__ import annotations

import collections
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinotxt_jax import UserError
from dinotxt_jax.config import DataConfig
from dinotxt_jax.config.sources import SourceConfig
from dinotxt_jax.data.array_records import ArrayRecordSource, write_array_record
from dinotxt_jax.data.examples import ColumnCaptions, Example
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.pipeline import ImageTextExample
from dinotxt_jax.data.selection import FilteredError, Selection


def captions(**columns: object) -> ColumnCaptions:
    return ColumnCaptions.of(columns, "here")


def draws(count: int) -> list[Draw]:
    return [Draw(0, index, index, 7) for index in range(count)]


def test_columns_are_drawn_with_their_weights_and_epochs_alternate_within_a_column() -> None:
    settings = SourceConfig(caption_key="alt+synthetic", caption_weights=(1, 3))
    selection = Selection(settings)
    texts = captions(alt="a", synthetic=["s0", "s1"])
    counts = collections.Counter(selection.caption(draw, texts)[0] for draw in draws(4000))
    # Binomial with probability 3/4: five standard deviations are 137.
    assert abs(counts["s"] - 3000) < 137
    uses = {
        selection.caption(Draw(epoch, 3, 0, 7), texts)
        for epoch in range(40)
        if selection.candidates(Draw(epoch, 3, 0, 7), texts) == ("s0", "s1")
    }
    assert uses == {"s0", "s1"}
    assert selection.caption(draws(9)[8], texts) == selection.caption(draws(9)[8], texts)


def test_an_example_without_a_caption_in_a_column_uses_the_other_column() -> None:
    selection = Selection(SourceConfig(caption_key="alt+synthetic", caption_weights=(1000, 1)))
    assert selection.caption(Draw(0, 0, 0, 0), captions(alt=None, synthetic="s")) == "s"
    assert selection.caption(Draw(0, 0, 0, 0), captions(alt=[" "], synthetic="s")) == "s"
    with pytest.raises(UserError, match="here: the columns alt, synthetic have no caption"):
        captions(alt="", synthetic=None)


def test_captions_outside_of_the_length_limits_are_not_used() -> None:
    selection = Selection(SourceConfig(min_caption_length=2, max_caption_length=4))
    texts = ("a", "abc", "abcde", "ab")
    used = {selection.caption(draw, texts) for draw in draws(50)}
    assert used == {"abc", "ab"}
    with pytest.raises(FilteredError, match="no caption has a length within the limits"):
        selection.caption(draws(1)[0], ("a", "abcde"))


def test_templates_are_filled_with_the_caption() -> None:
    selection = Selection(SourceConfig(caption_templates="openai_7"))
    used = {selection.caption(draw, ("{dog}",)) for draw in draws(200)}
    assert len(used) == 7
    assert "itap of a {dog}." in used
    with pytest.raises(UserError, match=r"config\.data\.caption_templates .* no place for"):
        Selection(SourceConfig(caption_templates="a photo"))


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (SourceConfig(min_side=10), {(10, 30), (40, 10)}),
        (SourceConfig(max_aspect_ratio=3.0), {(9, 9), (10, 30)}),
        (SourceConfig(), {(9, 9), (10, 30), (40, 10)}),
    ],
)
def test_images_that_are_too_small_or_too_long_are_not_used(
    settings: SourceConfig, sizes: set[tuple[int, int]]
) -> None:
    passed = set()
    for size in ((9, 9), (10, 30), (40, 10)):
        try:
            Selection(settings).check_size(*size)
        except FilteredError:
            continue
        passed.add(size)
    assert passed == sizes


class Sizes:
    """Images whose side is 8 or, for every third one, 16 pixels; number 5 is broken."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Example:
        side = 8 if index % 3 else 16
        file = io.BytesIO()
        Image.new("RGB", (side, side)).save(file, "PNG")
        image = b"broken" if index == 5 else file.getvalue()
        return Example(image, self.captions(index), self.key(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return (f"{index}",)

    def key(self, index: int) -> str:
        return f"{index}"


def test_other_examples_replace_filtered_ones_which_are_no_bad_images() -> None:
    config = DataConfig(image_size=8, min_side=9, max_bad_fraction=0.1)
    make = ImageTextExample(Sizes(), config, lambda text: np.array([int(text)]))
    for draw in draws(30):
        example = make(draw)
        assert int(example["index"]) % 3 == 0
        assert int(example["tokens"][0]) == int(example["index"])
        broken = draw.index == 5
        small = draw.index % 3 > 0
        assert (int(example["skipped"]), int(example["filtered"])) == (broken, small and not broken)


def test_filters_that_pass_nothing_end_in_a_sentence_with_the_settings() -> None:
    config = DataConfig(image_size=8, min_side=17, max_bad_fraction=0.1)
    make = ImageTextExample(Sizes(), config, lambda text: np.array([0]))
    with pytest.raises(UserError, match=r"none of 29 examples drawn from config\.data passes the"):
        make(draws(1)[0])


def test_array_records_keep_the_columns_of_captions(tmp_path: Path) -> None:
    texts = captions(alt="a", synthetic=["s", "t"])
    write_array_record(tmp_path / "a.array_record", [Example(b"image", texts, "k")])
    everything = ArrayRecordSource(tmp_path).captions(0)
    assert everything == ("a", "s", "t")
    chosen = ArrayRecordSource(tmp_path, caption_columns=("synthetic", "alt")).captions(0)
    assert isinstance(chosen, ColumnCaptions)
    assert (chosen, chosen.columns) == (("s", "t", "a"), ("synthetic", "synthetic", "alt"))
    write_array_record(tmp_path / "a.array_record", [Example(b"image", ("a",), "k")])
    with pytest.raises(UserError, match="the captions' columns are None"):
        ArrayRecordSource(tmp_path, caption_columns=("alt",))
