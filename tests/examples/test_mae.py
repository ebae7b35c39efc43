"""examples/mae: its parts, and both programs on images of 16 px."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ffcv_cropmix import training
from ffcv_cropmix.data.convert import convert
from ffcv_cropmix.data.encode import EncodeOptions
from ffcv_cropmix.data.images import Source
from ffcv_cropmix.errors import DataError

pytest.importorskip("timm")
pytest.importorskip("lightly")

from examples.mae import common
from examples.mae.config import ModelConfig, TrainingConfig, parse_finetune, parse_pretrain
from examples.mae.finetuning import create_classifier, create_optimizer, create_probe, finetune
from examples.mae.model import MaskedAutoencoder, load_encoder, read_shape
from examples.mae.pretraining import pretrain

CLASSES = 4
SHAPE = {"resolution": 16, "patch_size": 4, "width": 32, "depth": 2, "heads": 2}
SHAPE |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
TINY = [f"--model.{key}={value}" for key, value in SHAPE.items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name two files of noisy images whose class is their brightest quarter, numbered otherwise."""
    folder = tmp_path_factory.mktemp("quarters")
    chosen = []
    for name, count in {"train": 64, "val": 12}.items():
        labels = np.arange(count) % CLASSES
        images = np.random.default_rng(count).integers(0, 60, (count, 20, 20, 3), np.uint8)
        for image, label in zip(images, labels):
            image[label // 2 * 10 :, label % 2 * 10 :][:10, :10] += 180
        names = [f"quarter {label}" for label in range(CLASSES)]
        if name == "val":
            names, labels = names[::-1], CLASSES - 1 - labels
        source = Source(names, labels, images)
        convert(source, folder / f"{name}.beton", EncodeOptions(write_mode="raw"), num_workers=1)
        chosen.append(f"--data.{name}_dataset={folder / name}.beton")
    return [*chosen, "--data.num_workers=1", "--logging.tensorboard=0", "--logging.log_level=0"]


pytestmark = pytest.mark.usefixtures("signals")


def _autoencoder(**options: Any) -> tuple[MaskedAutoencoder, torch.Tensor]:
    torch.manual_seed(0)
    return MaskedAutoencoder(ModelConfig(**SHAPE, **options)), torch.randn(3, 3, 16, 16)


def _patches(image: np.ndarray, side: int) -> np.ndarray:
    """(3, height, width) to (patches, pixels * 3), row by row, colours together."""
    _, height, width = image.shape
    places = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
    return np.stack([image[:, top : top + side, left : left + side].transpose(1, 2, 0).ravel() for top, left in places])


@pytest.mark.parametrize("norm_pix_loss", [0, 1])
def test_the_loss_is_the_squared_error_of_masked_patches(norm_pix_loss: int) -> None:
    network, images = _autoencoder(norm_pix_loss=norm_pix_loss)
    torch.manual_seed(1)
    loss = network(images).item()
    torch.manual_seed(1)
    kept, masked = network.sample_masks(images)
    predictions = network.predictions(images, kept, masked).detach().numpy()
    errors = []
    for image, tokens, predicted in zip(images.numpy().astype(float), masked.numpy(), predictions):
        patches = _patches(image, 4)
        if norm_pix_loss:
            patches = (patches - patches.mean(1, keepdims=True)) / patches.std(1, ddof=1, keepdims=True)
        errors.append((predicted - patches[tokens - 1]) ** 2)
    assert loss == pytest.approx(np.mean(errors), rel=1e-5)


def test_masks_cover_the_ratio_and_never_the_class_token() -> None:
    network, images = _autoencoder(mask_ratio=0.75)
    kept, masked = network.sample_masks(images)
    assert kept.shape == (3, 5)  # of 16 patches 4, and the class token
    assert masked.shape == (3, 12)
    assert (kept == 0).sum(1).tolist() == [1, 1, 1]
    assert torch.cat([kept, masked], 1).sort(1).values.tolist() == [list(range(17))] * 3
    assert len({tuple(row) for row in masked.sort(1).values.tolist()}) == 3


def test_masked_patches_are_not_seen() -> None:
    network, images = _autoencoder()
    kept, masked = network.sample_masks(images)
    before = network.predictions(images, kept, masked)
    for tokens, changes in ((masked, False), (kept[kept > 0].view(3, -1), True)):
        other = images.clone()
        for image, row in zip(other, tokens.tolist()):
            for token in row:
                top, left = divmod(token - 1, 4)
                image[:, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] = 0
        assert torch.equal(network.predictions(other, kept, masked), before) != changes


@pytest.mark.parametrize("norm_pix_loss", [0, 1])
def test_reconstructions(norm_pix_loss: int, monkeypatch) -> None:
    network, images = _autoencoder(norm_pix_loss=norm_pix_loss)
    targets = network.targets(images)
    masks = []

    def predict_well(images: torch.Tensor, kept: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        masks.append(masked)
        return torch.stack([row[tokens - 1] for row, tokens in zip(targets, masked)])

    monkeypatch.setattr(network, "predictions", predict_well)
    hidden, filled = network.reconstruct(images)
    assert torch.allclose(filled, images, atol=1e-5)
    for image, seen, tokens in zip(images.numpy(), hidden.numpy(), masks[0].tolist()):
        for token, (patch, left) in enumerate(zip(_patches(image, 4), _patches(seen, 4)), start=1):
            assert np.array_equal(left, 0 * patch if token in tokens else patch)


def test_the_learning_rate() -> None:
    lr_at = common.lr_schedule(TrainingConfig(blr=0.1, epochs=30, warmup_epochs=10), global_batch_size=512)
    expected = [0, 0.1, 0.2, 0.2 * (1 + 0.5**0.5) / 2, 0.1, 0]  # cos 45 degrees, cos 90
    assert [lr_at(position) for position in (0, 5, 10, 15, 20, 30)] == pytest.approx(expected)


def test_each_layer_learns_at_its_rate() -> None:
    config = parse_finetune([*REQUIRED, "--training.layer_decay=0.5", "--training.weight_decay=0.1"])
    network = create_classifier(config, ModelConfig(**SHAPE), CLASSES)
    groups = create_optimizer(config, network).param_groups
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    by_name = {name: found[id(parameter)] for name, parameter in network.named_parameters()}
    assert by_name["pos_embed"] == by_name["cls_token"] == by_name["patch_embed.proj.bias"] == (0.125, 0)
    assert by_name["patch_embed.proj.weight"] == (0.125, 0.1)
    assert by_name["blocks.0.mlp.fc1.weight"] == (0.25, 0.1)
    assert by_name["blocks.1.norm1.weight"] == (0.5, 0)
    assert by_name["fc_norm.weight"] == (1, 0)
    assert by_name["head.weight"] == (1, 0.1)


def test_lars_adapts_to_weights_only() -> None:
    config = parse_finetune([*REQUIRED, "--training.optimizer=lars", "--training.weight_decay=0"])
    network = create_probe(ModelConfig(**SHAPE), CLASSES)
    optimizer = create_optimizer(config, network)
    [weight, bias] = [parameter for parameter in network.parameters() if parameter.requires_grad]
    nn.init.ones_(bias)  # of 0 nothing is adapted to
    before = [parameter.detach().clone() for parameter in (weight, bias)]
    weight.grad, bias.grad = 7 * torch.ones_like(weight), 7 * torch.ones_like(bias)
    for group in optimizer.param_groups:
        group["lr"] = 2.0
    optimizer.step()
    assert (weight - before[0]).norm().item() == pytest.approx(2 * 0.001 * before[0].norm().item(), rel=1e-3)
    assert torch.equal(bias, before[1] - 14)


REQUIRED = ["--data.train_dataset=t", "--data.val_dataset=v", "--logging.folder=f", "--weights=w"]


def _stop_after(monkeypatch, at: tuple[int, int]) -> None:
    """SIGTERM comes in that step of that epoch."""
    seed_step = training.run.seed_step

    def seed_and_stop(seed: int, epoch: int, step: int, rank: int) -> None:
        if (epoch, step) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        seed_step(seed, epoch, step, rank)

    monkeypatch.setattr(training.run, "seed_step", seed_and_stop)


def _stop_and_resume(monkeypatch, run: Callable[[], None], at: tuple[int, int]) -> None:
    with monkeypatch.context() as patched:
        _stop_after(patched, at)
        with pytest.raises(SystemExit) as ended:
            run()
    assert ended.value.code == 128 + signal.SIGTERM
    run()


def _log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "final_weights.pt", weights_only=True)


def _assert_same_run(one: Path, other: Path) -> None:
    assert [line["train_loss"] for line in _log(one)] == [line["train_loss"] for line in _log(other)]
    assert all(torch.equal(_weights(other)[name], value) for name, value in _weights(one).items())


def _pretrain(data: list[str], folder: Path) -> None:
    options = ["--training.batch_size=8", "--training.global_batch_size=16", "--training.epochs=12"]
    options += ["--training.warmup_epochs=2", "--training.blr=0.08", "--model.norm_pix_loss=0", "--resume=auto"]
    pretrain(parse_pretrain([*TINY, *data, *options, f"--logging.folder={folder}"]))


@pytest.fixture(scope="module")
def pretrained(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mae") / "whole"
    _pretrain(data, folder)
    return folder


def test_pretraining(pretrained: Path, data: list[str], tmp_path: Path, monkeypatch) -> None:
    files = {path.name for path in pretrained.iterdir()}
    assert files == {".lock", "checkpoint.pt", "final_weights.pt", "log", "params.json", "reconstructions.png"}
    losses = [line["train_loss"] for line in _log(pretrained)]
    assert losses[-1] < 0.8 * losses[0]
    _stop_and_resume(monkeypatch, lambda: _pretrain(data, tmp_path / "stopped"), at=(1, 1))
    _assert_same_run(pretrained, tmp_path / "stopped")


@pytest.mark.parametrize("probe", [0, 1])
def test_finetuning(probe: int, pretrained: Path, data: list[str], tmp_path: Path, monkeypatch) -> None:
    weights = pretrained / "final_weights.pt"
    options = ["--training.batch_size=16", "--training.epochs=10", "--training.warmup_epochs=0", "--resume=auto"]
    options += [f"--training.blr={0.3 if probe else 0.1}", f"--linear_probe={probe}", "--training.layer_decay=0.9"]
    options += ["--training.mixup=0", "--training.cutmix=0", "--validation.resolution=16", "--validation.batch_size=6"]
    options += ["--cropmix.enabled=0", "--cropmix.scale=0.8", "--data.flip_probability=0"]

    def run(name: str) -> None:
        further = [f"--weights={weights}", f"--logging.folder={tmp_path / name}"]
        finetune(parse_finetune([*data, *options, *further]))

    run("whole")
    losses = [line["train_loss"] for line in _log(tmp_path / "whole")]
    assert losses[-1] < losses[0] - 0.1
    assert _log(tmp_path / "whole")[-1]["top_1"] > 100 / CLASSES
    assert (tmp_path / "whole" / "curves.png").exists()
    if not probe:
        _stop_and_resume(monkeypatch, lambda: run("stopped"), at=(1, 1))
        _assert_same_run(tmp_path / "whole", tmp_path / "stopped")

    encoder, trained = _weights(pretrained), _weights(tmp_path / "whole")
    same = [torch.equal(trained[name], encoder[name]) for name in encoder.keys() & trained.keys()]
    assert all(same) if probe else not any(same)


def test_the_encoder_is_loaded_and_others_are_refused(pretrained: Path, tmp_path: Path) -> None:
    weights = pretrained / "final_weights.pt"
    assert read_shape(weights) == ModelConfig(**SHAPE, norm_pix_loss=0)
    classifier = create_probe(read_shape(weights), CLASSES)
    load_encoder(classifier, weights)
    state = classifier.state_dict()
    assert all(torch.equal(state[name], value) for name, value in _weights(pretrained).items())
    with pytest.raises(DataError, match=r"is not of this encoder: blocks\.2\."):
        load_encoder(create_probe(ModelConfig(**{**SHAPE, "depth": 3}), CLASSES), weights)
    alone = tmp_path / "final_weights.pt"
    with pytest.raises(DataError, match=r"final_weights\.pt: no such file or directory"):
        read_shape(alone)
    alone.write_bytes(weights.read_bytes())  # without params.json
    assert read_shape(alone) == ModelConfig(**SHAPE, norm_pix_loss=0)
    torch.save(dict(_weights(pretrained)), alone)  # as 0.1.0 wrote it
    with pytest.raises(DataError, match=r"params\.json: no such file or directory; it should contain the shape"):
        read_shape(alone)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.mask_ratio=1", "model.mask_ratio must be in (0, 1), a patch left, got 1.0"),
        ("--model.resolution=30", "model.resolution must be a multiple of patch_size = 16 px, got 30"),
        ("--model.width=770", "model.width must be a multiple of 4 and of heads = 12, got 770"),
        ("--training.warmup_epochs=200", "training.warmup_epochs must be in [0, epochs = 200), got 200.0"),
        ("--training.blrr=1", "training.blrr"),
    ],
)
def test_wrong_options_are_answered_in_a_line(option: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_pretrain([*REQUIRED[:3], option])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    "name", ["paper", "toy", "cifar", "finetune", "probe", "toy_finetune", "toy_probe", "cifar_probe"]
)
def test_the_recipes_are_read(name: str) -> None:
    file = Path(common.__file__).with_name(f"{name}.yaml")
    parse = parse_finetune if "probe" in name or "finetune" in name else parse_pretrain
    config = parse([f"--config-file={file}", *REQUIRED[: 3 if parse is parse_pretrain else 4]])
    if name == "paper":
        assert config.model == ModelConfig()  # the defaults are ViT-B/16 of the paper
        assert common.lr_schedule(config.training, config.training.global_batch_size)(20) == pytest.approx(2.4e-3)
