"""Progress bars: times that move while nothing advances, and lines in files that do not."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections.abc import Callable

import pytest

from dinotxt_jax.runtime import processes, progress
from dinotxt_jax.runtime.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO) -> list[str]:
    """Returns every state of the line that was drawn."""
    return [line.strip() for line in re.split(r"[\r\n]", stream.getvalue()) if line.strip()]


def until(condition: Callable[[], bool]) -> None:
    """Waits, as a slow compilation does, until the screen shows something."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def redirected(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> io.StringIO:
    """Redirects errors to a stream; not a fixture, because pytest redirects them after those."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_TICK", 0.01)
    return stream


def test_the_time_moves_while_the_first_call_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = redirected(monkeypatch, Terminal())
    calls = []

    def slow(number: int) -> int:
        calls.append(number)
        if len(calls) == 1:
            until(lambda: re.search(r"compiling: [1-9]\d* s", terminal.getvalue()) is not None)
        return number + 1

    with progress_bar(3, 0, "step", "training") as bar:
        step = bar.compiling(slow)
        results = []
        for number in range(3):
            results.append(step(number))
            bar.update()
        end_of_first = len(shown(terminal))
        until(lambda: len(shown(terminal)) > end_of_first)
    assert results == [1, 2, 3]
    lines = shown(terminal)
    during = [line for line in lines if "compiling" in line]
    assert {"compiling: 0 s", "compiling: 1 s"} <= {
        found[0] for line in during if (found := re.search(r"compiling: \d+ s", line))
    }
    assert any("0/3 [00:01" in line for line in during)
    assert all("0/3" in line for line in during)
    assert "compiling" not in lines[-1]
    assert "3/3" in lines[-1]


def test_a_bar_without_a_stage_moves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = redirected(monkeypatch, Terminal())
    with progress_bar(2, 0, "image", "encoding"):
        until(lambda: "0/2 [00:01" in terminal.getvalue())
        assert [thread.name for thread in threading.enumerate()].count("progress") == 1
    before = terminal.getvalue()
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]
    time.sleep(0.05)
    assert terminal.getvalue() == before  # nothing is drawn over what is printed next


def test_a_stage_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = redirected(monkeypatch, Terminal())
    with progress_bar(1, 0, "topology", "compiling the train step") as bar:
        with pytest.raises(ValueError, match="no room"), bar.stage("v5e:2x2"):
            raise ValueError("no room")
        bar.set_postfix_str("over")
    lines = shown(terminal)
    assert any("v5e:2x2: 0 s" in line for line in lines)
    assert "over" in lines[-1]


def test_a_file_gets_no_further_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = redirected(monkeypatch, io.StringIO())
    with progress_bar(1, 0, "topology", "compiling") as bar:
        begun = shown(stream)
        with bar.stage("v5e:2x2"):
            time.sleep(0.1)
        assert shown(stream) == begun
        bar.update()
    assert len(begun) == 1
    assert "v5e" not in stream.getvalue()
    assert "1/1" in shown(stream)[-1]


def test_a_file_says_once_that_the_first_call_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = redirected(monkeypatch, io.StringIO())
    with progress_bar(2, 0, "step", "training") as bar:
        step = bar.compiling(lambda: shown(stream))
        during_first = step()
        bar.update()
        during_second = step()
        bar.update()
    assert [("compiling" in line, "0/2" in line) for line in during_first] == [
        (False, True),
        (True, True),
    ]
    assert not any("compiling" in line for line in shown(stream)[2:])
    assert len(during_second) <= 3


def test_only_the_first_process_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = redirected(monkeypatch, Terminal())
    monkeypatch.setattr(processes, "is_first", lambda: False)
    with progress_bar(1, 0, "step", "training") as bar, bar.stage("compiling"):
        time.sleep(0.05)
        bar.update()
    assert terminal.getvalue() == ""
