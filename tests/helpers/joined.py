"""The code that each process runs in `test_processes.py`; started by `several.start`."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import jax
import meshes
from absl import flags

from dinotxt_jax import UserError, cli
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.arrays import Checkpoints, load_arrays
from dinotxt_jax.storage.files import new_folder
from dinotxt_jax.training.checkpoints import save_state

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


def _body() -> None:
    folder = Path(_FOLDER.value)
    parts = (agreement, checkpoints, left_alone, told_to_end)
    result = {part.__name__: part for part in parts}[_PART.value](folder)
    (folder / f"found{jax.process_index()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    cli.run(_body)
