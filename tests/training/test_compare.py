"""Runs side by side: what is plotted, what the table says, and which folders are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from ffcv_cropmix.errors import DataError, run_program
from ffcv_cropmix.training import compare
from ffcv_cropmix.training.compare import plot, read_run, read_runs, save, table
from ffcv_cropmix.training.config import parse_config

REPOSITORY = Path(__file__).parents[2]


@cache
def _params(*options: str) -> str:
    required = ["--data.train_dataset=t", "--data.val_dataset=v", "--logging.folder=run", "--training.epochs=3"]
    return json.dumps(asdict(parse_config([*required, *options])))


def _run(folder: Path, records: list[dict[str, float]], *options: str) -> Path:
    """A run's folder, as the trainer leaves it."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(_params(*options))
    (folder / "log").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def _record(epoch: int, **more: float) -> dict[str, float]:
    trained = {"train_loss": 3.0 - epoch, "lr": 0.1, "resolution": 160, "images_per_second": 900.0 + 100 * epoch}
    return {"epoch": epoch, **trained, "seconds": 90.0, **more}


def _evaluated(top_1: float, error: float = 8.0) -> dict[str, float]:
    return {"top_1": top_1, "top_5": top_1 + 10, "val_loss": 1.0, "rms_calibration_error": error}


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A finished run, one evaluated at its end only, and one that goes on and was not evaluated yet."""
    return [
        _run(
            tmp_path / "cropmix",
            [
                _record(0, waiting=50.0),
                _record(1, waiting=4.0, **_evaluated(70.5)),
                _record(2, waiting=2.0, **_evaluated(70.25, 7.5)),
            ],
            "--cropmix.enabled=1",
            "--cropmix.operation=1",
        ),
        _run(tmp_path / "rrc", [_record(0), _record(1), _record(2, **_evaluated(60))], "--training.mixup=0.2"),
        _run(tmp_path / "goes_on", [_record(0, waiting=1.0)], "--training.mixup=0.2", "--training.cutmix=1"),
    ]


def test_table(runs: list[Path]) -> None:
    lines = table(read_runs(runs)).splitlines()
    rows = [[cell.strip() for cell in line.split("  ") if cell] for line in lines]
    assert rows[0] == ["run", "model", "augmentation", *compare._NUMBERS]
    assert [row[:3] for row in rows[1:]] == [
        ["cropmix", "resnet18", "CropMix 234 cutmix"],
        ["rrc", "resnet18", "RandomResizedCrop and mixup between images"],
        ["goes_on", "resnet18", "RandomResizedCrop and mixup or cutmix between images"],
    ]
    assert [row[3:] for row in rows[1:]] == [
        ["3", "70.50 %", "70.25 %", "80.25 %", "7.50 %", "1,000", "4 min 30 s", "4.00 %"],
        ["3", "60.00 %", "60.00 %", "70.00 %", "8.00 %", "1,000", "4 min 30 s", "-"],
        ["1 of 3", "-", "-", "-", "-", "900", "1 min 30 s", "1.00 %"],
    ]
    assert len(set(map(len, lines))) == 1


def test_lines(runs: list[Path]) -> None:
    by_epoch, by_time, loss = plot(read_runs(runs)).axes
    plotted = [[line.get_xydata().tolist() for line in axes.lines] for axes in (by_epoch, by_time, loss)]
    assert plotted == [
        [[[2, 70.5], [3, 70.25]], [[3, 60]], []],
        [[[3, 70.5], [4.5, 70.25]], [[4.5, 60]], []],
        [[[1, 3], [2, 2], [3, 1]], [[1, 3], [2, 2], [3, 1]], [[1, 3]]],
    ]
    assert by_time.get_xlabel() == "training time, minutes"


def test_long_runs_are_plotted_in_hours(tmp_path: Path) -> None:
    folder = _run(tmp_path / "long", [{**_record(0), "seconds": 4 * 3600.0, **_evaluated(70)}])
    _, by_time, _ = plot([read_run(folder)]).axes
    assert by_time.get_xlabel() == "training time, hours"
    assert by_time.lines[0].get_xydata().tolist() == [[4, 70]]


def test_lines_differ_without_their_colours_and_have_markers(tmp_path: Path) -> None:
    records = [_record(epoch, **_evaluated(70)) for epoch in range(30)]
    folders = [_run(tmp_path / str(k), records[: 30 - 2 * k]) for k in range(12)]
    for axes in plot(read_runs(folders)).axes:
        assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 12
        for line in axes.lines:
            start, step = line.get_markevery()
            assert 4 <= len(line.get_xdata()[start::step]) <= 16


def test_program(runs: list[Path], tmp_path: Path, capsys) -> None:
    output = tmp_path / "compare.png"
    compare.main([*map(str, runs), f"--output={output}"])
    assert capsys.readouterr().out == table(read_runs(runs)) + "\n"
    picture = matplotlib.image.imread(output)
    assert picture.shape[1] >= 830
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10


def test_runs_whose_folders_are_called_the_same_go_by_their_paths(tmp_path: Path) -> None:
    folders = [_run(tmp_path / name, [_record(0)]) for name in ("a/run", "b/run", "c")]
    assert [run.name for run in read_runs(folders)] == [str(folders[0]), str(folders[1]), "c"]


def test_a_run_is_named_after_the_current_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(_run(tmp_path / "here", [_record(0)]))
    assert read_run(".").name == "here"


def _break(folder: Path, file: str, text: str | None) -> None:
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("params.json", None, "rrc is not a run's folder: it has no params.json"),
        ("params.json", "{", "rrc/params.json was not written by this package: JSONDecodeError"),
        ("params.json", "{}", "rrc/params.json was not written by this package: KeyError"),
        ("params.json", "[1]", "rrc/params.json was not written by this package: TypeError"),
        ("log", None, "rrc: the run has not finished an epoch yet"),
        ("log", "", "rrc: the run has not finished an epoch yet"),
        ("log", json.dumps(_record(0)) + '\n{"epoch": 1, "train', "rrc/log, line 2 was not written by this package"),
        ("log", '{"epoch": 0}\n', "rrc/log, line 1 was not written by this package"),
        ("log", json.dumps(_record(0, top_1="high")), "rrc/log, line 1 was not written by this package"),
        ("log", "0", "rrc/log, line 1 was not written by this package"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(file: str, text: str | None, message: str, runs, tmp_path: Path) -> None:
    _break(runs[1], file, text)
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: compare.main([*map(str, runs), f"--output={tmp_path / 'compare.png'}"]))
    assert message in str(ended.value.code)
    assert str(ended.value.code).count("\n") == 0
    assert not (tmp_path / "compare.png").exists()


def test_a_run_is_named_by_its_label(runs: list[Path]) -> None:
    label = {"model": "MoCo resnet50", "augmentation": "one-way cutmix"}
    (runs[0] / "params.json").write_text(json.dumps({"label": label, "training": {"epochs": 3}}))
    run = read_run(runs[0])
    assert {"model": run.model, "augmentation": run.augmentation} == label


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a run's folder"):
        read_run(tmp_path / "nowhere")


def test_wrong_formats_are_answered_in_one_line(runs: list[Path], tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        compare.main([*map(str, runs), f"--output={tmp_path / 'compare.txt'}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --output {tmp_path / 'compare.txt'} must end in .png or")
    assert not (tmp_path / "compare.txt").exists()


def test_a_failed_write_leaves_the_old_figure_and_no_temporary_file(runs, tmp_path: Path, monkeypatch) -> None:
    output = tmp_path / "figures" / "compare.png"
    output.parent.mkdir()
    output.write_bytes(b"old")

    def fail(self: Figure, file, **_: object) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(DataError, match=r"compare\.png cannot be written: disk full"):
        save(plot(read_runs(runs)), output)
    assert [path.name for path in output.parent.iterdir()] == ["compare.png"]
    assert output.read_bytes() == b"old"


def test_it_starts_without_torch_and_leaves_pyplot_alone() -> None:
    code = "import sys, ffcv_cropmix.training.compare; assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
