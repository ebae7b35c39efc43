"""What the documents name exists, and what they show runs."""

from __future__ import annotations

import doctest
import io
import os
import re
import subprocess
import sys
import tarfile
import time
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import ffcv_cropmix
from ffcv_cropmix import check_beton
from ffcv_cropmix.data.convert import convert
from ffcv_cropmix.data.encode import EncodeOptions
from ffcv_cropmix.data.images import Source

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("examples/**/*.md"),
]

RUN = {"sh", "python"}
"""Languages of the blocks that are run, all those of a page in one folder, one after the other"""
SHOWN = {"", "text", "diff", "bibtex"}
"""Those that are not: output, make's targets (CI runs them), and what takes ImageNet, a GPU or hours"""


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    code: str
    line: int


def _blocks(document: Path) -> list[Block]:
    text = document.read_text()
    found = list(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S))
    assert len(re.findall("^ *```", text, re.M)) == 2 * len(found), "a fence that is indented, or has no end"
    return [Block(match[1], match[2], text[: match.start()].count("\n") + 2) for match in found]


def _name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def test_each_hazard_has_a_test_that_exists() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", (ROOT / "docs/hazards.md").read_text(), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 35))
    for number, tests in rows:
        names = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert names or tests.startswith("none: "), number
        for file, name in names:
            assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", document.read_text()):
        if target.startswith("https://"):
            continue
        page = document.parent / target if target else document
        assert page.exists(), target
        if heading:
            titles = re.findall("^#+ (.*)$", page.read_text(), re.M)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, heading


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_languages_of_blocks(document: Path) -> None:
    assert {block.language for block in _blocks(document)} <= RUN | SHOWN


def test_the_site_is_built(tmp_path: Path) -> None:
    """Strictly: a page that is not in the navigation, a broken link and a name without docstring are errors."""
    repository = "https://example.org/repository"
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "REPOSITORY_URL": repository, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    assert f'href="{repository}/blob/HEAD/environment.yml"' in (tmp_path / "install/index.html").read_text()
    assert 'href="../../views/"' in (tmp_path / "examples/contrastive/index.html").read_text()
    assert 'href="install/' in (tmp_path / "index.html").read_text()
    decoders = (tmp_path / "api/decoders/index.html").read_text()
    assert "mix_ratio" in decoders and "<blockquote>" not in decoders  # which examples become that are not set as code


def test_make_has_the_targets() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        name for document in DOCUMENTS for name in re.findall(r"(?:^|`|\$ )make (\w+)", document.read_text(), re.M)
    }
    assert {"demo", "test", "bench"} <= named <= targets


def test_the_recipes_figures_are_those_of_their_files() -> None:
    page = (ROOT / "docs/training.md").read_text()
    rows = re.findall(r"^\| `(rn\d+_configs/rn.+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) \| (.+) \|$", page, re.M)
    assert {row[0] for row in rows} == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("rn*_configs/rn*.yaml")}
    for file, epochs, top_1, minutes, machine in rows:
        comment = " ".join(re.findall("^# *(.*)", (ROOT / file).read_text(), re.M))
        assert f"in {epochs} epochs" in comment
        assert f"publishes {top_1} % top-1 in {minutes} minutes on {machine}, with RandomResizedCrop" in comment


WITH_EXAMPLES = [path for path in sorted((ROOT / "ffcv_cropmix").rglob("*.py")) if ">>>" in path.read_text()]


@pytest.fixture
def two_images(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with train.beton, a cat and a dog of 8 x 8 px, to run examples in."""
    folder = tmp_path_factory.mktemp("examples")
    images = np.zeros((2, 8, 8, 3), np.uint8)
    source = Source(classes=["cat", "dog"], labels=np.array([0, 1]), images=images)
    convert(source, folder / "train.beton", EncodeOptions(write_mode="raw"), num_workers=1)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=_name)
def test_examples_of_docstrings_run(path: Path, two_images: Path) -> None:
    module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        assert "+SKIP" not in (test.docstring or ""), test.name
        runner.run(test, out=said.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("name", ffcv_cropmix.__all__)
def test_each_public_name_has_an_example(name: str) -> None:
    assert any(test.examples for test in doctest.DocTestFinder().find(getattr(ffcv_cropmix, name), name))


def test_setuptools_is_a_dependency() -> None:
    assert "setuptools" in (requires("ffcv-cropmix") or [])  # FFCV imports distutils, which Python 3.12 dropped


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` leaves, in small: demo/train.beton, demo/val.beton."""
    folder = tmp_path_factory.mktemp("demo")
    write = [sys.executable, "write_dataset.py", "--dataset=digits", "--num_workers=1", "--subset=256"]
    subprocess.run([*write, f"--write_path={folder / 'train.beton'}"], cwd=ROOT, check=True, capture_output=True)
    for suffix in ("beton", "beton.json"):
        (folder / f"val.{suffix}").symlink_to(folder / f"train.{suffix}")
    return folder


@pytest.fixture
def workplace(demo: Path, tmp_path: Path) -> Path:
    """A folder like a clone of the repository after `make demo`, that may be written to."""
    for path in ROOT.iterdir():
        if path.name not in ("demo", "runs") and path.suffix != ".beton" and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "demo").symlink_to(demo)
    return tmp_path


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _jpeg(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (level, 99, 99)).save(file, "JPEG")
    return file.getvalue()


def _imagenet_archives(folder: Path) -> None:
    """The three archives of ImageNet, with two classes of two images, and their structure."""
    kinds = np.dtype([("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    synsets = np.array([(1, "n00000020", 0), (2, "n00000010", 0), (3, "n00000001", 2)], kinds)
    savemat(folder / "meta.mat", {"synsets": synsets[:, None]})
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train:
        for number, name in enumerate(("n00000010", "n00000020")):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as images:
                for k in range(2):
                    _add(images, f"{name}_{k}.JPEG", _jpeg(100 * number + k))
            _add(train, f"{name}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as val:
        for k in range(1, 4):
            _add(val, f"ILSVRC2012_val_{k:08}.JPEG", _jpeg(k))
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as devkit:
        data = "ILSVRC2012_devkit_t12/data"
        _add(devkit, f"{data}/ILSVRC2012_validation_ground_truth.txt", b"1\n2\n1\n")
        _add(devkit, f"{data}/meta.mat", (folder / "meta.mat").read_bytes())


def _run(document: Path, folder: Path) -> None:
    """Run the blocks of a document in a folder, and say how long each took."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, code, line in _blocks(document):
        started = time.perf_counter()
        if language == "sh":
            command = ["sh", "-eu", "-c", code]
            result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            assert result.returncode == 0, f"{_name(document)}, line {line}:\n{result.stdout}{result.stderr}"
        elif language == "python":
            exec(compile("\n" * (line - 1) + code, document, "exec", dont_inherit=True), names)
        if language in RUN:
            print(f"{_name(document)}, line {line}: {time.perf_counter() - started:.1f} s")


IMAGENET = ROOT / "docs/imagenet.md"
PAGES = [page for page in DOCUMENTS if page != IMAGENET and RUN & {block.language for block in _blocks(page)}]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", PAGES, ids=_name)
def test_blocks_run(document: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    _run(document, workplace)


def test_imagenets_archives_become_two_files(workplace: Path) -> None:
    _imagenet_archives(workplace)
    _run(IMAGENET, workplace)
    found = [check_beton(workplace / f"{split}.beton") for split in ("train", "val")]
    assert [beton.column("label").tolist() for beton in found] == [[0, 0, 1, 1], [1, 0, 1]]
    for beton in found:
        assert beton.sidecar and beton.sidecar.classes == ["n00000010", "n00000020"]
