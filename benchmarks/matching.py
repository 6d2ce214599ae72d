"""Compares ways to match captions with metadata, and shows the effect of balancing.

    pip install pyahocorasick
    python benchmarks/matching.py [--entries=500000] [--captions=20000]

Captions and entries are random, with word frequencies that follow Zipf's law. Rates are captions
per second on a single core (processor time, best of five passes), including case folding. Memory is
the increase when a separate process builds the matcher. Then the script balances with a single
process, with two processes and, if Beam is installed, with a Beam pipeline; it checks that all keep
the same examples, and prints the entry frequencies before and after.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import processor

from dinotxt_jax.config import CurationConfig, DataConfig
from dinotxt_jax.config.curation import BalanceConfig
from dinotxt_jax.curation.matching import EntryMatcher, bordered, folded
from dinotxt_jax.curation.report_text import EntryCounts, read_entry_counts
from dinotxt_jax.curation.runners import OnBeam, TextRunner, in_processes
from dinotxt_jax.curation.text_step import ENTRIES, KEPT, balance_text
from dinotxt_jax.data.kept import read_kept
from dinotxt_jax.planning.curation_rates import drawn_captions, drawn_entries

_NAIVE = 40  # captions for the naive loop, which takes 0.05 seconds per caption
_PASSES = 5


def _ours(entries: list[str]) -> Callable[[list[str]], int]:
    matcher = EntryMatcher(entries)
    return lambda captions: len(matcher.match(captions).entries)


def _naive(entries: list[str]) -> Callable[[list[str]], int]:
    texts = [bordered(entry) for entry in entries]
    return lambda captions: sum(sum(t in c for t in texts) for c in map(folded, captions))


def _pyahocorasick(entries: list[str]) -> Callable[[list[str]], int]:
    import ahocorasick

    automaton = ahocorasick.Automaton()
    for number, entry in enumerate(entries):
        automaton.add_word(bordered(entry), number)
    automaton.make_automaton()

    def match(captions: list[str]) -> int:
        rows = [sorted({entry for _, entry in automaton.iter(folded(c))}) for c in captions]
        return len(np.fromiter(itertools.chain.from_iterable(rows), np.int32))

    return match


_METHODS = {"this project": _ours, "pyahocorasick": _pyahocorasick, "naive loop": _naive}


def _resident() -> float:
    """Returns this process's resident memory in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def _memory(name: str, entries: list[str], results: multiprocessing.SimpleQueue) -> None:
    before = _resident()
    kept_alive = _METHODS[name](entries)
    results.put(_resident() - before)
    del kept_alive


def _rates(count: int, number: int) -> None:
    print(f"{processor()}; {count:,} entries, {number:,} captions")
    entries = drawn_entries(count)
    captions = drawn_captions(entries, number)
    context = multiprocessing.get_context("spawn")
    installed = {n: m for n, m in _METHODS.items() if n != "pyahocorasick" or _has("ahocorasick")}
    methods = {name: make(entries) for name, make in installed.items()}
    texts = {name: captions[:_NAIVE] if name == "naive loop" else captions for name in methods}
    seconds = dict.fromkeys(methods, np.inf)
    entries_per_caption = {}
    for _ in range(_PASSES):  # methods alternate, because other work may disturb a whole pass
        for name, match in methods.items():
            start = time.process_time()
            entries_per_caption[name] = match(texts[name]) / len(texts[name])
            seconds[name] = min(seconds[name], time.process_time() - start)
    for name, least in seconds.items():
        results = context.SimpleQueue()
        process = context.Process(target=_memory, args=(name, entries, results))
        process.start()
        memory = results.get()
        process.join()
        rate = len(texts[name]) / least
        matched = f"{entries_per_caption[name]:6.2f} entries"
        print(f"{name:14s} {rate:10,.0f} captions/s {memory:7.0f} MB {matched}")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _balance(folder: Path, entries: int, captions: int) -> None:
    names = drawn_entries(entries)
    texts = drawn_captions(names, captions, least=1, most=4)
    (folder / "metadata.txt").write_text("\n".join(names))
    lines = (json.dumps({"image": f"{i}.png", "caption": t}) for i, t in enumerate(texts))
    (folder / "pool.jsonl").write_text("\n".join(lines))
    runners: dict[str, tuple[TextRunner, int]] = {
        "one process": (in_processes, 1),
        "two processes": (in_processes, 2),
    }
    if _has("apache_beam"):
        from dinotxt_jax.runtime.beam_pipelines import BeamPipelines

        runners["Beam"] = (OnBeam(BeamPipelines("DirectRunner", "")), 1)
    kept = {}
    for name, (runner, workers) in runners.items():
        data = DataConfig(source="jsonl", path=str(folder / "pool.jsonl"), threads=0)
        balance = BalanceConfig(range_size=max(captions // 8, 1))
        config = CurationConfig(data=data, balance=balance, workers=workers)
        output = folder / name
        print(balance_text(config, [str(folder / "metadata.txt")], output, runner))
        kept[name] = read_kept(output / KEPT, "").rows.counts(captions)
    first, *others = kept.values()
    print(f"kept sets of {', '.join(kept)} are equal: {all((first == o).all() for o in others)}")
    _print_balance(read_entry_counts(folder / "one process" / ENTRIES))


def _print_balance(counts: EntryCounts) -> None:
    for name, numbers in (("before", counts.before), ("after", counts.after)):
        ordered = np.sort(numbers)[::-1]
        share = ordered[:100].sum() / ordered.sum()
        print(f"{name:6s}: most frequent {ordered[0]:,}; 100 most frequent entries {share:.1%}")


def main() -> None:
    """Prints rates, memory and balance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--captions", type=int, default=20_000)
    arguments = parser.parse_args()
    _rates(arguments.entries, arguments.captions)
    with tempfile.TemporaryDirectory() as folder:
        _balance(Path(folder), arguments.entries, arguments.captions)


if __name__ == "__main__":
    main()
