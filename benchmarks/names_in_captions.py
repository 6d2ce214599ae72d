"""Lists classes with names that occur in captions, and that a small model can therefore learn.

    python benchmarks/names_in_captions.py --captions=data/flickr8k/captions.jsonl --split=train \\
        --least=20 > names.txt

For each name, counts the captions in which the name, or the plural in -s, occurs as separate words
(ignoring case). Names with at least `--least` captions are printed on separate lines, in list
order. Use the result as `data.only`.
"""

from __future__ import annotations

import argparse
import re

from dinotxt_jax.data.jsonl import JsonlSource
from dinotxt_jax.data.texts import read_list


def main() -> None:
    """Prints the names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", default="data/flickr8k/captions.jsonl")
    parser.add_argument("--split", default="train")
    parser.add_argument("--classes", default="imagenet1k")
    parser.add_argument("--least", type=int, default=20)
    arguments = parser.parse_args()
    source = JsonlSource(arguments.captions, split=arguments.split)
    text = "\n".join(c.lower() for index in range(len(source)) for c in source.captions(index))
    for name in dict.fromkeys(read_list(arguments.classes, "--classes")):
        pattern = re.compile(rf"^.*?\b{re.escape(name.lower())}s?\b", re.MULTILINE)
        if name.lower() in text and len(pattern.findall(text)) >= arguments.least:
            print(name)


if __name__ == "__main__":
    main()
