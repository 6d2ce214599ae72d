"""The code that each process runs in tests of several processes; started by `several.start`."""

from __future__ import annotations

import json
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import block_masks
import jax
import meshes
import numpy as np
import small_states
from absl import flags
from small_runs import HELD_OUT

import dinotxt_jax as dt
from dinotxt_jax import UserError, cli, sharding
from dinotxt_jax.config import TaskConfig
from dinotxt_jax.data import evaluation_batches
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Example
from dinotxt_jax.data.masks import MaskFiles
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.evaluation.embedding import embed_source
from dinotxt_jax.evaluation.jobs import Job
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.exchange import ClosedError, Exchange
from dinotxt_jax.storage.arrays import Checkpoints, load_arrays
from dinotxt_jax.storage.files import new_folder
from dinotxt_jax.training.checkpoints import restore_newest, save_state

_FOLDER = flags.DEFINE_string("folder", None, "Of the test.", required=True)
_PART = flags.DEFINE_string("part", None, "What to do.", required=True)
cli.define_process_flags()


def agreement(folder: Path) -> dict[str, Any]:
    """Checks that numbers, texts and failures from one process reach the others."""
    me = jax.process_index()
    result: dict[str, Any] = {
        "numbers": processes.gathered([me, 10 + me]).tolist(),
        "texts": processes.gathered_texts("ä" * (me + 1)),
        "first_says": processes.first_says(me == 0),
        "errors": [],
    }

    def failing(who: int) -> None:
        with processes.together():
            if me == who:
                raise UserError(f"{who} has failed.")

    processes.PATIENCE = 0.5
    if processes.is_first():
        (folder / "own0").mkdir()
        (folder / "own0" / "run.json").write_text("{}")
    attempts = (
        lambda: failing(0),
        lambda: failing(1),
        lambda: processes.check_same({"same": 1, "seed": me}),
        lambda: processes.check_shared(folder / f"own{me}" / "run.json"),
    )
    for attempt in attempts:
        try:
            attempt()
        except processes.CommonError as error:
            result["errors"].append(str(error))
    exchange, later = Exchange(), Exchange()
    result["exchanged"] = [exchange.gathered([number, "ä" * me]) for number in range(3)]
    result["exchanged"].append(later.gathered({"me": me}))
    if me == 0:  # nobody answers any more
        threading.Timer(0.2, exchange.close).start()
        try:
            exchange.gathered(0)
        except ClosedError:
            result["closed"] = True
    with new_folder(folder / "one") as new:
        (new / f"of{me}").write_text("here")
    result["one"] = sorted(file.name for file in (folder / "one").iterdir())
    return result


def checkpoints(folder: Path) -> dict[str, Any]:
    """Restores a checkpoint saved by one process, records the local shards, and saves it again."""
    of = folder / "checkpoints"
    state, positions = meshes.restored(of, "2x4")
    kept = Checkpoints(folder / "again", 1)
    save_state(kept, state, positions)
    kept.close()
    abstract = {"large": meshes.large("1x8")}
    array = load_arrays(folder / "large", {"arrays": abstract})["arrays"]["large"]
    return {
        "fingerprint": meshes.stored_fingerprint(state),
        "positions": positions,
        "has_sharding": meshes.has_sharding(state, "2x4"),
        "large_shards": [list(shard.data.shape) for shard in array.addressable_shards],
        "losses": meshes.steps("2x4", state, 2)[1],
        "losses_of_shared_rows": meshes.steps("1x1x8", meshes.restored(of, "1x1x8")[0], 2)[1],
    }


def fallback(folder: Path) -> dict[str, Any]:
    """Restores the newest whole checkpoint saved by one process."""
    restored = restore_newest(Checkpoints(folder / "checkpoints", 4), small_states.abstract())
    assert restored is not None
    expected = small_states.state(1).trainable["rows"]
    rows = zip(
        restored[0].trainable["rows"].addressable_shards, expected.addressable_shards, strict=True
    )
    for actual, shard in rows:
        np.testing.assert_array_equal(actual.data, shard.data)
    return {"step": int(restored[0].step), "positions": restored[1]}


def no_room(folder: Path) -> dict[str, Any]:
    """Saves two checkpoints; process 0 has no room for the second one."""
    kept = Checkpoints(folder / "checkpoints", 2)
    save_state(kept, small_states.state(1), {})
    kept.wait()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if processes.is_first():  # half of the bytes of the rows that the process writes
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))
    try:
        save_state(kept, small_states.state(2), {})
        save_state(kept, small_states.state(3), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    return {}


def left_alone(_: Path) -> dict[str, Any]:
    """Raises an error in process 1 while the other processes wait for data from process 1."""
    processes.wait()
    if jax.process_index() == 1:
        raise UserError("only process 1 knows of this; correct it.")
    return {"never": processes.gathered([0]).tolist()}


def told_to_end(_: Path) -> dict[str, Any]:
    """Sends SIGTERM to process 1, which does not handle it."""
    processes.wait()
    if jax.process_index() == 1:
        signal.raise_signal(signal.SIGTERM)
    return {"never": processes.gathered([0]).tolist()}


def shares(folder: Path) -> dict[str, Any]:
    """Embeds a set of images over a mesh of both processes, and records what each one reads."""
    reads: list[int] = []
    decode = evaluation_batches.decoded_image

    def counting(example: Example, limit: int | None) -> Any:
        reads.append(int(example.key.rpartition("-")[2]))
        if reads.count(reads[-1]) > 1 and jax.process_index() == 1:
            raise BadImageError("it is damaged now")
        return decode(example, limit)

    evaluation_batches.decoded_image = counting
    task = TaskConfig(data=HELD_OUT)
    mesh = sharding.make_mesh(data=2, fsdp=2)
    model = dt.load(folder / "model", mesh=mesh)
    features = embed_source(Job(model, "scenes", task, open_source(task.data), 10))
    if processes.is_first():
        np.save(folder / "features.npy", features)
    once, failure = sorted(reads), ""
    try:  # process 1 finds its first image damaged
        embed_source(Job(model, "scenes", task, open_source(task.data), 10))
    except processes.CommonError as error:
        failure = str(error)
    return {"reads": once, "failure": failure}


def segmented(folder: Path) -> dict[str, Any]:
    """Evaluates segmentation on a mesh of both processes, and ends early in one process."""
    mesh = block_masks.mesh_of((folder / "mesh").read_text())
    result = block_masks.result_on(folder, mesh, "shared.png")
    result["one_image"] = block_masks.result_of_one_image(folder, mesh)
    load = MaskFiles.load

    def damaged(self: MaskFiles, index: int) -> Any:
        if index == 5:  # only process 1 reads it on most meshes, after other photos
            raise UserError("5.png cannot be read.")
        return load(self, index)

    MaskFiles.load = damaged
    try:
        block_masks.result_of_the_rest(folder, mesh)
    except processes.CommonError as error:
        result["failure"] = str(error)
    return result


def _body() -> None:
    folder = Path(_FOLDER.value)
    parts = (agreement, checkpoints, fallback, no_room, left_alone, told_to_end, shares, segmented)
    result = {part.__name__: part for part in parts}[_PART.value](folder)
    (folder / f"found{jax.process_index()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    cli.run(_body)
