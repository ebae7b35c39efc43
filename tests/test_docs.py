"""What the documents name exists."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/*/*.md")]


def test_each_hazard_has_a_test_that_exists() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", (ROOT / "docs/hazards.md").read_text(), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 31))
    for number, tests in rows:
        names = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert names or tests.startswith("none: "), number
        for file, name in names:
            assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_the_recipes_figures_are_those_of_their_files() -> None:
    page = (ROOT / "docs/training.md").read_text()
    rows = re.findall(r"^\| `(rn\d+_configs/rn.+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) \| (.+) \|$", page, re.M)
    assert {row[0] for row in rows} == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("rn*_configs/rn*.yaml")}
    for file, epochs, top_1, minutes, machine in rows:
        comment = " ".join(re.findall("^# *(.*)", (ROOT / file).read_text(), re.M))
        assert f"in {epochs} epochs" in comment
        assert f"publishes {top_1} % top-1 in {minutes} minutes on {machine}, with RandomResizedCrop" in comment


def test_setuptools_is_a_dependency() -> None:
    assert "setuptools" in (requires("ffcv-cropmix") or [])  # FFCV imports distutils, which Python 3.12 dropped
