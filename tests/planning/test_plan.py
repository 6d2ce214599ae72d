"""Plans of a small run on simulated devices: numbers, memory overflow, files and errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import commands
import jax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image
from small_runs import config as small_config

from dinotxt_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    HeadTrainingConfig,
    MeshConfig,
    SegmentationConfig,
    TaskConfig,
    TextTrainingConfig,
    to_config_dict,
)
from dinotxt_jax.errors import UserError
from dinotxt_jax.planning.abstract import (
    abstract_run,
    assumed_lengths,
    backbone_description,
    device_bytes,
    packed_rows,
)
from dinotxt_jax.planning.compiling import Compiled, Memory, Target, asked_bytes
from dinotxt_jax.planning.costs import Collective
from dinotxt_jax.planning.encoders import EncoderPlan, image_sizes
from dinotxt_jax.planning.estimates import Plan, Work, plan_step
from dinotxt_jax.planning.picture import memory_by_part
from dinotxt_jax.planning.proposals import candidates, changed, propose
from dinotxt_jax.planning.report import as_json, described, described_encoders
from dinotxt_jax.planning.run import named_targets, plan
from dinotxt_jax.runtime.chips import CHIPS, GIB
from dinotxt_jax.runtime.flops import matmul_flops

CHIP = dataclasses.replace(CHIPS["v6e"], usable=1 * GIB)


def target(devices: int = 8, usable: float = CHIP.usable) -> Target:
    chip = dataclasses.replace(CHIP, usable=usable)
    return Target(f"pretend:{devices}", chip, jax.devices()[:devices])


def small(backbone: Path) -> Config:
    # Drop path draws among 32 examples, which here would be spread over several devices.
    return small_config(
        backbone,
        batch_size=32,
        head=HeadTrainingConfig(drop_path=0.0),
        text=TextTrainingConfig(width=32, depth=2, num_heads=2, pack=True),
        mesh=MeshConfig(fsdp=2),
    )


@pytest.fixture
def config(tiny_backbone: Path) -> Config:
    return small(tiny_backbone)


@pytest.fixture(scope="module")
def compiled(tiny_backbone: Path) -> Plan:
    return plan_step(small(tiny_backbone), target(), caption_tokens=20)


def test_bytes_of_a_device_follow_from_shardings() -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    tree = {
        "split": jax.ShapeDtypeStruct((8, 6), "float32", sharding=NamedSharding(mesh, P("a", "b"))),
        "whole": jax.ShapeDtypeStruct((5,), "bfloat16", sharding=NamedSharding(mesh, P())),
    }
    assert device_bytes(tree) == 4 * 2 * 3 + 2 * 5


def test_a_plan_has_the_memory_of_the_step(compiled: Plan) -> None:
    parts = compiled.parts
    # Two moments, and the step counters of Adam and of the schedule.
    assert parts["optimizer"] == 2 * parts["trainable"] + 8
    assert parts["batch"] >= 4 * 56 * 56 * 3
    # In addition to the parts: the step number; minus arrays that no step reads, such as the mask
    # token.
    assert compiled.memory.arguments == pytest.approx(sum(parts.values()), rel=1e-3)
    assert compiled.memory.temporaries > 0
    assert compiled.memory.fits
    assert (compiled.mesh["data"], compiled.mesh["fsdp"]) == (4, 2)


def test_flops_traced_and_flops_compiled_agree(compiled: Plan) -> None:
    assert compiled.work is not None
    assert compiled.work.unknown_loops == 0
    assert 8 * compiled.work.flops == pytest.approx(compiled.traced_flops, rel=0.05)
    assert compiled.work.hbm_bytes > compiled.memory.arguments
    axes = {row.axes for row in compiled.work.collectives}
    assert "fsdp" in axes
    assert axes <= {"data", "fsdp", "data+fsdp"}


def test_packing_makes_the_planned_step_cheaper(config: Config) -> None:
    def flops(changes: dict[str, Any], tokens: float) -> float:
        run = abstract_run(changed(config, changes), jax.devices(), tokens)
        with jax.set_mesh(run.mesh):
            return matmul_flops(run.trainer.train_step, *run.arguments.values())

    whole = flops({"text.pack": False}, 20)
    assert flops({}, 8) < flops({}, 60) <= whole


def test_assumed_captions_have_the_requested_mean_length() -> None:
    lengths = assumed_lengths(77, 20)
    assert lengths.mean() == pytest.approx(20, rel=0.05)
    assert (lengths.min() >= 3, lengths.max() <= 77) == (True, True)
    rows = packed_rows(256, 256, 77, 20)
    assert 256 * 20 / 77 < rows < 1.3 * 256 * 20 / 77
    with pytest.raises(UserError, match="--caption_tokens=90 is not a possible mean"):
        packed_rows(256, 256, 77, 90)


def work(**bytes_sent: float) -> Work:
    rows = tuple(Collective("all-gather", axis, 1, sent) for axis, sent in bytes_sent.items())
    return Work(flops=918e12, hbm_bytes=0.5 * 1638e9, collectives=rows, unknown_loops=0)


def test_estimates_follow_from_peak_rates(compiled: Plan) -> None:
    one = dataclasses.replace(
        compiled, work=work(data=100e9, fsdp=100e9), pairs_per_step=64, steps=3600
    )
    assert one.seconds == pytest.approx({"compute": 1.0, "hbm": 0.5, "ici": 0.5})
    assert (one.bound, one.step_seconds(), one.step_seconds(0.5)) == ("compute", 1.0, 2.0)
    assert (one.pairs_per_second(0.5), one.chip_hours(0.5)) == (32.0, 16.0)
    far = Collective("all-reduce", "data", 1, 80e9, dcn_bytes=25e9)
    slices = dataclasses.replace(one.target, slices=2)
    split = dataclasses.replace(
        one, target=slices, work=dataclasses.replace(work(), collectives=(far,))
    )
    assert split.seconds["dcn"] == pytest.approx(2.0)
    assert split.seconds["ici"] == pytest.approx(55 / 400)
    # Two devices on a chip share the chip's rates.
    double = dataclasses.replace(one.target, chip=dataclasses.replace(CHIP, devices=2))
    shared = dataclasses.replace(one, target=double)
    assert (shared.seconds["compute"], shared.target.chips) == (2.0, 4)


def test_a_report_says_where_its_numbers_come_from(compiled: Plan) -> None:
    text = "\n".join(described(compiled))
    for part in ("from the compiler", "estimated at 50%", "chip-hours for 8 steps", "headroom"):
        assert part in text
    hours = compiled.chip_hours(0.5)
    assert f"8 steps, {1e9 * hours:,.0f} by --price" in "\n".join(described(compiled, 1e9))
    assert as_json(compiled, 2.0)["estimated"]["at_50%"]["price"] == 2.0 * hours
    stored = json.loads(json.dumps(as_json(compiled)))
    assert stored["compiled"]["memory_bytes_per_device"]["peak"] == compiled.memory.peak
    assert stored["traced"]["flops_all_devices"] == compiled.traced_flops
    assert stored["estimated"]["at_50%"]["pairs_per_second"] == compiled.pairs_per_second(0.5)
    assert stored["fits"] is True


def test_memory_by_part_adds_up(compiled: Plan) -> None:
    assert sum(memory_by_part(compiled).values()) == pytest.approx(compiled.memory.peak)
    refused = Memory(0, 0, 0, 0, limit=GIB, refused=3 * GIB)
    small = dataclasses.replace(compiled, memory=refused, work=None)
    assert sum(memory_by_part(small).values()) == 3 * GIB
    assert "does not fit: needs 3.00, available 1.00" in "\n".join(described(small))


def test_a_step_that_does_not_fit_gets_a_compiled_proposal(
    config: Config,
    compiled: Plan,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = compiled.memory.peak - 1
    too_little = dataclasses.replace(
        compiled, memory=dataclasses.replace(compiled.memory, limit=limit)
    )
    monkeypatch.setattr("dinotxt_jax.planning.run.plan_step", lambda *_: too_little)
    fits = plan(config, [target(8, limit)], caption_tokens=20, output=tmp_path / "out", proposals=2)
    printed = capsys.readouterr().out
    assert not fits
    stored = json.loads((tmp_path / "out/plan.json").read_text())
    assert stored["plans"][0]["fits"] is False
    (proposal,) = stored["proposals"]
    assert proposal["plan"]["fits"] is True
    assert proposal["plan"]["compiled"]["memory_bytes_per_device"]["peak"] <= limit
    assert f"with {' '.join(proposal['changes'])} it does" in printed
    assert Image.open(tmp_path / "out/plan.png").width > 800


def test_only_changes_that_fit_are_proposed(config: Config, compiled: Plan) -> None:
    tried = []

    def compile_step(changed: Config, _: Target, __: float) -> Plan:
        tried.append((changed.remat, changed.mesh.fsdp, changed.batch_size))
        if changed.mesh.fsdp > 2:
            raise UserError("not this mesh")
        peak = 2.0 * GIB if changed.batch_size == 32 else 0.5 * GIB
        memory = Memory(peak, 0, 0, 0, limit=GIB)
        return dataclasses.replace(compiled, memory=memory)

    proposal = propose(config, target(), 20, 20, compile_step)
    assert proposal is not None
    assert proposal.changes == (
        "--config.remat=full",
        "--config.accumulate_steps=2",
        "--config.batch_size=16",
    )
    assert tried[0] == ("dots", 2, 32)
    assert ("full", 8, 32) in tried
    assert propose(config, target(), 20, 3, compile_step) is None


def test_proposals_are_valid_and_smaller_batches_come_last(config: Config) -> None:
    result = list(candidates(config, 8))
    assert result[0] == {"remat": "dots"}
    assert all(8 % one.get("mesh.fsdp", 2) == 0 for one in result)
    assert all(one.get("batch_size", 8) % 8 == 0 for one in result)
    pairs = [changed(config, one).pairs_per_step for one in result]
    first = next(number for number, count in enumerate(pairs) if count < config.pairs_per_step)
    assert set(pairs[:first]) == {config.pairs_per_step}
    assert any("accumulate_steps" in one for one in result[:first])
    assert {"remat": "full", "mesh.fsdp": 8} in result[:first]
    assert all("remat" not in one for one in candidates(changed(config, {"remat": "full"}), 8))
    fixed = changed(config, {"mesh.data": 4})
    assert {"remat": "full", "mesh.fsdp": 8, "mesh.data": -1} in list(candidates(fixed, 8))


def test_changes_leave_room_for_the_tensor_axis_and_the_slices(config: Config) -> None:
    small = changed(config, {"mesh.tensor": 4, "mesh.fsdp": 2, "batch_size": 16})
    result = list(candidates(small, 32))
    assert {one["mesh.fsdp"] for one in result if "mesh.fsdp" in one} == {8}
    assert any(one.get("accumulate_steps") == 2 for one in result)
    halved = list(candidates(small, 32, slices=2))
    assert {one["mesh.fsdp"] for one in halved if "mesh.fsdp" in one} == {4}


def test_evaluation_encoders_are_compiled_for_their_sizes(
    config: Config,
    compiled: Plan,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos = DataConfig(image_size=56, augmentation="center_crop")
    slide = SegmentationConfig(window=28, stride=14)
    dense = TaskConfig(kind="segmentation", data=photos, segmentation=slide)
    both = EvaluationConfig(tasks={"retrieval": TaskConfig(data=photos), "dense": dense})
    assert image_sizes(both) == {56: "encode_image", 28: "encode_patches"}
    monkeypatch.setattr("dinotxt_jax.planning.run.plan_step", lambda *_: compiled)
    evaluation = EvaluationConfig(tasks={"dense": dense}, batch_size=16)
    assert plan(config, [target()], caption_tokens=20, evaluation=evaluation)
    printed = capsys.readouterr().out
    for name in ("images of 28 px", "texts"):
        assert f"{name}, 16 at once: peak 0." in printed
    memory = Memory(3 * GIB, 0, 0, 0, limit=GIB)
    large = EncoderPlan("texts", 16, Compiled(memory, None, 0.0))
    assert "peak 3.00 of 1.00: does not fit, lower batch_size" in described_encoders([large], "")[1]


def test_architectures_come_from_the_name_where_there_is_no_directory() -> None:
    result = backbone_description("somewhere/dinov2_vitl14_reg")
    assert (result.vision.dim, result.vision.num_registers) == (1024, 4)
    with pytest.raises(UserError, match="does not end in a preset's name"):
        backbone_description("somewhere/mine")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Ran out of memory in memory space hbm. Used 36.16G of 31.25G hbm. Exceeded", 36.16),
        ("required for HLO temporaries (512.00G) exceeds available HBM (31.25G).", 512.0),
        ("something else", None),
    ],
)
def test_the_compilers_requested_memory_is_read(message: str, expected: float | None) -> None:
    assert asked_bytes(message) == (None if expected is None else expected * GIB)


def test_a_missing_topology_is_an_error(config: Config) -> None:
    with pytest.raises(UserError, match="no topology is named, and the config names none"):
        named_targets([""])
    with pytest.raises(UserError, match="'v9' is unknown"):
        named_targets(["v5e:4x4", "v9:4x4"])


def test_the_command_ends_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    fields = json.dumps(to_config_dict(Config(backbone="dinov2_vits14")).to_dict())
    file.write_text(
        "import json\nfrom dinotxt_jax.config import Config, from_dict, to_config_dict\n"
        f"def get_config():\n    return to_config_dict(from_dict(Config, json.loads({fields!r})))\n"
    )
    result = commands.run(["-m", "dinotxt_jax.plan", f"--config={file}", "--topology=v6e:5x5"])
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no slice v6e:5x5; a slice of v6e has the ")
    assert result.stderr.count("\n") == 1
