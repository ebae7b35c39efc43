"""train_imagenet.py as its users start it: a program, with files and options."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from ffcv_cropmix.data.convert import convert
from ffcv_cropmix.data.encode import EncodeOptions
from ffcv_cropmix.data.images import Source
from ffcv_cropmix.errors import DataError, run_program
from ffcv_cropmix.evaluation.suite import Settings, ValidationSet, measure
from ffcv_cropmix.training import classifier
from ffcv_cropmix.training import run as run_module
from ffcv_cropmix.training.compare import read_run, table
from ffcv_cropmix.training.config import parse_config
from ffcv_cropmix.training.distributed import Processes
from ffcv_cropmix.training.models import create_network
from ffcv_cropmix.training.safe_load import safe_load

REPOSITORY = Path(__file__).parents[2]
CLASSES = 3
RAW = EncodeOptions(write_mode="raw")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name two files of noisy images whose class is their brightest third."""
    folder = tmp_path_factory.mktemp("stripes")
    options = []
    for name, count in {"train": 50, "val": 10}.items():
        images, labels = _stripes(count)
        source = Source([f"third {label}" for label in range(CLASSES)], labels, images)
        convert(source, folder / f"{name}.beton", RAW, num_workers=1)
        options.append(f"--data.{name}_dataset={folder / name}.beton")
    return options


def _stripes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is their brightest third, and their labels."""
    labels = np.arange(count) % CLASSES
    images = np.random.default_rng(count).integers(0, 120, (count, 36, 36, 3), np.uint8)
    for image, label in zip(images, labels):
        image[:, label * 12 :][:, :12] += 120
    return images, labels


def _renumbered(data: list[str], path: Path) -> list[str]:
    """The same data, the classes of the validation set in another order."""
    images, labels = _stripes(10)
    convert(Source(["third 1", "third 2", "third 0"], (labels + 2) % 3, images), path, RAW, num_workers=1)
    return [data[0], f"--data.val_dataset={path}"]


def _refused(capsys, *options: str) -> tuple[int, str]:
    """Exit status and message."""
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: classifier.train(parse_config(options)))
    if isinstance(ended.value.code, int):
        return ended.value.code, capsys.readouterr().err
    return 1, str(ended.value.code)  # Python prints it, and exits with 1


TINY = [
    "--model.arch=resnet18",
    f"--model.num_classes={CLASSES}",
    "--resolution.min_res=32",
    "--resolution.max_res=64",
    "--resolution.start_ramp=0",
    "--resolution.end_ramp=2",
    "--training.batch_size=16",
    "--training.epochs=3",
    "--training.use_blurpool=1",
    "--lr.lr=0.02",
    "--lr.lr_peak_epoch=3",
    "--validation.resolution=40",
    "--validation.batch_size=4",
    "--data.num_workers=1",
]


def _log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def test_a_cropmix_run_from_config_to_closing_table(data: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [*TINY, *data, "--cropmix.enabled=1", "--cropmix.scale=0.3", f"--logging.folder={folder}"]
    command = [sys.executable, "train_imagenet.py", *options]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert "Exception ignored" not in result.stderr
    assert "lr.lr_peak_epoch=3 is beyond the 3 epochs: moved to 1.5" in result.stdout

    lines = _log(folder)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert [line["resolution"] for line in lines] == [32, 64, 64]
    # Of three steps an epoch, the last is at 5/6 of the epoch; the peak is at 1.5.
    assert [line["lr"] for line in lines] == pytest.approx([0.02 * (5 / 6) / 1.5, 0.02 * (7 / 6) / 1.5, 0.02 / 9])
    for line in lines:
        assert {"train_loss", "val_loss", "top_1", "top_5", "rms_calibration_error"} <= line.keys()
        assert line["top_5"] == 100
        assert line["seconds"] > 48 / line["images_per_second"] > 0
    assert json.loads((folder / "params.json").read_text())["cropmix"]["scale"] == 0.3

    assert lines[0]["waiting"] >= 0
    weights = _weights(folder)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layer2\.0\.conv1\.blur"):
        torchvision.models.resnet18(num_classes=CLASSES).load_state_dict(weights)
    create_network("resnet18", CLASSES, blurpool=True).load_state_dict(weights)
    assert weights["bn1.num_batches_tracked"] == 9  # three steps of three epochs

    printed = result.stdout.splitlines()
    assert printed[-1] == f"weights: {folder / 'final_weights.pt'}"
    assert "\n".join(printed[-3:-1]) == table([read_run(folder)])
    summary = (
        "resnet18, 11.2 M parameters, 3 classes; 50 training and 10 validation images; global batch 16 (1 x 1 x 16: "
        "processes, accumulation steps, micro-batch); 3 epochs, 32 to 64 px, CropMix 234 mixup; cpu, fp32"
    )
    assert any(line.startswith(summary) for line in printed)
    assert sum(line.startswith("first batch after ") for line in printed) == 1
    files = {path.name.partition(".tfevents")[0] for path in folder.iterdir()}
    assert files == {".lock", "checkpoint.pt", "curves.png", "events.out", "final_weights.pt", "log", "params.json"}
    assert "-" not in table([read_run(folder)]).split()  # the comparison of runs finds all its columns in the log


def test_same_seed_same_losses_and_evaluation_at_the_end_only(data: list[str], tmp_path: Path, signals: None) -> None:
    shuffled = _renumbered(data, tmp_path / "renumbered.beton")  # matched by name: the same figures
    losses = {}
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        folder = tmp_path / name
        options = ["--training.epochs=2", "--logging.log_level=0", f"--training.seed={seed}"]
        files = shuffled if name == "again" else data
        classifier.train(parse_config([*TINY, *files, *options, f"--logging.folder={folder}"]))
        lines = _log(folder)
        assert ["top_1" in line for line in lines] == [False, True]
        losses[name] = [*(line["train_loss"] for line in lines), lines[1]["top_1"], lines[1]["val_loss"]]
    assert losses["first"] == losses["again"]
    assert losses["first"] != losses["other"]


RESUMED = [
    *("--training.epochs=2", "--training.batch_size=4", "--training.global_batch_size=16", "--training.ema_decay=0.5"),
    *(
        "--training.mixup=0.2",
        "--training.cutmix=1",
        "--model.arch=mnasnet0_5",
        "--training.loss=bce",
    ),  # it has dropout
    *("--resume=auto", "--cropmix.enabled=1", "--training.augment=jitter", "--training.random_erasing=0.5"),
]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "final_weights.pt", weights_only=True)


def test_a_run_that_is_broken_off_and_resumed_ends_with_the_same_weights(
    data: list[str], tmp_path: Path, monkeypatch, signals: None
) -> None:
    def run(folder: str, *further: str) -> None:
        classifier.train(parse_config([*TINY, *data, *RESUMED, f"--logging.folder={tmp_path / folder}", *further]))

    run("whole")

    seed_step, kill = run_module.seed_step, [(0, 1), (1, 0), (1, 1)]

    def seed_and_stop(seed: int, epoch: int, step: int, rank: int) -> None:
        if kill and (epoch, step) == kill[0]:
            kill.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        seed_step(seed, epoch, step, rank)

    monkeypatch.setattr(run_module, "seed_step", seed_and_stop)
    for at in kill.copy():
        with pytest.raises(SystemExit) as ended:
            run("stopped")
        assert ended.value.code == 128 + signal.SIGTERM
        progress = safe_load(tmp_path / "stopped" / "checkpoint.pt")["progress"]
        assert (progress["epoch"], progress["step"]) == (at[0], at[1] + 1)
    run("stopped")
    run("stopped")  # nothing is left to do

    def fail(seed: int, epoch: int, step: int, rank: int) -> None:
        if (epoch, step) == (1, 1):
            raise MemoryError  # as good as killed: nothing is saved
        seed_step(seed, epoch, step, rank)

    monkeypatch.setattr(run_module, "seed_step", fail)
    with pytest.raises(MemoryError):
        run("killed")
    monkeypatch.setattr(run_module, "seed_step", seed_step)
    with pytest.raises(DataError, match=r"is of a run with lr.lr=0.02, not 0.03: start a new run"):
        run("killed", "--lr.lr=0.03")
    with pytest.raises(DataError, match=r"a global batch of 16 images, not 8: set training.global_batch_size"):
        run("killed", "--training.global_batch_size=8")
    run("killed", "--training.batch_size=16", "--data.num_workers=1")
    for folder in ("stopped", "killed"):
        whole, resumed = _log(tmp_path / "whole"), _log(tmp_path / folder)
        if folder == "stopped":  # "killed" had other micro-batches, over which statistics are taken
            assert [line["train_loss"] for line in resumed] == [line["train_loss"] for line in whole]
            weights = _weights(tmp_path / folder)
            for name, value in _weights(tmp_path / "whole").items():
                assert torch.equal(weights[name], value), name
        assert [line["epoch"] for line in resumed] == [0, 1]


def test_the_average_is_evaluated_and_kept(data: list[str], tmp_path: Path, signals: None) -> None:
    options = ["--training.epochs=1", "--training.ema_decay=0.75", f"--logging.folder={tmp_path}"]
    classifier.train(parse_config([*TINY, *data, *options]))
    saved = safe_load(tmp_path / "checkpoint.pt")
    weights = _weights(tmp_path)
    assert saved["ema"]["n_averaged"] == 3
    assert all(torch.equal(saved["ema"][f"module.{name}"], value) for name, value in weights.items())
    assert not torch.equal(saved["model"]["fc.weight"], weights["fc.weight"])


def test_eval_only(data: list[str], tmp_path: Path, capsys, signals: None) -> None:
    view, folder = ["--validation.resolution=40", "--validation.crop_ratio=0.6"], tmp_path / "run"
    run = [*TINY, *data, *view, "--training.epochs=1", "--training.ema_decay=0.75", f"--logging.folder={folder}"]
    classifier.train(parse_config(run))
    [line] = _log(folder)
    before = sorted(folder.iterdir())
    other, renumbered = tmp_path / "other", _renumbered(data, tmp_path / "renumbered.beton")
    other.mkdir()
    sets = [ValidationSet(Path(files[1].partition("=")[2])) for files in (data, renumbered)]
    for file in ("checkpoint.pt", "final_weights.pt"):
        shutil.copy(folder / file, other)  # without params.json: the weights say what they need
        for files, validation in zip((data, renumbered), sets):
            capsys.readouterr()
            options = [*files, *view, "--data.num_workers=1", "--training.eval_only=1", f"--resume={other / file}"]
            classifier.evaluate_only(parse_config([*options, "--logging.folder=unused"]))
            assert capsys.readouterr().out.startswith(
                f"top-1 {line['top_1']:.2f} %, top-5 100.00 %, loss {line['val_loss']:.4f}"
            )
            result = measure(other / file, validation, Settings(metrics=["clean", "rms"], num_workers=1))
            assert result["clean"] == pytest.approx(line["top_1"], abs=1e-4)
            assert result["rms"] == pytest.approx(line["rms_calibration_error"], abs=1e-3)
            assert (result["resolution"], result["crop_ratio"], result["flip_tta"]) == (40, 0.6, True)
    assert sorted(folder.iterdir()) == before
    classifier.evaluate_only(
        parse_config([*options[:2], options[-1], "--training.eval_only=1", "--logging.folder=unused"])
    )
    printed = capsys.readouterr().err
    assert f"{other / file} was validated with resolution 40; the options say 224" in printed
    with pytest.raises(DataError, match=r"final_weights\.pt is of a network without cifar_stem"):
        classifier.evaluate_only(parse_config([*options, "--model.cifar_stem=1", "--logging.folder=unused"]))
    with pytest.raises(DataError, match=r"is not of resnet34: it lacks layer1\.2"):
        options = ["--training.eval_only=1", "--resume=auto", "--model.arch=resnet34"]
        classifier.evaluate_only(parse_config([*run, *options]))


def _plain_network(*_: Any, **__: Any) -> nn.Module:
    """Without normalisation over the batch, of which processes know a part each."""
    layers = nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, CLASSES)
    return nn.Sequential(*layers)


TWO_PROCESSES = """
import sys
from ffcv_cropmix.training import classifier
from ffcv_cropmix.training.config import parse_config
from tests.training.test_train_imagenet import _plain_network
classifier.create_network = _plain_network
classifier.train(parse_config(sys.argv[1:]))
"""


def test_two_processes_train_as_one_does(data: list[str], tmp_path: Path, monkeypatch, signals: None, capfd) -> None:
    options = [
        *TINY,
        *data,
        *("--training.batch_size=12", "--training.global_batch_size=48", "--training.epochs=50", "--lr.lr=0.1"),
        *("--training.distributed=1", "--dist.port=29713", "--logging.log_level=0", "--logging.tensorboard=0"),
        *("--resolution.max_res=32", "--training.use_blurpool=0", "--cropmix.enabled=1"),
    ]
    monkeypatch.setattr(classifier, "create_network", _plain_network)
    classifier.train(parse_config([*options, f"--logging.folder={tmp_path / 'one'}"]))
    assert "global batch 48 (1 x 4 x 12: " in capfd.readouterr().out
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, str(script), *options, f"--logging.folder={tmp_path / 'two'}", "--dist.world_size=2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("global batch 48 (2 x 2 x 12: ") == 1  # one of them reports
    one, two = _log(tmp_path / "one"), _log(tmp_path / "two")
    losses = [line["train_loss"] for line in one]
    assert len(losses) == 50  # of a step each
    assert losses[-1] < losses[0] - 0.1
    assert [line["train_loss"] for line in two] == pytest.approx(losses, abs=1e-4)
    for name in ("top_1", "val_loss", "rms_calibration_error"):  # 10 images, of which a batch has 4
        assert two[-1][name] == pytest.approx(one[-1][name], abs=1e-3)


@pytest.mark.parametrize(
    ("enabled", "expected"),
    [
        (0, {"scale": 0.08, "number": 1}),
        (1, {"scale": 0.3, "number": 23, "operation": "cutmix", "mix_ratio": 0.5, "inter_aug": True}),
    ],
)
def test_the_decoder_gets_the_options_of_the_augmentation(monkeypatch, enabled: int, expected: dict) -> None:
    received = {}
    monkeypatch.setattr(
        classifier, "CropMixRGBImageDecoder", lambda size, **options: received.update(options, size=size)
    )
    cropmix = ["--cropmix.scale=0.3", "--cropmix.number=23", "--cropmix.operation=cutmix", "--cropmix.mix_ratio=0.5"]
    run = ["--data.train_dataset=t", "--data.val_dataset=v", "--logging.folder=f", "--training.seed=9"]
    flip = "--data.flip_probability=0.25"
    classifier.create_decoder(parse_config([*run, *cropmix, flip, f"--cropmix.enabled={enabled}"]))
    assert received == {"size": (160, 160), "flip_probability": 0.25, "seed": 9, **expected}


def test_usage_errors_are_quick() -> None:
    command = [sys.executable, "-X", "importtime", "train_imagenet.py", "--training.epochz=1"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    imports, messages = [], []
    for line in result.stderr.splitlines():
        (imports if line.startswith("import time:") else messages).append(line.split("|")[-1].strip())
    assert not {"torch", "ffcv", "numba"} & set(imports)  # they take seconds
    assert result.returncode == 2
    assert messages == [
        "error: there is no option training.epochz; did you mean training.epochs or training.seed or training.loss?"
    ]


def test_unknown_architecture(data: list[str], tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    status, message = _refused(capsys, *data, f"--logging.folder={run}", "--model.arch=resnet51")
    assert status == 2
    assert message.startswith("error: model.arch: torchvision has no architecture 'resnet51'; close to it: ")
    assert message.count("\n") == 1
    assert not run.exists()


def test_missing_and_unreadable_files_are_named(data: list[str], tmp_path: Path, capsys) -> None:
    run, missing, text = tmp_path / "run", tmp_path / "missing.beton", tmp_path / "text.beton"
    text.write_text("no images here " * 100)
    options = [data[1], f"--logging.folder={run}", "--model.num_classes=3"]
    assert _refused(capsys, f"--data.train_dataset={missing}", *options) == (
        1,
        f"error: {missing}: no such file or directory",
    )
    status, message = _refused(capsys, f"--data.train_dataset={text}", *options)
    assert status == 1
    assert message.startswith(f"error: {text} ")
    assert "\n" not in message
    assert not run.exists()


def test_batch_larger_than_the_training_set(data: list[str], tmp_path: Path, capsys) -> None:
    status, message = _refused(capsys, *data, f"--logging.folder={tmp_path}", "--training.batch_size=51")
    assert status == 2
    assert "the global batch of 51 images is larger than the training set of 50" in message


def test_label_that_the_model_does_not_have(data: list[str], tmp_path: Path, capsys) -> None:
    status, message = _refused(capsys, *data, f"--logging.folder={tmp_path}", "--model.num_classes=2")
    assert status == 1
    assert "sample 2 has the label 2, the model has 0 to 1" in message


def test_a_last_batch_of_one(data: list[str]) -> None:
    config = parse_config([*data, "--logging.folder=unused", "--validation.batch_size=9", "--validation.resolution=8"])
    loader = classifier.create_val_loader(config, Processes(torch.device("cpu")))
    shapes = [(images.shape, labels.shape) for images, labels in loader]
    assert shapes == [((9, 3, 8, 8), (9,)), ((1, 3, 8, 8), (1,))]
