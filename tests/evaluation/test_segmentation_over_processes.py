"""Segmentation tasks with several processes, which share the images and give one result."""

from __future__ import annotations

import json
from pathlib import Path

import block_masks
import jax
import pytest
from block_masks import CAPTIONS, WIDTHS, mesh_of, partial_work
from models import with_tokenizer
from several import found_by, joined

ALL = list(range(len(WIDTHS)))
SHARES = [ALL[0::2], ALL[1::2]]


@pytest.mark.slow  # half a minute: three processes, each of which compiles
@pytest.mark.parametrize(
    ("mesh", "reads", "stopped"),
    [
        ("fsdp", SHARES, "process 1 stopped: "),
        ("data", SHARES, "process 1 stopped: "),
        ("tensor", [ALL, ALL], ""),
    ],
)
def test_processes_share_the_images_and_give_the_result_of_one(
    mesh: str,
    reads: list[list[int]],
    stopped: str,
    tiny_dinotxt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes have 6 rows of a batch each, for 24 and 30 windows; one finishes first."""
    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path / "cache"))
    with_tokenizer(tiny_dinotxt, tmp_path / "model", CAPTIONS)
    block_masks.write(tmp_path, WIDTHS)
    (tmp_path / "mesh").write_text(mesh)
    first, second = found_by(joined(tmp_path, "segmented", 2, 2), tmp_path)
    four = mesh_of(mesh, jax.devices()[:4])
    alone = json.loads(json.dumps(block_masks.result_on(tmp_path, four, "alone.png")))
    assert alone["reads"] == ALL
    assert first["result"] == second["result"] == alone["result"]
    assert first["picture"] == alone["picture"]
    assert [first["reads"], second["reads"]] == reads
    one_image = block_masks.result_of_one_image(tmp_path, four)
    assert first["one_image"] == second["one_image"] == one_image
    assert first["failure"] == f"{stopped}5.png cannot be read."
    assert second["failure"] == "5.png cannot be read."
    # One process continues the work of the two.
    done = partial_work(tmp_path).load()["images"].tolist()
    assert 0 < len(done) < len(ALL)
    assert 5 not in done
    (tmp_path / f"{done[0]}.png").write_bytes(b"no image")  # finished photos are not read again
    rest = block_masks.result_of_the_rest(tmp_path, four)
    assert rest.metrics == alone["result"]["metrics"]
    assert rest.protocol == alone["result"]["protocol"]
