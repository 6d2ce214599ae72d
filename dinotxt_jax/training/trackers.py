"""Experiment trackers: Weights & Biases, or trackio, which has the same interface."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from dinotxt_jax.config import Config
from dinotxt_jax.config.training import NO_TRACKER
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import read_json, write_text

TRACKER_FILE = "tracker.json"


def check_tracker(name: str) -> None:
    """Raises `UserError` if the tracker that `config.tracker` names is not installed."""
    if name != NO_TRACKER and importlib.util.find_spec(name) is None:
        raise UserError(
            f"config.tracker={name} needs {name}, which is not installed; run pip install {name}, "
            f"or set config.tracker={NO_TRACKER}."
        )


class Tracker:
    """Sends metrics to a tracker; a resumed run continues under the same name.

    If the tracker fails during the run, for example after losing the connection, the run continues
    without it, with a warning.

    Args:
        config: the run's config; `config.tracker` is not "none".
        workdir: stores the run ID in `tracker.json`.
        folder: local folder for the tracker's files.
        title: the run's name.

    Raises:
        UserError: the tracker does not start, for example because the user is not logged in.
    """

    def __init__(self, config: Config, workdir: Address, folder: Path, title: str):
        self._name = config.tracker
        run_id = _run_id(workdir)
        module: Any = importlib.import_module(self._name)
        settings: dict[str, Any] = {
            "project": config.tracker_project,
            "config": dataclasses.asdict(config),
            "resume": "allow",
        }
        if self._name == "wandb":
            settings |= {"id": run_id, "name": title, "dir": str(folder)}
        else:  # trackio identifies runs by name
            settings |= {"name": f"{title}-{run_id}"}
        try:
            self._run: Any = module.init(**settings)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"config.tracker={self._name} does not start ({reason[:300]}); log in, set "
                f"{self._name.upper()}_MODE=offline, or set config.tracker={NO_TRACKER}."
            ) from error
        self._log = module.log
        self._finish = module.finish

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the metrics at a step."""
        self._try(lambda: self._log(dict(values), step=step))

    def close(self) -> None:
        """Ends the connection."""
        self._try(self._finish)

    def _try(self, action: Any) -> None:
        if self._run is None:
            return
        try:
            action()
        except Exception as error:
            self._run = None
            logging.warning("%s failed and receives no more metrics: %s", self._name, error)


def _run_id(workdir: Address) -> str:
    """Returns the run ID in a work directory, which is drawn at the first start."""
    file = workdir / TRACKER_FILE
    stored = read_json(file, "the id of a run", "remove it") if file.exists() else {}
    if isinstance(stored.get("id"), str) and stored["id"]:
        return stored["id"]
    run_id = uuid.uuid4().hex[:12]
    write_text(file, json.dumps({"id": run_id}) + "\n")
    return run_id
