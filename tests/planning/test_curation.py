"""Plans of a curation: the hierarchy, work that grows with the pairs, files and mistakes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import commands
import jax
import numpy as np
import pytest

from dinotxt_jax.config import CurationConfig, DataConfig
from dinotxt_jax.config.curation import CurationPlanConfig
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.planning import curation
from dinotxt_jax.planning.compiling import Target
from dinotxt_jax.planning.curation import compiled_plans, hierarchy, plan_curation
from dinotxt_jax.planning.curation_rates import CoreRates, measured_rates
from dinotxt_jax.runtime.chips import CHIPS

RATES = CoreRates(1000, 36_000.0, 72_000.0, 5.0, 100.0, 50_000.0)
TARGET = Target("pretend:2", CHIPS["v5p"], jax.devices()[:2])


def config(backbone: Path, *pairs: int) -> CurationConfig:
    data = DataConfig(num_scenes=20, image_size=56, resize=56)
    plan = CurationPlanConfig(pairs=pairs, backbone=str(backbone))
    return CurationConfig(data=data, plan=plan)


def test_the_hierarchy_of_the_recipe_is_scaled() -> None:
    assert hierarchy(2_300_000_000) == ((20_000_000, 800_000, 80_000), 100_000)
    assert hierarchy(1000) == ((8, 1, 1), 1)
    assert hierarchy(1) == ((1, 1, 1), 1)


def test_work_grows_with_the_pairs_as_the_algorithm_does(tiny_backbone: Path) -> None:
    settings = config(tiny_backbone, 100_000, 400_000)
    small, large = compiled_plans(settings, TARGET, RATES)
    assert small.levels == (869, 34, 3)
    # Cores: the measured rates. Bytes: two per element, one bit per pair.
    assert small.figures["matching, core-hours"] == pytest.approx(100_000 / 36_000 / 3600)
    assert small.figures["images read, bytes"] == 5e9
    assert small.figures["list, bytes"] == 12_500
    width = small.figures["embeddings, bytes"] / 2 / 100_000
    names = ["embedding", "coarse clusters", "split", "level 2", "level 3"]
    assert [work.name for work in small.programs] == names
    embed, coarse, *_ = small.programs
    assert large.programs[0].hours(2) == pytest.approx(4 * embed.hours(2))
    # A Lloyd step takes 2 n k d FLOPs for distances; 50 of them and the last assignment.
    products = 51 * 2 * 100_000 * small.coarse * width
    assert products <= coarse.runs * coarse.flops <= 1.6 * products
    assert all(np.isfinite(work.hours(2)) and work.memory.fits for work in small.programs)
    assert large.coarse == 4 * small.coarse + 1
    growth = large.programs[1].runs * large.programs[1].flops / (coarse.runs * coarse.flops)
    assert 12 < growth < 24  # four times the points, and 17 clusters instead of 4


def test_rates_are_measured_on_the_pool_and_the_metadata(tmp_path: Path) -> None:
    data = DataConfig(num_scenes=20, image_size=32, resize=32)
    source = open_source(data)
    words = sorted({word for index in range(20) for word in source.captions(index)[0].split()})
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n")
    rates = measured_rates(source, data, str(tmp_path / "words.txt"))
    assert rates.entries == len(words)
    assert rates.matches > 2
    assert min(rates.matching, rates.drawing, rates.decoding) > 10
    assert rates.image_bytes == 0  # scenes are drawn


def test_a_plan_is_written_as_a_table_or_as_json(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curation, "target", lambda name: TARGET)
    monkeypatch.setattr(curation, "measured_rates", lambda *arguments: RATES)
    monkeypatch.setattr(curation, "keep_from_devices", lambda: None)
    settings = config(tiny_backbone, 100_000)
    text = plan_curation(settings, [], tmp_path / "plan.md")
    assert (tmp_path / "plan.md").read_text() == text + "\n"
    assert "| clusters per level | 869, 34, 3 |" in text
    assert "| images read, bytes | 5 GB |" in text
    plan_curation(settings, [], tmp_path / "plan.json")
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["chips"] == 2
    assert written["plans"][0]["chip_hours"].keys() == {
        *("embedding", "coarse clusters", "split", "level 2", "level 3")
    }
    for output, arguments, message in (
        ("plan.txt", [], r"plan.txt is neither NAME.json nor NAME.md; correct it"),
        ("plan.md", ["a", "b"], r"2 paths are given, expected at most the metadata"),
    ):
        with pytest.raises(UserError, match=message):
            plan_curation(settings, arguments, tmp_path / output)
    nothing = dataclasses.replace(settings, plan=CurationPlanConfig(topology="v7:4x4"))
    monkeypatch.undo()
    with pytest.raises(UserError, match="the TPU kind 'v7' is unknown"):
        curation.target(nothing.plan.topology)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--pairs=many"], "--pairs=many is no list of numbers, expected some such as"),
        (["plan", "--pairs=0"], "config.plan.pairs[0] is 0, expected"),
        (["report", "--pairs=5"], "--pairs is given, but report reads the pool; remove --pairs"),
        (["plans"], "'plans' is not a step of curate; did you mean plan?"),
    ],
)
def test_mistakes_in_the_command_end_in_a_sentence(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    command = ["-m", "dinotxt_jax.curate", *arguments, f"--output={tmp_path / 'plan.md'}"]
    result = commands.run(command)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU's compiler, is missing"
)
def test_the_command_compiles_billions_of_pairs_for_a_pod(tmp_path: Path) -> None:
    done = commands.run(
        [
            *("-m", "dinotxt_jax.curate", "plan", "--pairs=2.3e9", "--output=plan.md"),
            *("--config.plan.backbone=dinov2_vits14", "--config.plan.topology=v5e:4x4"),
            *("--config.data.num_scenes=64", "--config.workers=1"),
        ],
        cwd=tmp_path,
        env=commands.environment(JAX_PLATFORMS="cpu"),
        timeout=1200,
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "plan.md").read_text()
    assert "2,300,000,000" in page
    assert "sums added over devices per step" in page
