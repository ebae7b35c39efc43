"""MoCo with CropMix, small."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("lightly")
pytest.importorskip("kornia")

from examples.contrastive import linear_evaluation, moco
from examples.contrastive.config import parse_linear, parse_pretrain
from examples.contrastive.views import Augment, paste_boxes
from ffcv_cropmix.data.convert import convert
from ffcv_cropmix.data.encode import EncodeOptions
from ffcv_cropmix.data.images import Source
from ffcv_cropmix.errors import DataError
from ffcv_cropmix.training import run as run_module
from ffcv_cropmix.training.distributed import Processes


def test_boxes_are_pasted_as_by_hand(monkeypatch) -> None:
    sampled = torch.rand(3, 40, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: sampled)
    images, others = torch.zeros(40, 3, 12, 17), torch.ones(40, 3, 12, 17)
    address = images.data_ptr()
    assert paste_boxes(images, others).data_ptr() == address
    for index in range(40):
        u, row, column = sampled[:, index].flatten().tolist()
        expected = np.zeros((12, 17))
        for y in range(12):
            for x in range(17):
                half_height, half_width = int((1 - u) ** 0.5 * 12) // 2, int((1 - u) ** 0.5 * 17) // 2
                rows = int(row * 12) - half_height <= y < int(row * 12) + half_height
                expected[y, x] = rows and int(column * 17) - half_width <= x < int(column * 17) + half_width
        for plane in images[index].numpy():
            np.testing.assert_array_equal(plane, expected)


def test_each_image_is_augmented_on_its_own() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8).expand(16, 3, 24, 24)
    changed = Augment(24)(images)
    assert changed.dtype == torch.float32
    assert changed.min() >= 0 and changed.max() <= 1
    assert len({image.numpy().tobytes() for image in changed}) > 12  # jitter, grey and blur: some images go without
    grey = (changed[:, 0] - changed[:, 1]).abs().amax((1, 2)) < 1e-6
    assert 0 < grey.sum() < 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Photos of three colours, which are the classes; the validation set numbers them otherwise."""
    folder = tmp_path_factory.mktemp("colours")
    options = []
    for name, count in {"train": 48, "val": 12}.items():
        labels = np.arange(count) % 3
        images = np.random.default_rng(count).integers(0, 60, (count, 32, 32, 3), np.uint8)
        images[np.arange(count), :, :, labels] += 180
        names = ["red", "green", "blue"]
        if name == "val":
            names, labels = names[::-1], 2 - labels
        convert(
            Source(names, labels, images),
            folder / f"{name}.beton",
            EncodeOptions(write_mode="raw"),
            num_workers=1,
        )
        options.append(f"--data.{name}_dataset={folder / name}.beton")
    return options


TINY = [
    *("--model.arch=resnet18", "--training.resolution=32", "--training.global_batch_size=16", "--training.epochs=2"),
    *("--logging.tensorboard=0", "--data.num_workers=1"),
]
MOCO = [*TINY, "--training.queue=64", "--training.neighbors=5"]


def test_pretraining_is_resumed_and_evaluated(
    data: list[str], tmp_path: Path, monkeypatch, capsys, signals: None
) -> None:
    def run(folder: str, *further: str) -> None:
        moco.pretrain(parse_pretrain([*MOCO, *data, f"--logging.folder={tmp_path / folder}", *further]))

    run("whole")
    seed_step = run_module.seed_step

    def seed_and_stop(seed: int, epoch: int, step: int, rank: int) -> None:
        if (epoch, step) == (1, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        seed_step(seed, epoch, step, rank)

    monkeypatch.setattr(run_module, "seed_step", seed_and_stop)
    with pytest.raises(SystemExit):
        run("stopped")
    monkeypatch.setattr(run_module, "seed_step", seed_step)
    run("stopped", "--resume=auto")
    whole, stopped = (torch.load(tmp_path / name / "final_weights.pt") for name in ("whole", "stopped"))
    assert all(torch.equal(stopped[name], value) for name, value in whole.items())
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log").read_text().splitlines()]
    assert lines[-1]["top_1"] > 60 and len(lines) == 2  # by chance 33
    assert (tmp_path / "whole" / "curves.png").stat().st_size > 10_000

    weights = tmp_path / "whole" / "final_weights.pt"
    options = [*TINY, *data, f"--weights={weights}", "--training.lr=1", f"--logging.folder={tmp_path / 'linear'}"]
    linear_evaluation.train(parse_linear(options))
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("linear top-1 ")
    assert printed.count("labels are matched by name\n") == 4  # of each run
    after = torch.load(weights)
    assert all(torch.equal(after[name], value) for name, value in whole.items())
    with pytest.raises(DataError, match="is not of resnet34"):
        linear_evaluation.train(parse_linear([*options, "--model.arch=resnet34"]))


@pytest.mark.parametrize(("enabled", "views"), [(1, 3), (0, 2)])
def test_views_are_crops_of_the_images(data: list[str], enabled: int, views: int) -> None:
    config = parse_pretrain([*MOCO, *data, "--logging.folder=f", f"--cropmix.enabled={enabled}"])
    loader = moco.create_train_loader(config, 16, Processes(torch.device("cpu")))
    for batch, *_ in loader:
        assert [view.shape for view in batch] == [(16, 3, 32, 32)] * views
        colours = [view.float().mean((2, 3)).argmax(1) for view in batch]
        assert all(torch.equal(colour, colours[0]) for colour in colours)


def test_neighbours_vote_for_their_colour(data: list[str]) -> None:
    config = parse_pretrain([*MOCO, *data, "--logging.folder=f"]).data
    loaders = [
        moco.create_eval_loader(config, path, 8, Processes(torch.device("cpu")), numbers=numbers)
        for path, numbers in ((config.train_dataset, None), (config.val_dataset, [2, 1, 0]))
    ]

    class Colours(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean((2, 3))

    class Nothing(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(images), 3)

    assert moco.knn_accuracy(Colours(), *loaders, classes=3, neighbors=5) == 100
    assert moco.knn_accuracy(Nothing(), *loaders, classes=3, neighbors=48) == pytest.approx(100 / 3)
