"""Work directories: whose run may continue there, and damaged files in them."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import (
    config,
    losses,
)
from small_sets import jsonl

from dinotxt_jax import UserError
from dinotxt_jax.config import CheckpointConfig
from dinotxt_jax.errors import STORAGE
from dinotxt_jax.storage.locks import RunLock
from dinotxt_jax.training.checkpoints import check_workdir
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.metrics import MetricsWriter, read_metrics


def test_a_work_directory_of_another_config_is_refused(finished: Path, tiny_backbone: Path) -> None:
    other = config(tiny_backbone, batch_size=16, seed=3)
    with pytest.raises(
        UserError,
        match=r"trained with another config: config.batch_size \(8 there, 16 here\), config.seed",
    ):
        train(other, finished)


def test_a_work_directory_older_than_a_setting_resumes(finished: Path, tiny_backbone: Path) -> None:
    file = finished / "run.json"
    before = file.read_text()
    run = json.loads(before)
    del run["config"]["head"]["pooling"]
    file.write_text(json.dumps(run))
    check_workdir(finished, config(tiny_backbone), run["fingerprint"], run["data"])
    run["config"]["head"]["layer_scale"] = 1.0
    file.write_text(json.dumps(run))
    with pytest.raises(UserError, match=r"config.head.layer_scale \(1.0 there, 1e-05 here\)"):
        check_workdir(finished, config(tiny_backbone), run["fingerprint"], run["data"])
    file.write_text(before)


def test_a_run_from_before_the_fast_decoder_continues_with_the_exact_one(
    finished: Path, tiny_backbone: Path
) -> None:
    file = finished / "run.json"
    before = file.read_text()
    run = json.loads(before)
    del run["config"]["data"]["decoder"]
    file.write_text(json.dumps(run))
    now = config(tiny_backbone)
    with pytest.raises(UserError, match=r"config.data.decoder \('exact' there, 'fast' here\)"):
        check_workdir(finished, now, run["fingerprint"], run["data"])
    exact = dataclasses.replace(now, data=dataclasses.replace(now.data, decoder="exact"))
    check_workdir(finished, exact, run["fingerprint"], run["data"])
    file.write_text(before)


def test_a_work_directory_of_another_backbone_is_refused(
    finished: Path, tmp_path: Path, tiny_backbone: Path
) -> None:
    import jax
    from flax import nnx

    from dinotxt_jax.inference.loading import load_vision_transformer
    from dinotxt_jax.models.layers import DTypes
    from dinotxt_jax.storage.model_directory import write_model_directory

    module, description = load_vision_transformer(tiny_backbone, DTypes())
    arrays = {"backbone": jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module)))}
    other = dataclasses.replace(description, fingerprint="0" * 64)
    write_model_directory(tmp_path / "other", other, arrays)
    with pytest.raises(UserError, match=r"was trained on the backbone .* but this run has 0000"):
        train(config(tmp_path / "other"), finished)


def test_bad_images_are_counted_in_the_metrics(tiny_backbone: Path, tmp_path: Path) -> None:
    train(config(tiny_backbone, data=jsonl(tmp_path, 1)), tmp_path / "run")
    assert read_metrics(tmp_path / "run/metrics.jsonl")[-1]["bad_images"] == 1


def test_a_storage_fault_while_reading_ends_the_run_with_the_storage_code(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault begins while the run is reading the images for about the fifth of 8 steps."""
    seldom = CheckpointConfig(every=100)
    run = config(tiny_backbone, data=jsonl(tmp_path, 0), checkpoint=seldom)
    original, images = Path.read_bytes, []

    def failing(path: Path) -> bytes:
        images.append(path)
        if path.suffix == ".png" and len(images) > 5 * 8:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(UserError, match=r"\.png: Input/output error; the storage failed") as end:
        train(run, tmp_path / "run")
    assert end.value.exit_code == STORAGE
    last = max(losses(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [str(last)]
    monkeypatch.setattr(Path, "read_bytes", original)
    train(run, tmp_path / "run")
    assert sorted(losses(tmp_path / "run")) == list(range(1, 9))


def test_too_many_bad_images_end_the_run_and_no_step_is_lost(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    run = config(tiny_backbone, data=jsonl(tmp_path, 12))
    with pytest.raises(UserError, match=r"config.data.max_bad_fraction = 0.05"):
        train(run, tmp_path / "run")
    last = max(losses(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [str(last)]
    changed = dataclasses.replace(run, data=dataclasses.replace(run.data, max_bad_fraction=1.0))
    train(changed, tmp_path / "run")
    assert sorted(losses(tmp_path / "run")) == list(range(1, 9))


def test_a_run_continues_only_on_the_same_data_unless_told_otherwise(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    run = config(tiny_backbone, data=jsonl(tmp_path, 0))
    train(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/8")
    lines = (tmp_path / "index.jsonl").read_text().splitlines()
    another_caption = lines[0].replace("noise", "sound")
    for changed, message in (
        (lines[::-1], "60 examples, but in another order or with other keys"),
        ([another_caption, *lines[1:]], "60 examples, but in another order .* or captions"),
        ([*lines, lines[0]], "60 examples there, 61 here"),
    ):
        (tmp_path / "index.jsonl").write_text("\n".join(changed))
        with pytest.raises(UserError, match=f"was trained on other data: {message}"):
            train(run, tmp_path / "run")
    accepting = dataclasses.replace(run, data=dataclasses.replace(run.data, accept_changed=True))
    train(accepting, tmp_path / "run")
    assert sorted(losses(tmp_path / "run")) == list(range(1, 9))


def test_a_second_run_in_a_work_directory_is_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    with pytest.raises(UserError, match="run is in use by another run"):
        train(config(tiny_backbone), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    lock.release()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "run.json",
            b"",
            r"run.json is not JSON .*, expected config and fingerprint",
        ),
        ("run.json", b"\xff\xfe", "run.json is not JSON"),
        ("run.json", b"[]", "run.json holds list, expected config and fingerprint of a run"),
        ("run.json", b"{}", "run.json lacks the run's config or fingerprint; restore it"),
        (
            "tokenizer/spec.json",
            b"",
            "spec.json is not JSON .* or remove .*tokenizer: the same",
        ),
        ("tokenizer/spec.json", b'{"kind": "bpe"}', "lacks context_length and sha256; restore"),
    ],
)
def test_damaged_files_of_a_run_are_sentences_and_stay(
    file: str, content: bytes, message: str, finished: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        train(config(tiny_backbone), workdir)
    assert (workdir / file).read_bytes() == content
    assert (workdir / "model/model.json").exists()


def test_a_failing_output_does_not_keep_the_last_checkpoint_from_being_written(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that fails at the end of a run, while the last save is still in progress."""

    def failing(_: MetricsWriter) -> None:
        raise OSError(errno.EIO, "the bucket is gone")

    monkeypatch.setattr(MetricsWriter, "close", failing)
    with pytest.raises(OSError, match="the bucket is gone"):
        train(config(tiny_backbone), tmp_path / "run")
    assert (tmp_path / "run/checkpoints/8/_CHECKPOINT_METADATA").exists()
    assert (tmp_path / "run/goodput.json").exists()
    assert not (tmp_path / "run/.lock").exists()
