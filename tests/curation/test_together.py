"""Several processes embed and cluster one pool; a killed run continues on another mesh."""

from __future__ import annotations

import time
from pathlib import Path

import commands
import numpy as np
import pytest
import several

from dinotxt_jax.curation.cluster_folder import ClusterFolder
from dinotxt_jax.curation.embeddings import Embeddings
from dinotxt_jax.data.kept import read_kept

POOL = (
    "--config.data.num_scenes=1500",
    "--config.data.image_size=42",
    "--config.data.resize=48",
    "--config.data.augmentation=center_crop",
)
IMAGE = (
    "--config.image.levels=(40, 5)",
    "--config.image.rounds=(0, 1)",
    "--config.image.iterations=20",
)


def run(*arguments: str) -> str:
    result = commands.run(["-m", *arguments], env=commands.environment(2))
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow  # eight processes that each compile
def test_processes_embed_and_cluster_together_and_one_continues(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    (tmp_path / "pool.py").write_text(
        "from dinotxt_jax.config import CurationConfig, to_config_dict\n"
        "def get_config():\n    return to_config_dict(CurationConfig())\n"
    )
    config = f"--config={tmp_path / 'pool.py'}"
    embed = ["dinotxt_jax.embed", f"--model={tiny_backbone}", config, *POOL]
    both = several.start(tmp_path / "logs1", 2, 2, ["-m", *embed, f"--output={tmp_path / 'both'}"])
    assert both.finish() == [0, 0], both.everything()
    assert "1500 examples are embedded." in both.output(0)
    assert "1500 examples are embedded." in run(*embed, f"--output={tmp_path / 'one'}")
    first, second = (Embeddings(tmp_path / name) for name in ("both", "one"))
    # The programs for one and two devices round differently; float16 has 11 bits.
    np.testing.assert_allclose(first.read(0, 1500), second.read(0, 1500), rtol=2**-10, atol=2e-3)

    cluster = ["dinotxt_jax.curate", "cluster", str(tmp_path / "both"), *POOL, *IMAGE]
    folder = tmp_path / "clusters"
    group = several.start(tmp_path / "logs2", 2, 2, ["-m", *cluster, f"--output={folder}"])
    while not (folder / "lloyd.npz").exists():
        assert all(process.poll() is None for process in group.processes), group.everything()
        time.sleep(0.01)
    group.kill()
    assert not (folder / "level2.npz").exists()
    assert "1500 examples are in 40, 5 clusters." in run(*cluster, f"--output={folder}")
    whole = several.start(
        tmp_path / "logs3", 2, 2, ["-m", *cluster, f"--output={tmp_path / 'whole'}"]
    )
    assert whole.finish() == [0, 0], whole.everything()
    assert "1500 examples are in 40, 5 clusters." in whole.output(0)
    for name in (folder, tmp_path / "whole"):
        below, above = ClusterFolder(name).levels()
        assert below.sizes.sum() == 1500
        assert above.sizes.sum() == (below.sizes > 0).sum()

    # In two stages: each process splits coarse clusters of its own, in groups of few points.
    stages = ["--config.image.coarse=4", "--config.image.memory_gib=1e-4"]
    staged = several.start(
        tmp_path / "logs5", 2, 2, ["-m", *cluster, *stages, f"--output={tmp_path / 'staged'}"]
    )
    assert staged.finish() == [0, 0], staged.everything()
    assert "1500 examples are in 40, 5 clusters." in staged.output(0)
    assert "1500 examples are in 40, 5 clusters." in run(
        *cluster, *stages, f"--output={tmp_path / 'alone'}"
    )
    first, second = (ClusterFolder(tmp_path / name).levels()[0] for name in ("staged", "alone"))
    # Coarse centroids round differently on four devices, which may move points on a border.
    assert (first.labels == second.labels).mean() > 0.9
    assert not list((tmp_path / "staged").glob("split*"))

    output = tmp_path / "list.npz"
    sample = ["dinotxt_jax.curate", "sample", str(folder), *POOL, "--config.target=200"]
    sampling = several.start(tmp_path / "logs4", 2, 1, ["-m", *sample, f"--output={output}"])
    assert sampling.finish() == [0, 0], sampling.everything()
    assert "200 examples are sampled" in sampling.output(0)
    assert "sampled" not in sampling.output(1)
    assert read_kept(output, "x").rows.counts(1500).sum() == 200
