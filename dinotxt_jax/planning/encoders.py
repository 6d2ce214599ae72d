"""The memory that evaluation takes: the encoders of `dinotxt_jax.evaluate` for a topology."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx

from dinotxt_jax import sharding
from dinotxt_jax.config import Config, EvaluationConfig, MeshConfig, TaskConfig
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.evaluation.tasks import check_tasks
from dinotxt_jax.inference.running import checked_dtype, run_method
from dinotxt_jax.models.dinotxt import DinoTxt
from dinotxt_jax.models.layers import DTypes, abstract_arrays
from dinotxt_jax.planning.abstract import AbstractRun, abstract_run
from dinotxt_jax.planning.compiling import Compiled, Target, compile_for
from dinotxt_jax.storage.model_directory import Preprocessing


@dataclasses.dataclass(frozen=True)
class EncoderPlan:
    """One encoder compiled.

    Attributes:
        name: such as "images of 224 px", or "texts".
        batch_size: encoded at once, all devices.
        compiled: its memory.
    """

    name: str
    batch_size: int
    compiled: Compiled


def image_sizes(config: EvaluationConfig) -> dict[int, str]:
    """Sides of the squares that the tasks encode, pixels, and the method that does."""
    sizes: dict[int, str] = {}
    for task in config.tasks.values():
        size = _side(task)
        dense = task.kind == "segmentation" or sizes.get(size) == "encode_patches"
        sizes[size] = "encode_patches" if dense else "encode_image"
    return sizes


def _side(task: TaskConfig) -> int:
    if task.kind != "segmentation":
        return task.data.image_size
    whole = task.segmentation.protocol == "whole"
    return task.segmentation.image_size if whole else task.segmentation.window


def evaluation_run(config: Config, evaluation: EvaluationConfig, target: Target) -> AbstractRun:
    """The model that a config trains, on replicas, as `dinotxt_jax.evaluate` has it.

    Raises:
        UserError: tasks that cannot be run on so many devices.
    """
    replicas = dataclasses.replace(
        config,
        batch_size=len(target.devices),
        mesh=MeshConfig(),
        text=dataclasses.replace(config.text, pack=False),
    )
    run = abstract_run(replicas, target.devices, caption_tokens=0)
    check_tasks(evaluation, run.trainer.model.vision.patch_size, run.mesh, "--eval")
    return run


def plan_encoders(
    config: Config, evaluation: EvaluationConfig, target: Target, dtype: str
) -> list[EncoderPlan]:
    """Compiles what `dinotxt_jax.evaluate` would run with the model that a config trains.

    Args:
        config: of training, for the architecture.
        evaluation: tasks and batch size.
        target: all of whose devices evaluate, as replicas.
        dtype: of arrays and products.

    Raises:
        UserError: settings that cannot be run.
    """
    run = evaluation_run(config, evaluation, target)
    dtypes = DTypes(checked_dtype(dtype), dtype)

    def create() -> DinoTxt:
        return DinoTxt(run.trainer.model, dtypes=dtypes)

    graphdef, arrays = nnx.graphdef(create()), abstract_arrays(create, run.mesh)
    place, count = sharding.batch_sharding(run.mesh), evaluation.batch_size
    jobs: list[tuple[str, Any, jax.ShapeDtypeStruct]] = []
    for size, method in image_sizes(evaluation).items():
        images = jax.ShapeDtypeStruct((count, size, size, 3), "uint8", sharding=place)
        encode = functools.partial(_encode_images, graphdef, run.trainer.preprocessing, method)
        jobs.append((f"images of {size} px", encode, images))
    length = config.tokenizer.context_length
    texts = jax.ShapeDtypeStruct((count, length), "int32", sharding=place)
    jobs.append(("texts", functools.partial(_encode_texts, graphdef), texts))
    return [
        EncoderPlan(name, count, compile_for(target, run.mesh, encode, (arrays, rows)))
        for name, encode, rows in jobs
    ]


def _encode_images(
    graphdef: Any, preprocessing: Preprocessing, method: str, arrays: Any, images: jax.Array
) -> Any:
    pixels = normalize(images, preprocessing.mean, preprocessing.std)
    options = (True,) if method == "encode_image" else ()
    return run_method(graphdef, arrays, method, options, pixels)


def _encode_texts(graphdef: Any, arrays: Any, tokens: jax.Array) -> Any:
    return run_method(graphdef, arrays, "encode_text", (True,), tokens)
