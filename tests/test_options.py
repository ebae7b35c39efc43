"""Options of programs without sections: flags, lists, positional arguments, and what is said of mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from ffcv_cropmix.options import inline, option, parse_options, require


@dataclass(kw_only=True)
class _Storage:
    mode: Literal["raw", "jpg"] = "jpg"
    """How images are stored, 100 % of them"""
    quality: int = 0
    """Of the JPEGs"""

    def __post_init__(self) -> None:
        require(self.quality >= 0, "quality", ">= 0", self.quality)


@dataclass(kw_only=True)
class _Options:
    file: Path = option(positional=True, metavar="FILE")
    """The file"""
    runs: list[str] = option(positional=True, empty=True, metavar="RUN")
    """Folders"""
    output: Path
    """Where to"""
    rows: list[int] | None = option(None, metavar="ROW")
    """Rows"""
    metrics: list[str] = option(["a", "b"], choices=("a", "b"), empty=True, metavar="METRIC")
    """Of {choices}"""
    mean: list[float] | None = option(None, count=3, metavar=("R", "G", "B"))
    """Mean"""
    ratio: tuple[float, float] = option((3 / 4, 4 / 3), metavar=("LOW", "HIGH"))
    """Range"""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Filter"""
    full: bool = False
    """All of it"""
    flip: bool | None = None
    """Mirror"""
    storage: _Storage = inline()
    """Not shown"""


def _parse(*arguments: str) -> _Options:
    return parse_options(_Options, arguments, prog="check", description="Check.")


def test_values(monkeypatch) -> None:
    assert _parse("x", "--output=y") == _Options(file=Path("x"), runs=[], output=Path("y"), storage=_Storage())
    given = "1e3 null --rows 3 -5 --metrics --mean 0 .5 1e0 --ratio 1 2 --full --no-flip --mode raw --output caf\udce9"
    found = _parse(*given.split())
    assert (found.file, found.runs, found.output) == (Path("1e3"), ["null"], Path("caf\udce9"))
    assert (found.rows, found.metrics, found.mean, found.ratio) == ([3, -5], [], [0, 0.5, 1], (1, 2))
    assert (found.full, found.flip, found.storage) == (True, False, _Storage(mode="raw"))
    assert _parse("x", "--output=y", "--flip", "--interpolation=null").flip is True
    monkeypatch.setenv("HOME", "/home/me")
    assert (_parse("~/x", "~/y", "--output=~/z").output, _parse("x", "~/y", "--output=z").runs) == (
        Path("/home/me/z"),
        ["/home/me/y"],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--fulls", "there is no option fulls; did you mean full?"),  # before those that are missing
        ("--ful", "there is no option ful; did you mean full?"),  # no abbreviations
        ("x --output y -f", "there is no option f"),
        ("x --output y --no-full", "there is no option no-full; did you mean full?"),
        ("x", "the following arguments are required: output"),
        ("x --output y --rows a", "rows: expected int, got 'a'"),
        ("x --output y --rows", "rows: expected at least one argument"),
        ("x --output y --metrics c", "metrics: expected a or b, got 'c'"),
        ("x --output y --mean 1 2", "mean: expected 3 arguments"),
        ("x --output y --interpolation nearest", "interpolation: expected bilinear or bicubic or null, got 'nearest'"),
        ("x --output y --full=yes", "full: a flag, which takes no value, got 'yes'"),
        ("x --output y --mode gif", "mode: expected raw or jpg, got 'gif'"),
        ("x --output y --quality -1", "quality must be >= 0, got -1"),
        ("x --output ~nobody-has-this-name", "output: there is no home directory ~nobody-has-this-name"),
    ],
)
def test_mistakes_are_one_line(arguments: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        _parse(*arguments.split())
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_help_has_defaults_and_no_names_of_types(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        _parse("--help")
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert text.startswith("usage: check FILE RUN ... --output PATH [options]\n")
    joined = " ".join(text.split())
    for line in (
        "--metrics [METRIC ...] Of a, b (default: a b)",
        "--ratio LOW HIGH Range (default: 0.75 1.333)",
        "--interpolation {bilinear,bicubic} Filter",
        "--full All of it",
        "--quality N Of the JPEGs (default: 0)",
    ):
        assert line in joined
    assert "100 % of them (default: jpg)" in joined
    assert "class" not in text
