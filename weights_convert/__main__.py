"""The command `python -m weights_convert SOURCE [SOURCE ...] --output=DIR`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dinotxt_jax.errors import UserError
from dinotxt_jax.models.presets import PRESETS
from weights_convert.architecture import parse_settings
from weights_convert.convert import DTYPES, Conversion, convert
from weights_convert.layouts import LAYOUTS
from weights_convert.messages import listed, quoted

_EXAMPLES = """\
examples:
  a DINOv2 backbone
    python -m weights_convert dinov2_vitl14_reg4_pretrain.pth --output=models/vitl14_reg
  the official dino.txt on it (three files, in any order)
    python -m weights_convert dinov2_vitl14_reg4_pretrain.pth dinotxt_vision_head.pth \\
        dinotxt_text_encoder.pth --output=models/dinotxt --preset=dinov2_vitl14_reg
  a timm vision transformer trained on ImageNet statistics, stored as bfloat16
    python -m weights_convert vit.safetensors --output=models/vit --dtype=bfloat16 \\
        --set mean=0.485,0.456,0.406 --set std=0.229,0.224,0.225

known layouts: {layouts}
presets: {presets}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        The exit code: 0, or 2 with one sentence on standard error.
    """
    arguments = _parser().parse_args(argv)
    try:
        conversion = convert(
            arguments.sources,
            arguments.output,
            settings=parse_settings(arguments.set),
            preset=arguments.preset,
            dtype=arguments.dtype,
            overwrite=arguments.overwrite,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or arguments.output
        print(f"error: {where}: {error.strerror or error}.", file=sys.stderr)
        return 2
    _report(conversion, arguments.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weights_convert",
        description="Converts released checkpoints into a model directory for dinotxt_jax. The "
        "layout and the architecture are read off the arrays; .pth files are read without torch "
        "and nothing in them is executed.",
        epilog=_EXAMPLES.format(layouts=", ".join(LAYOUTS), presets=", ".join(PRESETS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        type=Path,
        help="a .pth or .safetensors file; one backbone, or the three files of a dino.txt",
    )
    parser.add_argument(
        "--output", metavar="DIR", required=True, help="the model directory to write"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="stop unless the backbone has the architecture of this name",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="extend",
        nargs="+",
        default=[],
        help="what the arrays cannot tell: num_heads (backbone and vision head; default width/64), "
        "text_num_heads (default width/64), mean and std of the pixels (three numbers), resize and "
        "crop in pixels; several after one --set, or repeated, behind the sources",
    )
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="float32",
        help="what arrays are stored as (default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model directory of that name"
    )
    return parser


def _report(conversion: Conversion, output: str) -> None:
    for match in conversion.matches:
        count = sum(len(entry.present) for entry in match.entries)
        print(f"{match.name}: {match.layout.title}, {count} arrays")
        if match.prefix:
            print(f"  found under {quoted(match.prefix)}")
        for reason in dict.fromkeys(match.ignored.values()):
            names = [quoted(key) for key, found in match.ignored.items() if found == reason]
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
            print(f"  no tokenizer is known for a vocabulary of {text.vocabulary_size}")
    print(f"written to {output}")


if __name__ == "__main__":
    sys.exit(main())
