"""Progress: plain lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import sys

from ffcv_cropmix import progress as module
from ffcv_cropmix.progress import progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_now_and_then(monkeypatch, capsys) -> None:
    now = iter(range(0, 1000, 4))  # seconds
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    assert list(progress(iter("abcdefgh"), 8, "letters", "characters")) == list("abcdefgh")
    assert capsys.readouterr().err.splitlines() == [
        "letters: 3/8 in 00:12, 0.25 characters/s, 00:20 left",
        "letters: 6/8 in 00:24, 0.25 characters/s, 00:08 left",
        "letters: 8/8 in 00:32, 0.25 characters/s, 00:00 left",
    ]


def test_a_bar_on_a_terminal(monkeypatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(range(3), 3, "numbers")) == [0, 1, 2]
    assert "numbers:   0%" in terminal.getvalue()
    assert "\r" in terminal.getvalue()
