"""Importing the package is quick, and takes no more than is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

import ffcv_cropmix
from ffcv_cropmix import cli

ROOT = Path(__file__).parents[1]


def _runs(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_imports_nothing_at_first() -> None:
    _runs("import sys, ffcv_cropmix; assert not {'numpy', 'numba', 'torch', 'ffcv'} & set(sys.modules)")


def test_ffcv_is_imported_without_compiling() -> None:
    """By whichever module comes first; numba's own Dict is back in its place."""
    modules = ("loader", "decoders", "views", "data.reader", "data.check", "training.run")
    imports = "\n".join(f"    import ffcv_cropmix.{name}" for name in modules)
    for first in modules[2:4]:
        _runs(
            "from numba.core import event\n"
            "with event.install_recorder('numba:compile') as compiled:\n"
            f"    import ffcv_cropmix.{first}\n{imports}\n"
            "assert not compiled.buffer\n"
            "import numba.typed, ffcv.fields.rgb_image as images\n"
            "assert numba.typed.Dict is numba.typed.typeddict.Dict\n"
            "assert dict(images.IMAGE_MODES) == {'jpg': 0, 'raw': 1}"
        )


def test_ffcv_is_imported_in_one_place() -> None:
    """So that whatever is imported first, `ffcv_compat` changes FFCV before anything uses it."""
    for path in (ROOT / "ffcv_cropmix").rglob("*.py"):
        imports = re.findall(r"^\s*(?:from|import) ffcv\b", path.read_text(), re.M)
        assert not imports or path.name == "ffcv_compat.py", path


def test_cropmix_needs_neither_ffcv_nor_torch() -> None:
    _runs(
        "import os, sys; os.environ['NUMBA_DISABLE_JIT'] = '1'; sys.modules['ffcv'] = sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from ffcv_cropmix import cropmix, sample_plan\n"
        "cropmix(np.zeros((9, 9, 3), np.uint8), sample_plan(9, 9), (2, 2))"
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str, program: str = "/somewhere/ffcv-cropmix") -> tuple[object, str, str]:
        """Exit status or its message, stdout, stderr."""
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        status: object = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    return run


def test_commands_are_listed(run) -> None:
    status, text, error = run()
    assert (status, error) == (0, "")
    assert run("--help")[1] == run("-h")[1] == text
    assert len(text.splitlines()) <= 24  # of a terminal
    assert max(map(len, text.splitlines())) <= 100
    for name in cli.COMMANDS:
        assert f"\n  ffcv-cropmix {name} " in text
        assert f"\n  python -m ffcv_cropmix {name} " in run(program="/somewhere/__main__.py")[1]
    scripts = set(re.findall(r"python (\S+\.py)", text))
    assert scripts == {*(path.name for path in ROOT.glob("*.py")), "examples/quickstart.py"}
    modules = {f"ffcv_cropmix.{module}" for module, _ in cli.COMMANDS.values()}
    programs = {
        path for path in (ROOT / "ffcv_cropmix").rglob("*.py") if "\n    run_program(main)\n" in path.read_text()
    }
    assert modules == {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in programs}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_says_its_options_by_both_names(name: str, run) -> None:
    status, text, error = run(name, "--help")
    assert (status, error) == (0, "")
    assert text.startswith(f"usage: ffcv-cropmix {name} ")
    other = run(name, "--help", program="/somewhere/__main__.py")[1]
    assert " ".join(other.split()) == " ".join(text.split()).replace("ffcv-cropmix", "python -m ffcv_cropmix", 1)
    assert run(name, "--nothing")[::2] == (2, "error: there is no option nothing\n")


def test_a_wrong_command_names_the_closest(run) -> None:
    commands = ", ".join(cli.COMMANDS)
    for wrong, said in {
        "verfy": "verfy; did you mean verify?",
        "visualise": "visualise; did you mean visualize?",
        "xyz": "xyz",
    }.items():
        assert run(wrong) == (2, "", f"error: there is no command {said}; commands: {commands}\n")


def test_a_command_works_and_reports_mistakes_in_one_line(run, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    status, text, _ = run("convert", "--dataset=digits", f"--write_path={path}", "--subset=9", "--num_workers=1")
    assert (status, text.startswith(f"{path}: 9 images of 10 classes")) == (0, True)
    assert run("verify", str(path))[1].startswith(f"{path}: 9 samples of image, label, 10 classes")
    assert run("verify", "no.beton")[0].startswith("error: no.beton")


def test_a_wheel_has_the_commands(tmp_path: Path) -> None:
    """All modules, and the console script. Written with setuptools, as `pip install` does it."""
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    sources = tmp_path / "sources"
    shutil.copytree(ROOT / "ffcv_cropmix", sources / "ffcv_cropmix", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=sources, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        (scripts,) = (name for name in names if name.endswith("/entry_points.txt"))
        assert archive.read(scripts).decode().strip() == "[console_scripts]\nffcv-cropmix = ffcv_cropmix.cli:main"
    assert {name for name in names if name.startswith("ffcv_cropmix/")} == {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ffcv_cropmix").rglob("*")
        if path.suffix in (".py", ".typed")
    }


def test_the_versions_agree() -> None:
    assert ffcv_cropmix.__version__ == version("ffcv-cropmix")


def test_public_names() -> None:
    for name in ffcv_cropmix.__all__:
        assert getattr(ffcv_cropmix, name).__name__ == name
    assert set(ffcv_cropmix.__all__) <= set(dir(ffcv_cropmix))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ffcv_cropmix.nothing  # noqa: B018
