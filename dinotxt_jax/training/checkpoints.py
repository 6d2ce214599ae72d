"""Training checkpoints: the contents, and the check that a run may resume in a work directory."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool

from dinotxt_jax.config import Config, DataConfig, flatten
from dinotxt_jax.config.data import EXACT
from dinotxt_jax.data.identity import difference
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.arrays import Checkpoints
from dinotxt_jax.storage.checksums import changed_arrays, changed_clause, checksums
from dinotxt_jax.storage.faults import may_be_damaged, reason
from dinotxt_jax.storage.files import read_json, remove_abandoned, write_text
from dinotxt_jax.training.health import Health
from dinotxt_jax.training.step import TrainState

# Settings that may change when a run is resumed, because they do not change the computed results.
FREE_SETTINGS = (
    "config.attention",
    "config.backbone",
    "config.checkpoint.",
    "config.data.accept_changed",
    "config.data.image_root",
    "config.data.kept",
    "config.data.max_bad_fraction",
    "config.data.path",
    "config.data.prefetch",
    "config.data.threads",
    "config.data.workers",
    "config.evaluation.",
    "config.features",
    "config.include_backbone",
    "config.log_every",
    "config.loss.chunk",
    "config.max_nonfinite",
    "config.mesh.",
    "config.on_nonfinite",
    "config.profile",
    "config.remat",
    "config.text.pack",
    "config.text.trim",
    "config.tokenizer.vocabulary",
    "config.topology",
    "config.tracker",
    "config.tracker_project",
)


def stored_run(workdir: Address, cure: str) -> dict[str, Any]:
    """Reads run.json in a work directory.

    Raises:
        UserError: the file is damaged; `cure` is the advice in the message.
    """
    file = workdir / "run.json"
    stored = read_json(file, "config and fingerprint of a run", cure)
    if "fingerprint" not in stored or not isinstance(stored.get("config"), dict):
        raise UserError(f"{file} lacks the run's config or fingerprint; {cure}.")
    return stored


def check_workdir(
    workdir: Address, config: Config, fingerprint: str, identity: Mapping[str, Any]
) -> None:
    """Raises `UserError` if `workdir` contains a run with another backbone, config or data.

    Args:
        workdir: the work directory, which need not exist.
        config: the config for the run to start or resume there.
        fingerprint: the backbone's fingerprint.
        identity: the training data's `data_identity`.
    """
    if not (workdir / "run.json").exists():
        return
    stored = stored_run(
        workdir,
        "restore it, give another --workdir, or remove it if the run there had the same config, "
        "backbone and data",
    )
    if stored["fingerprint"] != fingerprint:
        raise UserError(
            f"{workdir} was trained on the backbone {stored['fingerprint'][:12]}, but this run has "
            f"{fingerprint[:12]}; give that backbone or another --workdir."
        )
    # Convert through JSON, so that tuples compare equal to the lists stored for them.
    now = flatten(json.loads(json.dumps(dataclasses.asdict(config))))
    # Settings that are younger than the stored run count as having the default value. The exception
    # is the decoder: older runs used the exact decoder, which is not the default.
    defaults = Config(data=DataConfig(decoder=EXACT))
    before = flatten(json.loads(json.dumps(dataclasses.asdict(defaults)))) | flatten(
        stored["config"]
    )
    changed = [
        f"{key} ({before.get(key)!r} there, {now.get(key)!r} here)"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _is_free(key)
    ]
    if changed:
        raise UserError(
            f"{workdir} was trained with another config: {', '.join(changed)}; use those settings "
            "or another --workdir."
        )
    changes = difference(stored["data"], identity) if "data" in stored else ""
    if changes and not config.data.accept_changed:
        raise UserError(
            f"{workdir} was trained on other data: {changes}; restore the data, give another "
            "--workdir, or continue on the new data with --config.data.accept_changed=True."
        )


def claim_workdir(
    workdir: Address, config: Config, fingerprint: str, identity: Mapping[str, Any]
) -> None:
    """Writes `run.json`, which identifies the run that owns the directory.

    Also removes leftovers from a killed export.

    Raises:
        UserError: another process does not see `run.json`.
    """
    run = {"fingerprint": fingerprint, "data": identity, "config": dataclasses.asdict(config)}
    if processes.is_first():
        write_text(workdir / "run.json", json.dumps(run, indent=2) + "\n")
        remove_abandoned(workdir / "model")
    processes.check_shared(workdir / "run.json")


def _is_free(key: str) -> bool:
    # The same settings are free for each source in a mixture as for a single source.
    key = re.sub(r"^config\.data\.mixture\..+\.", "config.data.", key)
    return any(key == free or (free[-1] == "." and key.startswith(free)) for free in FREE_SETTINGS)


def save_state(checkpoints: Checkpoints, state: TrainState, positions: Mapping[str, Any]) -> None:
    """Starts saving a state and the matching positions.

    Args:
        checkpoints: the run's checkpoints.
        state: the state after `state.step` updates.
        positions: plain JSON: the data iterator's state, the bad image count, and the seed that,
            together with the step, determines every random key.
    """
    parts = {"trainable": state.trainable, "optimizer": state.optimizer}
    checkpoints.save(int(state.step), parts, {**positions, _CHECKSUMS: checksums(parts)})


_CHECKSUMS = "checksums"


def restore_newest(
    checkpoints: Checkpoints, abstract: TrainState
) -> tuple[TrainState, dict[str, Any]] | None:
    """Restores the newest intact checkpoint, or returns None if nothing was saved.

    Damaged newer checkpoints are renamed. All processes must call this function, and all choose the
    same checkpoint.

    Returns:
        The state and the saved positions.

    Raises:
        UserError: there are checkpoints, but all are damaged; nothing is deleted or renamed.
    """
    damaged: dict[int, str] = {}
    for step in checkpoints.steps():
        problem, restored = "", None
        try:
            restored = restore_state(checkpoints, step, abstract)
        except Exception as error:
            if not may_be_damaged(error):
                raise
            problem = reason(error)
        problems = [text for text in processes.gathered_texts(problem) if text]
        if restored is not None and not problems:
            for newer, why in damaged.items():
                aside = checkpoints.set_aside(newer)
                if processes.is_first():
                    logging.warning(
                        "the checkpoint of step %d is damaged (%s): it was renamed to %s, and the "
                        "run continues from step %d",
                        newer,
                        why,
                        aside,
                        step,
                    )
            return restored
        damaged[step] = problems[0]
    if damaged:
        newest, why = next(iter(damaged.items()))
        raise processes.CommonError(
            f"none of the {len(damaged)} checkpoints of this run can be read (step {newest}: "
            f"{why}), expected at least one intact checkpoint; nothing was deleted: restore a "
            "checkpoint, or start again with another --workdir."
        )
    return None


def restore_state(
    checkpoints: Checkpoints, step: int, abstract: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state and the positions saved at `step`; each device reads only its shards.

    Raises:
        UserError: the arrays differ from the saved checksums, or are not finite; the text is a
            clause about the checkpoint, for `restore_newest`.
    """
    mesh = cast(Mesh, cast(NamedSharding, abstract.step.sharding).mesh)
    parts, notes = checkpoints.load(
        step, {"trainable": abstract.trainable, "optimizer": abstract.optimizer}
    )
    stored = notes.pop(_CHECKSUMS, None)  # older checkpoints have no checksums
    if stored is not None and (changed := changed_arrays(parts, stored)):
        raise UserError(changed_clause(changed))
    if not _all_finite(parts["trainable"]):
        raise UserError("it holds values that are not finite")
    counter = processes.placed(np.asarray(step, abstract.step.dtype), abstract.step.sharding)
    health = Health.initial(mesh, notes.get("nonfinite_steps", 0))
    return TrainState(counter, parts["trainable"], parts["optimizer"], health), notes


@jax.jit
def _all_finite(tree: Any) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))
