"""Options: ffcv-imagenet's files load, mistakes are answered in one line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from ffcv_cropmix.training.config import Config, parse_config
from ffcv_cropmix.training.schedules import resolution

REPOSITORY = Path(__file__).parents[2]
REQUIRED = ["--data.train_dataset=train.beton", "--data.val_dataset=val.beton", "--logging.folder=run"]

RECIPES = sorted([*REPOSITORY.glob("rn*_configs/*.yaml"), *REPOSITORY.glob("examples/cifar/*.yaml")])
# ffcv-imagenet's start and end of the ramp from 160 to 192 px, for each number of epochs
RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}

# As ffcv-imagenet writes its files: every key of theirs, booleans as 1, 0 and true.
THEIRS = """
data:
  gpu: 0
  in_memory: 1
  num_workers: 12
dist:
  world_size: 1
  address: localhost
  port: '12355'
logging:
  folder: /somewhere
  log_level: 0
lr:
  lr: 0.5
  lr_peak_epoch: 2
  lr_schedule_type: cyclic
  step_ratio: 0.1
  step_length: 30
model:
  arch: resnet18
  pretrained: 0
resolution:
  end_ramp: 13
  max_res: 192
  min_res: 160
  start_ramp: 11
training:
  batch_size: 1024
  bn_wd: 0
  distributed: 0
  epochs: 16
  eval_only: 0
  label_smoothing: 0.1
  momentum: 0.9
  optimizer: sgd
  weight_decay: 5e-5
  use_blurpool: 1
validation:
  batch_size: 512
  lr_tta: true
  resolution: 256
"""


# Theirs for ResNet-50, as published.
THEIRS_ON_8_GPUS = """
data:
  in_memory: 1
  num_workers: 12
dist:
  world_size: 8
logging:
  folder: /tmp/
lr:
  lr: 1.7
  lr_schedule_type: cyclic
model:
  arch: resnet50
resolution:
  end_ramp: 13
  max_res: 192
  min_res: 160
  start_ramp: 11
training:
  batch_size: 512
  bn_wd: 0
  distributed: 1
  epochs: 16
  label_smoothing: 0.1
  momentum: 0.9
  optimizer: sgd
  weight_decay: 0.0001
  use_blurpool: 1
validation:
  lr_tta: true
  resolution: 256
"""


def test_defaults() -> None:
    config = parse_config(REQUIRED)
    assert config.data.train_dataset == "train.beton"
    assert (config.cropmix.enabled, config.cropmix.number, config.cropmix.scale) == (0, 234, 0.01)
    assert config.model.num_classes is None
    assert config.data.flip_probability == 0.5


@pytest.mark.parametrize("option", ["--config-file", "--config"])
def test_ffcv_imagenets_files_load_and_later_options_override(option: str, tmp_path: Path) -> None:
    file = tmp_path / "rn18.yaml"
    file.write_text(THEIRS)
    config = parse_config([option, str(file), *REQUIRED, "--training.epochs=3", "--cropmix.enabled=true"])
    assert (config.training.epochs, config.training.batch_size) == (3, 1024)
    assert config.training.weight_decay == 5e-5
    assert config.training.use_blurpool == 1
    assert config.validation.lr_tta is True
    assert config.dist.port == 12355
    assert config.cropmix.enabled is True
    assert config.logging.folder == "run"


def test_ffcv_imagenets_files_for_8_gpus_load(tmp_path: Path) -> None:
    file = tmp_path / "rn50.yaml"
    file.write_text(THEIRS_ON_8_GPUS)
    config = parse_config([f"--config-file={file}", *REQUIRED])
    assert (config.training.distributed, config.dist.world_size) == (1, 8)
    assert (config.training.batch_size, config.training.global_batch_size) == (512, None)
    assert (config.lr.lr, config.lr.lr_peak_epoch, config.lr.reference_batch_size) == (1.7, 2, None)
    assert (config.model.arch, config.validation.resolution) == ("resnet50", 256)
    assert config.cropmix.enabled == 0


def _recipe(file: Path) -> Config:
    return parse_config([f"--config-file={file}", *REQUIRED])


def test_recipes_are_shipped() -> None:
    schedules = [f"rn{depth}_configs/rn{depth}_{epochs}_epochs.yaml" for depth in (18, 50) for epochs in RAMPS]
    others = ["rn50_configs/paper_r1.yaml", "examples/cifar/cifar10.yaml", "examples/cifar/cifar100.yaml"]
    assert {file.relative_to(REPOSITORY).as_posix() for file in RECIPES} == {*schedules, *others}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_are_sound(file: Path) -> None:
    config = _recipe(file)
    training, lr = config.training, config.lr
    assert config.cropmix.enabled
    assert config.resolution.end_ramp < training.epochs
    assert all(resolution(epoch, config.resolution) % 32 == 0 for epoch in range(training.epochs))
    assert config.validation.resolution % 32 == 0
    if lr.lr_schedule_type == "cyclic":
        assert 0 < lr.lr_peak_epoch < training.epochs
    else:
        assert training.epochs % lr.step_length == 0
    # the same optimisation on one GPU and on eight: nothing depends on how many there are
    assert training.global_batch_size == lr.reference_batch_size
    assert training.global_batch_size % training.batch_size == 0


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("epochs", RAMPS)
def test_schedules_are_ffcv_imagenets(depth: int, epochs: int) -> None:
    file = REPOSITORY / f"rn{depth}_configs/rn{depth}_{epochs}_epochs.yaml"
    config = _recipe(file)
    ramp, training = config.resolution, config.training
    assert (config.model.arch, training.epochs) == (f"resnet{depth}", epochs)
    assert (ramp.min_res, ramp.max_res, ramp.start_ramp, ramp.end_ramp) == (160, 192, *RAMPS[epochs])
    sides = [resolution(epoch, ramp) for epoch in range(epochs)]
    assert f"from epoch {sides.index(192)}:" in file.read_text()
    assert f"epochs 0 to {sides.index(192) - 1}\n" in file.read_text()
    published = {50: (1.7, 4096, 1e-4), 18: (0.5, 1024, 5e-5)}
    assert (config.lr.lr, training.global_batch_size, training.weight_decay) == published[depth]
    assert (config.lr.lr_schedule_type, config.lr.lr_peak_epoch) == ("cyclic", 2)
    assert (training.momentum, training.label_smoothing) == (0.9, 0.1)
    assert (training.bn_wd, training.use_blurpool) == (0, 1)
    assert (config.validation.resolution, config.validation.lr_tta) == (256, 1)
    cropmix = config.cropmix
    assert (cropmix.scale, cropmix.number, cropmix.operation) == (0.01, 234, "mixup")
    assert (cropmix.mix_ratio, cropmix.inter_aug) == (0.4, 1)


@pytest.mark.parametrize(
    ("file", "batch_size", "step_length", "sides", "crops"),
    [
        ("rn50_configs/paper_r1.yaml", 256, 75, (224, 224), (0.01, 234)),
        ("examples/cifar/cifar10.yaml", 100, 100, (32, 32), (0.5, 2)),
        ("examples/cifar/cifar100.yaml", 100, 100, (32, 32), (0.5, 2)),
    ],
)
def test_the_papers_recipes(
    file: str, batch_size: int, step_length: int, sides: tuple[int, int], crops: tuple[float, int]
) -> None:
    config = _recipe(REPOSITORY / file)
    training, cropmix = config.training, config.cropmix
    assert (training.epochs, training.global_batch_size) == (300, batch_size)
    assert (config.lr.lr, config.lr.lr_schedule_type, config.lr.step_ratio) == (0.1, "step", 0.1)
    assert config.lr.step_length == step_length
    assert (training.momentum, training.weight_decay, training.bn_wd) == (0.9, 1e-4, 1)
    assert (training.label_smoothing, training.use_blurpool) == (0, 0)
    assert (resolution(0, config.resolution), config.validation.resolution) == sides
    assert config.validation.lr_tta == 0
    assert (cropmix.scale, cropmix.number) == crops
    assert (cropmix.operation, cropmix.mix_ratio, cropmix.inter_aug) == ("mixup", 0.4, 1)
    small = sides == (32, 32)
    assert config.model.cifar_stem == small
    assert (config.validation.crop_ratio == 1) == small


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_switches_on(value: str) -> None:
    assert parse_config([*REQUIRED, f"--training.bn_wd={value}"]).training.bn_wd


@pytest.mark.parametrize("value", ["0", "false"])
def test_switches_off(value: str) -> None:
    assert not parse_config([*REQUIRED, f"--validation.lr_tta={value}"]).validation.lr_tta


def test_every_option_is_described(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name, section in get_type_hints(Config).items():
        for key in fields(section) if is_dataclass(section) else ():
            described = text.split(f"  --{name}.{key.name} ")[1].split("(type:")[0].split("(required, type:")[0]
            assert len(described.split()) >= 2, f"{name}.{key.name}"


def test_print_config_loads_again(capsys, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config([*REQUIRED, "--lr.lr=3", "--print_config"])
    assert ended.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse_config([f"--config={file}"]) == parse_config([*REQUIRED, "--lr.lr=3"])


def _refused(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_config(arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--training.epochs=many", "training.epochs: expected int, got 'many'"),
        ("--training.epochs=2.5", "training.epochs: expected int, got '2.5'"),
        ("--training.bn_wd=2", "training.bn_wd: expected bool or 0 or 1, got '2'"),
        ("--model.num_classes=x", "model.num_classes: expected int or null, got 'x'"),
        ("--training.optimizer=adam", "training.optimizer: expected sgd, got 'adam'"),
        ("--cropmix.operation=blend", "cropmix.operation: expected mixup or cutmix or 0 or 1, got 'blend'"),
        ("--training.epochs=0", "training.epochs must be >= 1, got 0"),
        ("--training.weight_decay=-1", "training.weight_decay must be >= 0, got -1.0"),
        ("--training.label_smoothing=1", "training.label_smoothing must be in [0, 1), got 1"),
        ("--resolution.max_res=128", "resolution.max_res must be >= min_res = 160 px, got 128"),
        ("--resolution.start_ramp=3", "resolution.end_ramp must be >= start_ramp = 3, got 0"),
        ("--lr.lr=0", "lr.lr must be > 0, got 0"),
        ("--data.flip_probability=1.5", "data.flip_probability must be in [0, 1], got 1.5"),
        ("--data.num_workers=0", "data.num_workers must be >= 1, got 0"),
        ("--cropmix.scale=0", "cropmix.scale must be in (0, 1], got 0"),
        ("--cropmix.number=29", "cropmix.number must be made of the digits 1 to 8, got 29"),
        ("--cropmix.mix_ratio=0", "cropmix.mix_ratio must be > 0, got 0"),
        ("--training.precision=half", "training.precision: expected bf16 or fp16 or fp32 or null, got 'half'"),
        ("--training.global_batch_size=0", "training.global_batch_size must be >= 1, got 0"),
        ("--training.ema_decay=1", "training.ema_decay must be in [0, 1), got 1"),
        ("--training.mixup=-1", "training.mixup must be >= 0, got -1"),
        ("--training.cutmix=-1", "training.cutmix must be >= 0, got -1"),
        ("--training.loss=mse", "training.loss: expected cross_entropy or bce, got 'mse'"),
        ("--training.eval_only=1", "training.eval_only=1 needs --resume=FILE"),
        ("--lr.reference_batch_size=0", "lr.reference_batch_size must be >= 1, got 0"),
        ("--validation.crop_ratio=2", "validation.crop_ratio must be in (0, 1], got 2"),
        ("--resum=auto", "there is no option resum; did you mean resume"),
        ("--lr=0.1", "lr is a section, and '0.1' is not a YAML file for it: --lr.NAME=VALUE"),
        ("--epochs=3", "there is no option epochs; did you mean training.epochs"),
        ("--address = 10.0.0.1", "there is no option address; did you mean dist.address"),  # ffcv#124
        ("--batch_size=3", "no option batch_size; did you mean "),
        ("--model.num_classes=1", "model.num_classes must be >= 2, got 1"),
        ("--validation.resolution=0", "validation.resolution must be >= 1 px, got 0"),
        ("--dist.port=0", "dist.port must be in 1 to 65535, got 0"),
        ("--training.epoch=3", "there is no option training.epoch; did you mean training.epochs"),
        ("--training.batch-size=3", "there is no option training.batch-size; did you mean training.batch_size"),
        ("--lr.lr-peak-epoch=3", "there is no option lr.lr-peak-epoch; did you mean lr.lr_peak_epoch"),
        ("--resume=~nobody-has-this-name/c.pt", "resume: there is no home directory ~nobody-has"),
        ("--config=missing.yaml", "missing.yaml"),
    ],
)
def test_wrong_values_are_answered_in_one_line(option: str, message: str, capsys) -> None:
    assert message in _refused([option, *REQUIRED], capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epoch: 3}", "there is no option training.epoch; did you mean training.epochs"),
        ("trainings: {epochs: 3}", "trainings.epochs"),
        ("training: {epochs: [3]}", "training.epochs: expected int, got '[3]'"),
        ("training: {epochs: 0}", "training.epochs must be >= 1, got 0"),
        ("training: 3", "training: expected a section of options, got 3"),
        ("training: {epochs: ", "Problems parsing config"),
        ("3", "3"),
    ],
)
def test_wrong_files_are_answered_in_one_line(text: str, message: str, capsys, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    assert message in _refused([f"--config={file}", *REQUIRED], capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: {lr: 1}\ntraining: {epochs: 3}\nlr: {lr_peak_epoch: 1}", "lr is in line 3 and, before it, in line 1"),
        ("training:\n  epochs: 3\n  seed: 1\n  epochs: 3", "training.epochs is in line 4 and, before it, in line 2"),
        ("training: {seed: 1, seed: 2}", "training.seed is in line 1 and, before it, in line 1"),
        ("training.seed: 1\ntraining: {seed: 2}", "training.seed is in line 2 and, before it, in line 1"),
        ("resume: auto\nresume: other.pt", "resume is in line 2 and, before it, in line 1"),
        (b"logging: {folder: caf\xe9}", "is not UTF-8, as YAML must be: invalid continuation byte at byte 21"),
        ("lr: {lr: 1}".encode("utf-16"), "is not UTF-8, as YAML must be: invalid start byte at byte 0"),
    ],
)
def test_files_that_would_be_misread_are_refused(text: str | bytes, message: str, capsys, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    for arguments in ([f"--config={file}"], ["--config-file", str(file)]):
        assert _refused([*arguments, *REQUIRED], capsys).startswith(f"{file}")
        assert message in _refused([*arguments, *REQUIRED], capsys)


def test_a_section_may_be_a_file_of_its_own_and_is_checked(capsys, tmp_path: Path) -> None:
    file = tmp_path / "training.yaml"
    file.write_text("epochs: 3\nseed: 1")
    assert parse_config([f"--training={file}", *REQUIRED]).training.epochs == 3
    file.write_text("epochs: 3\nepochs: 4")
    assert "epochs is in line 2 and, before it, in line 1" in _refused([f"--training={file}", *REQUIRED], capsys)


def test_anchors_and_other_scripts_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "logging: {folder: läufe/訓練}\nvalidation: &sizes {batch_size: 8}\ntraining: {<<: *sizes, epochs: 2}",
        encoding="utf-8-sig",
    )
    config = parse_config([f"--config={file}", "--data.train_dataset=t", "--data.val_dataset=v"])
    assert (config.logging.folder, config.training.batch_size, config.training.epochs) == ("läufe/訓練", 8, 2)


def test_paths_may_start_at_the_home_directory(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    file = tmp_path / "a.yaml"
    file.write_text("data: {train_dataset: ~/t.beton, val_dataset: a/~/v}\nlogging: {folder: ~/run}")
    config = parse_config([f"--config={file}", "--resume=~/run/checkpoint.pt"])
    paths = [config.data.train_dataset, config.data.val_dataset, config.logging.folder, config.resume]
    assert paths == ["/home/me/t.beton", "a/~/v", "/home/me/run", "/home/me/run/checkpoint.pt"]


def test_missing_options_are_named(capsys) -> None:
    message = _refused(["--logging.folder=run"], capsys)
    assert message == "the following arguments are required: data.train_dataset, data.val_dataset"


def test_several_processes() -> None:
    config = parse_config([*REQUIRED, "--training.distributed=1", "--dist.world_size=8"])
    assert (config.training.distributed, config.dist.world_size) == (1, 8)


@pytest.mark.parametrize("option", ["--config", "--config-file"])
def test_a_file_after_an_option_is_refused(option: str, capsys, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("training: {epochs: 3}")
    for arguments in ([option, str(file)], [f"{option}={file}"]):
        message = _refused([*REQUIRED, "--training.epochs=5", *arguments], capsys)
        assert message == f"{option} comes after --training.epochs=5, which it would override: put the file first"
    assert parse_config([option, str(file), option, str(file), *REQUIRED]).training.epochs == 3


def test_options_stay() -> None:
    """Renaming or dropping an option breaks its users' files: change this list on purpose only."""
    options = {
        name: [key.name for key in fields(hint)] if is_dataclass(hint) else []
        for name, hint in get_type_hints(Config).items()
    }
    assert options == {
        "model": ["arch", "pretrained", "num_classes", "cifar_stem"],
        "resolution": ["min_res", "max_res", "start_ramp", "end_ramp"],
        "data": ["train_dataset", "val_dataset", "num_workers", "in_memory", "gpu", "flip_probability"],
        "cropmix": ["enabled", "scale", "number", "operation", "mix_ratio", "inter_aug"],
        "lr": ["lr", "reference_batch_size", "lr_schedule_type", "lr_peak_epoch", "step_ratio", "step_length"],
        "training": [
            *("batch_size", "global_batch_size", "optimizer", "momentum", "weight_decay", "bn_wd", "epochs", "loss"),
            *(
                "label_smoothing",
                "mixup",
                "cutmix",
                "augment",
                "random_erasing",
                "ema_decay",
                "precision",
                "compile",
                "sync_bn",
                "distributed",
            ),
            *("use_blurpool", "eval_only", "seed"),
        ],
        "validation": ["batch_size", "resolution", "crop_ratio", "lr_tta"],
        "logging": ["folder", "log_level", "tensorboard"],
        "dist": ["world_size", "address", "port"],
        "resume": [],
    }


def test_options_are_read_without_torch_and_ffcv() -> None:
    code = "import sys, ffcv_cropmix.training.config as c; assert not {'torch', 'ffcv', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
