"""Order, resume, captions, bad images and evaluation batches of `dinotxt_jax.data.pipeline`."""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import json
import os
import signal

import numpy as np
import pytest
from absl import logging
from PIL import Image
from small_sets import png

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.bad_images import most_tries
from dinotxt_jax.data.evaluation_batches import evaluation_batches
from dinotxt_jax.data.examples import Example
from dinotxt_jax.data.order import Dealt, Turns
from dinotxt_jax.data.pipeline import (
    BadImageMonitor,
    Draw,
    ImageTextExample,
    _examples_together,
    in_threads,
    make_training_iterator,
)
from dinotxt_jax.data.shares import Share
from dinotxt_jax.data.transforms import EvalTransform
from dinotxt_jax.errors import UserError

CONFIG = DataConfig(image_size=8, resize=8, max_bad_fraction=0.5)


def draw_as_arrays(draw: Draw) -> dict[str, np.ndarray]:
    return {
        "position": np.asarray(draw.position),
        "epoch": np.asarray(draw.epoch),
        "index": np.asarray(draw.index),
        "noise": draw.rng().random(3),
        "process": np.asarray(os.getpid()),
    }


def batches(count: int, size: int = 10, batch_size: int = 4, seed: int = 0, **options):
    iterator = make_training_iterator(
        range(size), draw_as_arrays, batch_size=batch_size, seed=seed, **options
    )
    result = list(itertools.islice(iterator, count))
    iterator.close()
    return result


def joined(parts: list[dict[str, np.ndarray]], name: str = "index") -> list:
    return np.concatenate([part[name] for part in parts]).tolist()


class Images:
    """Uniform images with the index modulo 256 as grey level; those in `bad` do not decode."""

    def __init__(self, size: int, bad: tuple[int, ...] = (), captions: int = 1) -> None:
        self.size, self.bad, self.captions = size, frozenset(bad), captions

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        image = np.full((12, 16, 3), index % 256, np.uint8)
        texts = tuple(f"{index} {number}" for number in range(self.captions))
        return Example(b"broken" if index in self.bad else image, texts, f"image {index}")


def tokenize(text: str) -> np.ndarray:
    return np.array([int(word) for word in text.split()])


def test_every_epoch_is_a_new_permutation_of_all_examples():
    positions = joined(batches(15))
    epochs = [positions[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_the_order_depends_on_the_seed():
    assert joined(batches(5, seed=3)) == joined(batches(5, seed=3))
    orders = {tuple(joined(batches(5, size=20, seed=seed))) for seed in range(5)}
    # The second epoch in a run must not equal the first epoch with another seed.
    later = {tuple(joined(batches(10, size=20, seed=seed))[20:]) for seed in range(5)}
    assert len(orders | later) == 10


def test_without_shuffle_the_order_is_the_source_s():
    assert joined(batches(5, shuffle=False)) == list(range(10)) * 2


@pytest.mark.parametrize(
    "parts",
    [[(0,), (1,)], [(0,), (1,), (2,), (3,)], [(0, 2), (1, 3)], [(0, 1, 4, 5), (2, 3, 6, 7)]],
)
def test_several_processes_give_the_batches_of_one_process(parts):
    alone = batches(7, batch_size=8)
    count = sum(map(len, parts))
    shares = [batches(7, batch_size=8, parts=mine, part_count=count) for mine in parts]
    for step, whole in enumerate(alone):
        for name in ("position", "index", "epoch", "noise"):
            by_part = {
                part: rows
                for mine, share in zip(parts, shares, strict=True)
                for part, rows in zip(mine, np.split(share[step][name], len(mine)), strict=True)
            }
            together = np.concatenate([by_part[part] for part in range(count)])
            np.testing.assert_array_equal(together, whole[name])
    assert joined(alone, "position") == list(range(56))


@pytest.mark.parametrize("threads", [0, 1, 7])
def test_threads_change_nothing(threads):
    assert joined(batches(6, threads=threads), "noise") == joined(batches(6), "noise")


def test_workers_change_nothing_survive_sigterm_and_are_started_again_after_sigkill():
    """A scheduler sends SIGTERM to all processes of a group, and lack of memory SIGKILL to one."""
    iterator = make_training_iterator(
        range(10), draw_as_arrays, batch_size=4, seed=0, workers=2, threads=2, prefetch=2
    )
    made = [next(iterator), next(iterator)]
    workers = set(joined(made, "process"))
    assert len(workers - {os.getpid()}) == 2
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    made += itertools.islice(iterator, 8)
    assert set(joined(made, "process")) == workers
    os.kill(min(workers), signal.SIGKILL)
    made += itertools.islice(iterator, 15)
    iterator.close()
    for name in ("index", "noise"):
        assert joined(made, name) == joined(batches(25), name)
    assert set(joined(made, "process")) > workers  # others took over


@pytest.mark.parametrize("workers", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_workers_give_the_rows_of_one_thread_in_order_also_where_chunks_end_within_batches(workers):
    """Batches of 100 rows need chunks of 64, so that a chunk belongs to two batches."""
    options = {"size": 1000, "batch_size": 100}
    alone = batches(7, threads=0, **options)
    shared = batches(7, threads=2, workers=workers, **options)
    for name in ("position", "index", "epoch", "noise"):
        assert joined(shared, name) == joined(alone, name)
    # Whole chunks come from one process; all processes take part.
    processes = np.array(joined(shared, "process"))[: 10 * 64].reshape(10, 64)
    assert (processes == processes[:, :1]).all()
    assert len(set(processes[:, 0].tolist())) == workers


@pytest.mark.parametrize(
    ("rows", "most", "expected"), [(256, 32, 8), (250, 32, 5), (11, 32, 1), (64, 3, 2), (4, 0, 1)]
)
def test_examples_made_together_never_belong_to_two_batches(rows, most, expected):
    assert _examples_together(rows, most) == expected


@pytest.mark.parametrize("together", [1, 2])
def test_dealt_draws_are_whole_chunks_for_each_worker_in_turn(together):
    turns = Turns((Share(0, 50, 1),), 10, 0, True, (0,), 1, first_step=2)
    dealt = Dealt(turns, workers=3, chunk=4, together=together)
    shares = [
        [dealt[part * together + row] for part in range(worker, 36, 3) for row in range(together)]
        for worker in range(3)
    ]
    chunks = [shares[k % 3][k // 3 * 4 : k // 3 * 4 + 4] for k in range(9)]
    assert list(itertools.chain(*chunks)) == [turns[row] for row in range(36)]


def test_workers_continue_a_run_of_threads_within_a_chunk():
    alone = batches(9, size=1000, batch_size=100)
    iterator = make_training_iterator(
        range(1000), draw_as_arrays, batch_size=100, seed=0, workers=2, threads=2
    )
    iterator.set_state(iterator.get_state() | {"next_step": 5})
    resumed = list(itertools.islice(iterator, 4))
    iterator.close()
    assert joined(resumed, "noise") == joined(alone[5:], "noise")


def test_workers_that_are_killed_again_and_again_are_a_sentence(monkeypatch):
    def killed():
        raise RuntimeError("Worker process was terminated unexpectedly with exit code -9.")
        yield

    iterator = make_training_iterator(range(10), draw_as_arrays, batch_size=4, seed=0)
    starts = []
    monkeypatch.setattr(iterator, "_started", lambda: starts.append(1) or killed())
    with pytest.raises(UserError, match=r"killed 4 times in a row .*lower config.data.workers"):
        next(iterator)
    assert len(starts) == 4


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    assert Draw(2, 7, 30, 5).rng().random() == Draw(2, 7, 99, 5).rng().random()
    draws = [Draw(2, 7, 30, 5), Draw(3, 7, 30, 5), Draw(2, 8, 30, 5), Draw(2, 7, 30, 6)]
    assert len({draw.rng().random() for draw in draws}) == 4


def test_the_random_stream_is_pinned():
    """Resumed runs need the same crops from another version of this code."""
    assert Draw(epoch=1, index=2, position=3, seed=4).rng().integers(0, 2**32) == 4184274796
    assert joined(batches(3, size=12)) == [3, 6, 10, 1, 7, 4, 2, 9, 11, 8, 5, 0]


@pytest.mark.parametrize("size", [10, 16])  # 2.5 or 4 batches per epoch
@pytest.mark.parametrize("stop", range(1, 9))
def test_resume_continues_exactly(size, stop):
    options = {"batch_size": 4, "seed": 1, "threads": 2, "prefetch": 8}
    first = make_training_iterator(range(size), draw_as_arrays, **options)
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    expected = list(itertools.islice(first, 4))
    first.close()

    resumed = make_training_iterator(range(size), draw_as_arrays, **options)
    resumed.set_state(state)
    assert resumed.get_state() == state
    for ours, theirs in zip(itertools.islice(resumed, 4), expected, strict=True):
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value)
    resumed.set_state(state)  # also back, on a running iterator
    np.testing.assert_array_equal(next(resumed)["index"], expected[0]["index"])
    resumed.close()


def test_a_position_is_good_for_other_numbers_of_processes_threads_and_workers():
    alone = make_training_iterator(range(10), draw_as_arrays, batch_size=4, seed=0)
    for _ in range(3):
        next(alone)
    state, expected = alone.get_state(), next(alone)["noise"]
    alone.close()
    parts = []
    for process in range(2):
        iterator = make_training_iterator(
            range(10),
            draw_as_arrays,
            batch_size=4,
            seed=0,
            parts=(process,),
            part_count=2,
            threads=3,
            workers=process,
        )
        iterator.set_state(state)
        parts.append(next(iterator)["noise"])
        iterator.close()
    np.testing.assert_array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("change", [{"batch_size": 5}, {"seed": 1}, {"size": 11}])
def test_a_position_of_another_run_is_refused(change):
    settings = {"size": 10, "batch_size": 4, "seed": 0}

    def iterator(size, **options):
        return make_training_iterator(range(size), draw_as_arrays, **options)

    state = iterator(**settings).get_state()
    name = "dataset_size" if "size" in change else next(iter(change))
    with pytest.raises(UserError, match=f"the saved data position has {name}"):
        iterator(**(settings | change)).set_state(state)


def test_a_batch_that_does_not_divide_is_a_user_error():
    with pytest.raises(UserError, match="batch of 6 does not divide into 4 parts"):
        batches(1, batch_size=6, part_count=4)
    with pytest.raises(UserError, match="the data has 0 examples"):
        batches(1, size=0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_in_n_epochs_every_caption_is_used_once(count):
    source = Images(7, captions=count)
    iterator = make_training_iterator(
        source, ImageTextExample(source, CONFIG, tokenize), batch_size=7, seed=0
    )
    for _ in range(2):
        tokens = np.concatenate([next(iterator)["tokens"] for _ in range(count)])
        assert sorted(map(tuple, tokens)) == list(itertools.product(range(7), range(count)))
    iterator.close()


def test_captions_are_drawn_in_another_order_for_another_example_and_seed():
    firsts = collections.Counter(Draw(0, index, 0, 0).caption_index(5) for index in range(1000))
    assert sorted(firsts) == list(range(5))
    assert min(firsts.values()) > 140  # 200 expected, standard deviation 13
    assert any(
        Draw(0, i, 0, 0).caption_index(5) != Draw(0, i, 0, 1).caption_index(5) for i in range(20)
    )


def test_examples_are_uint8_images_with_tokens_index_and_count():
    source = Images(6)
    iterator = make_training_iterator(
        source, ImageTextExample(source, CONFIG, tokenize), batch_size=3, seed=0
    )
    batch = next(iterator)
    iterator.close()
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "image": ((3, 8, 8, 3), np.dtype(np.uint8)),
        "tokens": ((3, 2), np.dtype(np.int32)),
        "index": ((3,), np.dtype(np.int64)),
        "skipped": ((3,), np.dtype(np.int32)),
        "filtered": ((3,), np.dtype(np.int32)),
    }
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    np.testing.assert_array_equal(batch["tokens"][:, 0], batch["index"])
    assert not batch["skipped"].any()


def test_bad_images_are_replaced_at_random_counted_once_and_named_once(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    source = Images(10, bad=(3, 4, 9))
    iterator = make_training_iterator(
        source,
        ImageTextExample(source, CONFIG, tokenize),
        batch_size=10,
        seed=0,
        shuffle=False,
    )
    for _ in range(2):
        batch = next(iterator)
        replaced = [3, 4, 9]
        kept = np.delete(batch["index"], replaced)
        assert kept.tolist() == [0, 1, 2, 5, 6, 7, 8]
        assert set(batch["index"][replaced].tolist()) <= set(kept.tolist())
        assert batch["tokens"][:, 0].tolist() == batch["index"].tolist()
        assert batch["image"][:, 0, 0, 0].tolist() == batch["index"].tolist()
        assert batch["skipped"].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 1]
    iterator.close()
    assert sorted(lines) == [
        f"skipped a bad image, example {i}: image {i} does not decode: text, not an image"
        for i in (3, 4, 9)
    ]


def test_a_lost_folder_is_replaced_by_examples_from_all_of_the_others():
    """A hundred neighbours of 400 are bad: each good one is used about 1.33 times an epoch."""
    source = Images(400, bad=tuple(range(100, 200)))
    make = ImageTextExample(source, CONFIG, tokenize)
    used = [make(Draw(epoch, i, i, 0)) for epoch in range(10) for i in range(400)]
    assert sum(int(example["skipped"]) for example in used) == 10 * 100
    counts = np.bincount([int(example["index"]) for example in used], minlength=400)
    assert not counts[100:200].any()
    good = np.delete(counts, np.arange(100, 200))
    assert good.min() >= 10
    # Binomial, with mean 10 / 3 above the 10 uses of their own: six standard deviations.
    assert good.max() <= 10 + 10 / 3 + 6 * np.sqrt(10 / 3)


def test_substitutes_are_all_others_once_and_differ_by_epoch():
    draws = [list(Draw(epoch, 5, 0, 0).substitutes(0, 50)) for epoch in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert sorted(draws[0]) == [*range(5), *range(6, 50)]


def test_three_missing_of_four_hundred_stay_below_one_per_cent():
    source = Images(400, bad=(7, 8, 9))
    config = DataConfig(image_size=8, max_bad_fraction=0.01)
    monitor = BadImageMonitor(0.01, 400)
    iterator = make_training_iterator(
        source, ImageTextExample(source, config, tokenize), batch_size=40, seed=0
    )
    for _ in range(20):
        monitor.update(40, int(next(iterator)["skipped"].sum()), 0)
    iterator.close()
    assert monitor.skipped == 2 * 3


@pytest.mark.parametrize(
    ("limit", "size", "tries"), [(0.0, 9, 1), (0.01, 400, 5), (0.01, 10**9, 6), (1.0, 9, 9)]
)
def test_the_search_for_a_good_image_ends(limit, size, tries):
    assert most_tries(limit, size) == tries


@pytest.mark.parametrize(("fraction", "workers"), [(0.1, 0), (1.0, 0), (0.1, 1)])
def test_data_without_a_good_image_ends_in_a_user_error(fraction, workers):
    source = Images(20, bad=tuple(range(20)))
    config = DataConfig(image_size=8, max_bad_fraction=fraction)
    iterator = make_training_iterator(
        source, ImageTextExample(source, config, tokenize), batch_size=4, seed=0, workers=workers
    )
    with pytest.raises(UserError, match=r"of 20 images .* could not be read or decoded"):
        next(iterator)
    iterator.close()


def test_an_error_of_an_example_reaches_the_caller_and_skips_no_step():
    broken = {"yes": True}

    def sometimes(draw: Draw) -> dict[str, np.ndarray]:
        if draw.position == 5 and broken["yes"]:
            raise OSError("the disk is gone")
        return draw_as_arrays(draw)

    iterator = make_training_iterator(range(10), sometimes, batch_size=4, seed=0)
    next(iterator)
    with pytest.raises(OSError, match="the disk is gone"):
        next(iterator)
    broken["yes"] = False
    assert next(iterator)["position"].tolist() == [4, 5, 6, 7]
    iterator.close()


def test_monitor_adds_up_and_stops_over_the_limit():
    monitor = BadImageMonitor(0.05, dataset_size=100)
    monitor.update(4, 3, 1)
    monitor.update(2, 2, 0)
    assert (monitor.skipped, monitor.filtered) == (5, 1)
    with pytest.raises(
        UserError, match=r"6 of 100 images \(6\.00%\) .* config\.data\.max_bad_fraction = 0\.05 "
    ):
        monitor.update(1, 1, 0)


def test_monitor_counts_on_after_a_restart_and_grows_with_the_epochs():
    monitor = BadImageMonitor(0.05, dataset_size=100)
    monitor.update(100, 5, 40)
    resumed = BadImageMonitor(0.05, dataset_size=100)
    resumed.set_state(json.loads(json.dumps(monitor.get_state())))
    resumed.update(100, 5, 2)  # two epochs, twice the limit
    assert (resumed.skipped, resumed.filtered) == (10, 42)
    with pytest.raises(UserError, match="11 of 201 images"):
        resumed.update(1, 1, 0)


@pytest.mark.parametrize("threads", [0, 4])
def test_evaluation_batches_are_in_order_with_a_short_last_one(threads):
    batches = list(evaluation_batches(Images(7), EvalTransform(CONFIG), 3, threads))
    assert [images.shape for images in batches] == [(3, 8, 8, 3), (3, 8, 8, 3), (1, 8, 8, 3)]
    assert np.concatenate(batches)[:, 0, 0, 0].tolist() == list(range(7))


def test_processes_read_the_rows_of_an_evaluation_that_they_hold() -> None:
    """Rows 1 and 2 of each batch; the other rows are zeros, also where none is read."""
    batches = list(evaluation_batches(Images(7, bad=(0, 3)), EvalTransform(CONFIG), 3, held=(1, 2)))
    assert [images.shape for images in batches] == [(3, 8, 8, 3), (3, 8, 8, 3), (1, 8, 8, 3)]
    assert np.concatenate(batches)[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 4, 5, 0]


def test_an_undecodable_image_ends_an_evaluation_by_name():
    with pytest.raises(UserError, match=r"example 4 cannot be evaluated \(image 4 does not decode"):
        list(evaluation_batches(Images(7, bad=(4,)), EvalTransform(CONFIG), 3))


def test_the_limit_on_pixels_is_the_setting():
    source = [Example(png(1), ("1 2",), "key")]  # 4 x 3 pixels
    for limit, fits in ((12, True), (11, False)):
        config = dataclasses.replace(CONFIG, max_pixels=limit)
        make = ImageTextExample(source, config, tokenize, evaluated=True)
        batches = evaluation_batches(source, EvalTransform(config), 1)
        for read in (lambda make=make: make(Draw(0, 0, 0, 0)), lambda it=batches: next(it)):
            if fits:
                read()
                continue
            with pytest.raises(UserError, match=r"4 x 3 pixels .* limit of 11 \(data.max_pixels"):
                read()


@pytest.mark.parametrize(("decoder", "turned"), [("fast", 0), ("exact", 0), ("official", 1)])
def test_training_and_evaluation_read_images_as_the_decoder_says(decoder, turned):
    """The stored image is black above and white below, and is to be turned upside down."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[4:] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", exif=exif, quality=100)
    source = [Example(stream.getvalue(), ("1 2",), "key")]
    upright = np.asarray([255, 0])
    expected = upright[::-1] if turned else upright
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip_probability": 0.0}
    for changes in ({"augmentation": "squash"}, {"augmentation": "center_crop"}, whole):
        config = dataclasses.replace(CONFIG, decoder=decoder, **changes)
        (batch,) = evaluation_batches(source, EvalTransform(config), 1)
        view = ImageTextExample(source, config, tokenize)(Draw(0, 0, 0, 0))["image"]
        for image in (batch[0], view):
            np.testing.assert_allclose(image[[1, -2], 3, 0].astype(int), expected, atol=2)


@pytest.mark.parametrize("threads", [0, 3])
def test_in_threads_keeps_the_order_and_stops_when_closed(threads):
    assert list(in_threads(range(3, 50), str, threads, 4)) == [str(i) for i in range(3, 50)]
    started: list[int] = []
    results = in_threads(range(1000), started.append, threads, 4)
    results.close()
    assert not started
    results = in_threads(range(1000), lambda i: started.append(i) or i, threads, 4)
    assert next(results) == 0
    results.close()
    assert len(started) <= 6
