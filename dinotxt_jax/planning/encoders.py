"""Compiles the encoders in `dinotxt_jax.evaluate` for a topology, to plan memory."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Int, UInt8

from dinotxt_jax import sharding
from dinotxt_jax.config import DTYPE_NAMES, Config, EvaluationConfig, MeshConfig
from dinotxt_jax.errors import check_choice
from dinotxt_jax.evaluation.tasks import KINDS, check_tasks
from dinotxt_jax.inference.running import run_method
from dinotxt_jax.models.dinotxt import DinoTxt
from dinotxt_jax.models.layers import DTypes, abstract_arrays
from dinotxt_jax.planning.abstract import AbstractRun, abstract_run
from dinotxt_jax.planning.compiling import Compiled, Target, compile_for
from dinotxt_jax.runtime.progress import progress_bar


@dataclasses.dataclass(frozen=True)
class EncoderPlan:
    """A compiled encoder.

    Attributes:
        name: for example "images of 224 px", or "texts".
        batch_size: global batch size.
        compiled: memory and program.
    """

    name: str
    batch_size: int
    compiled: Compiled


def image_sizes(config: EvaluationConfig) -> dict[int, str]:
    """Returns the image sides (pixels) that tasks encode -> the encoder method for this size."""
    sizes: dict[int, str] = {}
    for task in config.tasks.values():
        kind = KINDS[task.kind]
        size = kind.image_side(task)
        if not size:
            continue
        dense = not kind.encodes_whole_images or sizes.get(size) == "encode_patches"
        sizes[size] = "encode_patches" if dense else "encode_image"
    return sizes


def evaluation_run(config: Config, evaluation: EvaluationConfig, target: Target) -> AbstractRun:
    """Builds a config's model, replicated on all devices like in `dinotxt_jax.evaluate`.

    Raises:
        UserError: the tasks cannot run on this number of devices.
    """
    replicas = dataclasses.replace(
        config,
        batch_size=len(target.devices),
        mesh=MeshConfig(),
        text=dataclasses.replace(config.text, pack=False),
    )
    run = abstract_run(replicas, target.devices, caption_tokens=0)
    check_tasks(evaluation, run.trainer.model.vision, run.mesh, "eval")
    return run


def plan_encoders(
    config: Config, evaluation: EvaluationConfig, target: Target, dtype: str
) -> list[EncoderPlan]:
    """Compiles the encoders that `dinotxt_jax.evaluate` runs for a config's model.

    Args:
        config: training config, which determines the architecture.
        evaluation: tasks and batch size.
        target: devices; all of them evaluate, as replicas.
        dtype: dtype for arrays and products.

    Raises:
        UserError: the settings cannot run on these devices.
    """
    run = evaluation_run(config, evaluation, target)
    check_choice("dtype", dtype, DTYPE_NAMES)
    dtypes = DTypes(dtype, dtype)

    def create() -> DinoTxt:
        return DinoTxt(run.trainer.model, dtypes=dtypes)

    graphdef, arrays = nnx.graphdef(create()), abstract_arrays(create, run.mesh)
    rows_sharding, count = sharding.batch_sharding(run.mesh), evaluation.batch_size
    jobs: list[tuple[str, Any, jax.ShapeDtypeStruct]] = []
    for size, method in image_sizes(evaluation).items():
        images = jax.ShapeDtypeStruct((count, size, size, 3), "uint8", sharding=rows_sharding)
        options: dict[str, Any] = {"pixels": run.trainer.preprocessing}
        options |= {"normalize": True} if method == "encode_image" else {}
        encode = functools.partial(_encode, graphdef, method, options)
        jobs.append((f"images of {size} px", encode, images))
    length = config.tokenizer.context_length
    texts = jax.ShapeDtypeStruct((count, length), "int32", sharding=rows_sharding)
    encode = functools.partial(_encode, graphdef, "encode_text", {"normalize": True})
    jobs.append(("texts", encode, texts))
    plans = []
    with progress_bar(len(jobs), 0, "encoder", "compiling the encoders") as bar:
        for name, encode, rows in jobs:
            with bar.stage(name):
                compiled = compile_for(target, run.mesh, encode, (arrays, rows))
            plans.append(EncoderPlan(name, count, compiled))
            bar.update()
    return plans


def _encode(
    graphdef: Any,
    method: str,
    settings: dict[str, Any],
    arrays: Any,
    rows: UInt8[Array, "b h w 3"] | Int[Array, "b l"],
) -> Any:
    return run_method(graphdef, arrays, method, rows, **settings)
