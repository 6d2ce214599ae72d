"""Converts, exports, verifies and describes checkpoints."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dinotxt_jax.cli import COMPILATION_CACHE_HELP, unset_empty_variables
from dinotxt_jax.errors import UserError, closest, exit_with
from dinotxt_jax.models.presets import PRESETS
from dinotxt_jax.storage.faults import storage_fault
from weights_convert.choices import DTYPES, EXPORT_DTYPES, PARTS, TOLERANCE
from weights_convert.layouts import LAYOUTS
from weights_convert.messages import listed, quoted

if TYPE_CHECKING:
    from weights_convert.convert import Conversion

_EXAMPLES = """\
examples:
  a DINOv2 or DINOv3 backbone
    python -m weights_convert dinov2_vitl14_reg4_pretrain.pth --output=models/vitl14_reg
  the official dino.txt on DINOv2 (three files) or DINOv3 (two), in any order
    python -m weights_convert dinov2_vitl14_reg4_pretrain.pth dinotxt_vision_head.pth \\
        dinotxt_text_encoder.pth --output=models/dinotxt --preset=dinov2_vitl14_reg
  from the Hugging Face hub (pip install huggingface_hub)
    python -m weights_convert hf://facebook/dinov2-with-registers-base --output=models/vitb14_reg
  your own training checkpoint, with 4 heads, stored as bfloat16
    python -m weights_convert checkpoint.pth --output=models/mine --set num_heads=4 \\
        --dtype=bfloat16
  back to PyTorch; only the trained parts; under other names
    python -m weights_convert --export --model=models/vitl14_reg --output=vitl14_reg.safetensors
    python -m weights_convert --export --model=runs/mine/model --part=trained \\
        --output=mine.safetensors
    python -m weights_convert --export --model=models/vitl14_reg --layout=hf_dinov2_reg \\
        --output=model.safetensors
  print the contents; compare the outputs with a reference
    python -m weights_convert --describe models/vitl14_reg
    python -m weights_convert --verify --model=models/vitl14_reg --reference=reference.npz

known layouts: {layouts}
presets: {presets}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments without the program's name; default: the process's arguments.

    Returns:
        The exit code: 0; 1 where --verify finds a difference; otherwise, with one sentence on
        standard error, 2, or 74 after a fault of the storage.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    unset_empty_variables()
    try:
        return _run(arguments)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = arguments.output
        fault = error if isinstance(error, UserError) else storage_fault(error)
        if fault is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code


def _run(arguments: argparse.Namespace) -> int:
    # Imported here, with JAX, so that help and mistakes in flags do not wait for it.
    from weights_convert import describe, export
    from weights_convert.convert import convert
    from weights_convert.settings import parse_settings

    if arguments.describe:
        settings = parse_settings(arguments.set)
        sources = arguments.sources or ([arguments.model] if arguments.model else [])
        if not sources:
            raise UserError("a model directory or a checkpoint is missing; --help has examples.")
        for path in sources:
            for line in describe.describe(path, settings, arguments.layout, arguments.prefix):
                print(line)
        return 0
    if arguments.verify:
        return _verify(arguments)
    if arguments.export:
        written = export.export(
            _needed(arguments, "model", "--model=DIR"),
            _needed(arguments, "output", "--output=FILE.safetensors"),
            layout=arguments.layout,
            part=arguments.part,
            dtype=arguments.dtype,
            overwrite=arguments.overwrite,
        )
        for file in written:
            print(f"{file.path}: {file.layout.title}")
            for note in file.notes:
                print(f"  {note}")
        return 0
    conversion = convert(
        _needed(arguments, "sources", "a checkpoint (SOURCE)"),
        _needed(arguments, "output", "--output=DIR"),
        settings=parse_settings(arguments.set),
        preset=arguments.preset,
        dtype=_conversion_dtype(arguments.dtype),
        layout=arguments.layout,
        prefix=arguments.prefix,
        tokenizer=None if arguments.tokenizer is None else Path(arguments.tokenizer),
        overwrite=arguments.overwrite,
    )
    _report(conversion, arguments.output)
    return 0


def _needed(arguments: argparse.Namespace, name: str, title: str) -> Any:
    value = getattr(arguments, name)
    if not value:
        raise UserError(f"{title} is missing; add it, --help has examples.")
    return value


def _conversion_dtype(dtype: str | None) -> str:
    if dtype not in (None, *DTYPES):
        raise UserError(
            f"--dtype={dtype} is for --export; take {' or '.join(DTYPES)} for a model directory."
        )
    return dtype or "float32"


def _verify(arguments: argparse.Namespace) -> int:
    from dinotxt_jax.runtime.compilation_cache import use_compilation_cache
    from dinotxt_jax.storage.downloads import cache_folder
    from weights_convert import verify

    model = _needed(arguments, "model", "--model=DIR")
    reference = Path(_needed(arguments, "reference", "--reference=FILE.npz"))
    use_compilation_cache(arguments.compilation_cache, cache_folder() / "xla")
    comparisons = verify.compare(model, reference)
    width = max(len(comparison.name) for comparison in comparisons)
    print(f"{'':{width}}  largest difference  relative to the reference")
    for comparison in comparisons:
        mark = "" if comparison.agrees(arguments.tolerance) else "  differs"
        row = f"{comparison.largest:18.2e}  {comparison.relative:20.2e}{mark}"
        print(f"{comparison.name:{width}}  {row}")
    print(verify.verdict(comparisons, arguments.tolerance))
    return int(not all(comparison.agrees(arguments.tolerance) for comparison in comparisons))


class _Parser(argparse.ArgumentParser):
    """Reports a wrong flag in one sentence, with a suggestion, like all other mistakes."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: --([\w-]+)", message)
        names = [option.removeprefix("--") for option in self._option_string_actions]
        if unknown and (suggestion := closest(unknown[1], names)):
            exit_with(UserError(f"--{unknown[1]} is not a flag; did you mean --{suggestion}?"))
        exit_with(UserError(f"{message}; --help has examples."))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m weights_convert",
        description="Converts released checkpoints into a model directory for dinotxt_jax, and "
        "back. The layout and the architecture follow from the arrays; .pth files are read "
        "without torch and nothing in them is executed.",
        epilog=_EXAMPLES.format(layouts=", ".join(LAYOUTS), presets=", ".join(PRESETS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="*",
        help="a .pth, .pt, .safetensors or .npz file, the index of a sharded one, a folder that "
        "transformers saved, https://..., or hf://ORG/NAME[@REVISION][/FILE]; one backbone, or "
        "all parts of a model",
    )
    _add_modes(parser.add_mutually_exclusive_group())
    _add_settings(parser)
    return parser


def _add_modes(mode: argparse._MutuallyExclusiveGroup) -> None:
    mode.add_argument(
        "--export", action="store_true", help="write a model directory as .safetensors or .npz"
    )
    mode.add_argument(
        "--verify",
        action="store_true",
        help="compare a model's outputs with a reference file (docs/conversion.md); exit code "
        "1 if they differ",
    )
    mode.add_argument(
        "--describe",
        action="store_true",
        help="print architecture, counts, fingerprint and preprocessing for each SOURCE or model "
        "directory, without loading arrays",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="PATH", help="the model directory, or with --export the file, to write"
    )
    parser.add_argument("--model", metavar="DIR", help="--export, --verify: the model directory")
    parser.add_argument("--reference", metavar="FILE.npz", help="--verify: the reference outputs")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="--verify: largest difference relative to a quantity's size (default: %(default)s)",
    )
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        help=f"--verify: {COMPILATION_CACHE_HELP.replace('Folder', 'folder', 1)}",
    )
    parser.add_argument(
        "--part",
        choices=PARTS,
        help="--export: only this part; trained means head and text transformer",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="stop unless the backbone has the architecture with this name",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="extend",
        nargs="+",
        default=[],
        help="settings that the arrays do not determine: num_heads (backbone and vision head) "
        "and text_num_heads (both known for released models), activation and text_activation "
        "(gelu, gelu_tanh, quick_gelu, relu), layer_norm_epsilon, text_layer_norm_epsilon, end_id, "
        "rope_theta, position_interpolation, mean and std (three numbers each, for pixels in "
        "[0, 1]), resize and crop in pixels, rule (how images are resized) and max_patches "
        "(rule=naflex); after the sources, repeatable",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="SigLIP, TIPS: the sentencepiece file (tokenizer.json or .model; default: the one "
        "next to the checkpoint)",
    )
    parser.add_argument(
        "--dtype",
        choices=list(EXPORT_DTYPES),
        help="dtype of the written arrays (default: float32; with --export: the source's dtypes)",
    )
    parser.add_argument(
        "--layout", metavar="NAME", help="the layout to read or write (default: recognised)"
    )
    parser.add_argument(
        "--prefix", metavar="TEXT", help="prefix of all array names (default: recognised)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing model directory or file"
    )


def _report(conversion: "Conversion", output: str) -> None:
    for match in conversion.matches:
        count = sum(len(entry.present) for entry in match.entries)
        print(f"{match.name}: {match.layout.title}, {count} arrays")
        if match.layout.note:
            print(f"  {match.layout.note}")
        if match.prefix:
            print(f"  found under {quoted(match.prefix)}")
        for reason in dict.fromkeys(match.ignored.values()):
            names = [quoted(key) for key, why in match.ignored.items() if why == reason]
            print(f"  {listed('left out', names)}: {reason}")
    vision, text = conversion.description.vision, conversion.description.text
    print(
        f"backbone: patch {vision.patch_size}, width {vision.dim}, {vision.depth} blocks, "
        f"{vision.num_heads} heads, {vision.num_registers} registers, "
        f"preset {conversion.description.preset or 'none'}"
    )
    if text is not None:
        print(f"text: width {text.width}, {text.depth} blocks, {text.num_heads} heads")
        if conversion.description.tokenizer is None:
            unknown = f"no tokenizer is known for a vocabulary of {text.vocabulary_size}"
            print(f"  {conversion.note or unknown}")
    print(f"written to {output}")


if __name__ == "__main__":
    sys.exit(main())
