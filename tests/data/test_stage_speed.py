"""The input benchmark: its stages, and the sentence about the bottleneck."""

from __future__ import annotations

import subprocess
from pathlib import Path

import commands
import numpy as np
import pytest

from dinotxt_jax import UserError
from dinotxt_jax.config import DataConfig
from dinotxt_jax.data import stage_speed
from dinotxt_jax.data.examples import Example
from dinotxt_jax.data.stage_speed import InputSpeed, PipelineRate, Stage, measure_input

ROOT = Path(__file__).parents[2]
NAMES = ("read", "decode", "crop and resize", "tokenize", "assemble")


def speed(
    slowest: str, cpu: float = 0.01, configured: float = 50, workers: int = 0, **data: object
) -> InputSpeed:
    """Returns measurements in which one stage takes 10 ms and all others 1 ms."""
    stages = [Stage(n, 0.01, cpu) if n == slowest else Stage(n, 0.001, 0.001) for n in NAMES]
    return InputSpeed(
        DataConfig(**data),
        stages,
        PipelineRate(16, workers, configured),
        PipelineRate(16, 0 if workers else 2, 60),
        cpus=2,
    )


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        (speed("read", cpu=0.001), "waits for storage; set --config.data.threads=32."),
        (speed("decode", decoder="exact"), "set --config.data.decoder=fast"),
        (speed("crop and resize", decoder="exact"), "set --config.data.decoder=fast"),
        (speed("decode"), "2 are 1.2 times as fast; set --config.data.workers=2."),
        (speed("decode", workers=2), "0 are 1.2 times as fast; set --config.data.workers=0."),
        (speed("decode", configured=59), "decode (71% of the time per image) on 2 CPUs; use more"),
        (speed("read", configured=59), "convert the data to array_record or webdataset files"),
        (
            speed("decode", configured=59, decoder="exact", augmentation="squash"),
            "run python -m dinotxt_jax.precompute and set config.features.",
        ),
        (speed("tokenize", configured=59), "lower config.tokenizer.context_length"),
        (speed("assemble", configured=59), "lower config.data.image_size"),
    ],
)
def test_the_bottleneck_is_named_with_the_setting_to_change(
    measured: InputSpeed, sentence: str
) -> None:
    assert sentence in measured.bottleneck()
    assert list(measured.lines())[-1] == measured.bottleneck()


def test_the_limit_is_what_all_cpus_could_do() -> None:
    assert speed("decode").limit == pytest.approx(2 / 0.014)


class Slow:
    """Images whose stages take known times."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Example:
        if index in (3, 4):
            return Example(b"broken", ("a",), "bad")
        return Example(np.zeros((20, 20, 3), np.uint8), ("a",), str(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return ("a",)

    def key(self, index: int) -> str:
        return str(index)


def tokenize(text: str) -> np.ndarray:
    """Keeps the CPU busy for longer than all other stages."""
    return np.zeros(300_000).cumsum()[:1].astype(np.int32)


def test_a_slow_tokenizer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_speed, "available_cpus", lambda: 1)  # one worker, to be fast
    config = DataConfig(image_size=8, threads=2, workers=0, max_bad_fraction=0.5)
    measured = measure_input(Slow(), config, tokenize, examples=30, seed=0)
    assert [stage.name for stage in measured.stages] == list(NAMES)
    assert max(measured.stages, key=lambda stage: stage.cpu_seconds).name == "tokenize"
    assert measured.configured.images_per_second > 0
    assert measured.configured.workers == 0 < measured.alternative.workers


def test_data_without_good_images_is_a_user_error() -> None:
    class Broken(Slow):
        def __getitem__(self, index: int) -> Example:
            return Example(b"broken", ("a",), "bad")

    with pytest.raises(UserError, match="30 of 30 images .* could not be read or decoded"):
        measure_input(Broken(), DataConfig(image_size=8), tokenize, examples=30, seed=0)


def benchmark(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = ["-m", "dinotxt_jax.data.benchmark", f"--config={ROOT}/configs/quickstart.py", *flags]
    environment = commands.environment(DINOTXT_CACHE=str(folder / "cache"))
    return commands.run(command, cwd=folder, env=environment)


@pytest.mark.slow
def test_the_command_prints_stages_and_bottleneck(tmp_path: Path) -> None:
    small = ("--examples=8", "--config.data.num_scenes=20", "--config.data.workers=1")
    result = benchmark(tmp_path, *small, "--config.features=")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:6]] == list(NAMES)
    assert lines[-1].startswith("bottleneck: ")


def test_the_command_refuses_a_cache_of_tokens(tmp_path: Path) -> None:
    result = benchmark(tmp_path, "--config.features=x")
    assert result.returncode == 2
    assert "config.features is 'x', so training reads cached tokens" in result.stderr
