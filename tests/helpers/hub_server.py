"""A repository on a model hub, as files of the web server of `tests/conftest.py`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from safetensors.numpy import save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # served by tests/conftest.py


def served_repository(web: Any, arrays: dict[str, np.ndarray], config: dict) -> dict[str, str]:
    """Serves `someone/model` as the hub does; returns environment variables that point to it."""
    folder = web.folder / f"someone/model/resolve/{COMMIT}"
    folder.mkdir(parents=True)
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("not needed")
    files = sorted(folder.iterdir())
    siblings = [{"rfilename": file.name} for file in files]
    tree = [
        {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files
    ]
    answers = {
        "revision/main": {"id": "someone/model", "sha": COMMIT, "siblings": siblings},
        f"tree/{COMMIT}": tree,  # requested by newer library versions
    }
    for place, answer in answers.items():
        file = web.folder / "api/models/someone/model" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(answer))
    return {"HF_ENDPOINT": web.root, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
