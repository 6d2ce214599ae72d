"""Model directories in buckets: whole or absent at any time, although nothing can be renamed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from stored import stored_tree

import dinotxt_jax as dt
from dinotxt_jax.storage import model_directory
from dinotxt_jax.storage.addresses import Address, create
from dinotxt_jax.storage.files import new_file
from dinotxt_jax.storage.model_directory import (
    read_description,
    write_model_directory,
)
from weights_convert.convert import convert
from weights_convert.describe import describe
from weights_convert.export import export
from weights_convert.settings import Settings


@pytest.fixture
def arrays(tiny_backbone: Path) -> dict[str, Any]:
    return stored_tree(tiny_backbone)


def contents(folder: Address) -> list[str]:
    """Returns the names of the folders with arrays, also of unfinished ones."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name != "model.json")


def test_a_model_in_a_bucket_equals_the_local_one(
    tiny_backbone: Path, arrays: dict[str, Any], bucket: Address
) -> None:
    local = read_description(tiny_backbone)
    write_model_directory(bucket / "model", local, arrays)
    stored = read_description(bucket / "model")
    assert stored.content in contents(bucket / "model")
    assert dataclasses.replace(stored, content="") == local
    images = np.ones((1, 98, 98, 3), np.float32)
    outputs = [dt.load_backbone(path)(images) for path in (tiny_backbone, str(bucket / "model"))]
    jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_a_model_is_replaced_only_when_the_new_one_is_whole(
    tiny_backbone: Path, arrays: dict[str, Any], bucket: Address
) -> None:
    description = read_description(tiny_backbone)
    write_model_directory(bucket / "model", description, arrays)
    first = contents(bucket / "model")
    with pytest.raises(dt.UserError, match="exists already"):
        write_model_directory(bucket / "model", description, arrays)

    def fail(folder: Address) -> None:
        (folder / "tokenizer.json").write_text("{}")
        raise RuntimeError("the storage failed")

    with pytest.raises(RuntimeError, match="the storage failed"):
        write_model_directory(
            bucket / "model", description, arrays, overwrite=True, write_tokenizer=fail
        )
    assert contents(bucket / "model") == first
    dt.load_backbone(str(bucket / "model"))
    write_model_directory(bucket / "model", description, arrays, overwrite=True)
    assert len(contents(bucket / "model")) == 1
    assert contents(bucket / "model") != first
    dt.load_backbone(str(bucket / "model"))


def test_what_a_killed_process_left_is_never_read_and_is_removed(
    tiny_backbone: Path,
    arrays: dict[str, Any],
    bucket: Address,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    description = read_description(tiny_backbone)
    with monkeypatch.context() as patch:
        patch.setattr(model_directory, "remove_folder", lambda _: None)  # no time to clean up
        with pytest.raises(KeyboardInterrupt):
            write_model_directory(bucket / "model", description, arrays, write_tokenizer=_interrupt)
    assert len(contents(bucket / "model")) == 1
    with pytest.raises(dt.UserError, match=r"is not a model directory \(no model\.json in it\)"):
        read_description(bucket / "model")
    monkeypatch.setattr(model_directory, "_ABANDONED_AFTER", -1)  # a day later
    write_model_directory(bucket / "model", description, arrays)
    assert contents(bucket / "model") == [read_description(bucket / "model").content]


def _interrupt(_: Address) -> None:
    raise KeyboardInterrupt


def test_a_checkpoint_is_converted_from_a_bucket_into_a_bucket_and_exported_there(
    goldens: Path, tiny_backbone: Path, bucket: Address
) -> None:
    content = (goldens / "backbones/dinov2_tiny_reg.pth").read_bytes()
    (bucket / "dinov2.pth").write_bytes(content)
    source, model = str(bucket / "dinov2.pth"), bucket / "model"
    convert([source], model, settings=Settings(num_heads=4), show_progress=False)
    assert read_description(model).fingerprint == read_description(tiny_backbone).fingerprint
    assert f"{model}: model directory" in describe(str(model), Settings())
    export(model, bucket / "again.safetensors", show_progress=False)
    settings = Settings(num_heads=4)
    convert(
        [str(bucket / "again.safetensors")], bucket / "b", settings=settings, show_progress=False
    )
    assert read_description(bucket / "b").fingerprint == read_description(model).fingerprint


def test_a_file_in_a_bucket_appears_only_if_the_block_succeeds(bucket: Address) -> None:
    def fail() -> None:
        with new_file(bucket / "a.txt") as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (bucket / "a.txt").exists()
    with new_file(bucket / "a.txt") as partial:
        partial.write_text("whole")
        assert partial.suffix == ".txt"
    assert (bucket / "a.txt").read_text() == "whole"
    create(bucket / "folder/a", "")
    with pytest.raises(dt.UserError, match="folder is a folder"), new_file(bucket / "folder"):
        pass


def test_two_writers_leave_one_whole_model(
    tiny_backbone: Path, arrays: dict[str, Any], bucket: Address
) -> None:
    """As when a launcher converts on all hosts of a pod: neither removes what the other fills."""
    description = read_description(tiny_backbone)
    target = bucket / "model"
    with model_directory.new_model_directory(target) as first:
        model_directory.save_arrays(first / model_directory.ARRAYS, arrays)
        write_model_directory(target, description, arrays)
        sums = model_directory.checksums(dict(arrays))
        described = dataclasses.replace(description, checksums=sums)
        model_directory.write_description(first, described)
    assert contents(target) == [read_description(target).content]
    images = np.ones((1, 98, 98, 3), np.float32)
    outputs = [dt.load_backbone(path)(images) for path in (tiny_backbone, str(target))]
    jax.tree.map(np.testing.assert_array_equal, *outputs)
