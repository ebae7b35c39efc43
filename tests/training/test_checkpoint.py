"""Files of weights and states, sound and not."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from ffcv_cropmix.errors import DataError
from ffcv_cropmix.training.checkpoint import Checkpoint, Position, write
from ffcv_cropmix.training.config import Config, parse_config
from ffcv_cropmix.training.models import create_sgd
from ffcv_cropmix.training.safe_load import safe_load

OPTIONS = ["--data.train_dataset=t", "--data.val_dataset=v", "--logging.folder=f"]


def _checkpoint(*options: str, **parts: nn.Module) -> Checkpoint:
    return Checkpoint(asdict(parse_config([*OPTIONS, *options])), 64, Config.may_differ, parts)


def test_what_is_saved_is_restored(tmp_path: Path) -> None:
    network = nn.Linear(2, 3)
    progress = Position(3, 7, 1.25, 60.5, [{"epoch": 0, "top_1": 5.0}])
    _checkpoint(model=network).save(tmp_path / "c.pt", progress)
    other = nn.Linear(2, 3)
    assert _checkpoint("--training.bn_wd=false", model=other).load(tmp_path / "c.pt") == progress  # 0 and false are one
    assert torch.equal(other.weight, network.weight)


@pytest.mark.parametrize(
    ("option", "refused"),
    [
        ("--training.epochs=31", "training.epochs=30, not 31"),
        ("--cropmix.scale=0.5", "cropmix.scale=0.01, not 0.5"),
        ("--data.in_memory=0", "data.in_memory=1, not 0"),
        ("--data.num_workers=1", None),
        ("--validation.resolution=8", None),
        ("--logging.folder=g", None),
        ("--training.batch_size=8", None),
    ],
)
def test_a_run_goes_on_with_the_options_that_matter(option: str, refused: str | None, tmp_path: Path) -> None:
    _checkpoint(model=nn.Linear(2, 3)).save(tmp_path / "c.pt", Position())
    checkpoint = _checkpoint(option, model=nn.Linear(2, 3))
    if refused is None:
        checkpoint.load(tmp_path / "c.pt")
    else:
        with pytest.raises(DataError, match=f"c.pt is of a run with {refused}: start a new run"):
            checkpoint.load(tmp_path / "c.pt")


@pytest.mark.parametrize("room", [0, 1000, 100_000, 300_000])
def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_former_one(
    room: int, tmp_path: Path, file_limit
) -> None:
    checkpoint, path = _checkpoint(model=nn.Linear(300, 300)), tmp_path / "c.pt"
    checkpoint.save(path, Position(1))
    before = path.read_bytes()
    with file_limit(room), pytest.raises(DataError, match=r"c.pt cannot be written: File too large"):
        checkpoint.save(path, Position(2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class _Bounds(nn.Module):
    """Starts with what is not finite, as timm's Gemma 4 does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.register_buffer("least", torch.tensor(-torch.inf))


def test_what_is_not_finite_is_not_saved_and_not_restored(tmp_path: Path) -> None:
    network, path = _Bounds(), tmp_path / "c.pt"
    optimizer = create_sgd(network.parameters(), 0.1, momentum=0.9)
    checkpoint = _checkpoint(model=network, optimizer=optimizer)
    checkpoint.save(path, Position(1))
    assert checkpoint.load(path) == Position(1)
    before = path.read_bytes()
    momentum = optimizer.state[network.linear.bias]["momentum_buffer"]
    for tensor, name in ((network.linear.weight.data, "model.linear.weight"), (momentum, "optimizer.state.1.momentum")):
        for value in (torch.nan, torch.inf):
            was = tensor.clone()
            tensor.view(-1)[-1] = value
            with pytest.raises(DataError, match=f"c.pt is not written: {name}.* contain NaN or infinity"):
                checkpoint.save(path, Position(2))
            assert path.read_bytes() == before
            write(tmp_path / "broken.pt", {**safe_load(path), **checkpoint._states()})
            with pytest.raises(DataError, match=f"broken.pt: {name}.* contains NaN or infinity"):
                checkpoint.load(tmp_path / "broken.pt")
            tensor.copy_(was)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"images": 200, "labels": "ab"}, "is of a run with images 512, not 200"),
        ({"images": 512, "labels": "cd"}, "is of a run with labels ab, not cd"),
        ({"images": 512, "labels": "ab", "processes": 2}, "is of a run with processes None, not 2"),
        ({"images": 512, "labels": "ab"}, None),
    ],
)
def test_a_run_goes_on_with_the_data_that_it_had(now: dict, message: str | None, tmp_path: Path) -> None:
    def checkpoint(data: dict, network: nn.Module) -> Checkpoint:
        return Checkpoint({}, 64, Config.may_differ, {"model": network}, data)

    checkpoint({"images": 512, "labels": "ab"}, nn.Linear(2, 3)).save(tmp_path / "c.pt", Position(1))
    with pytest.raises(DataError, match=message) if message else nullcontext():
        checkpoint(now, nn.Linear(2, 3)).load(tmp_path / "c.pt")
    with pytest.raises(DataError, match=r"c.pt does not fit this run: model: size mismatch for weight") as caught:
        checkpoint({"images": 512, "labels": "ab"}, nn.Linear(2, 4)).load(tmp_path / "c.pt")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_the_former_names_of_facts_is_resumed(tmp_path: Path) -> None:
    former = {"images in the training set": 512, "checksum of its labels": "ab", "images at once (data.in_memory=0)": 8}
    now = {"training set size": 512, "checksum of the labels": "ab", "micro-batch size (data.in_memory=0)": 8}
    network = nn.Linear(2, 3)
    Checkpoint({}, 64, frozenset(), {"model": network}, former).save(tmp_path / "c.pt", Position(1))
    assert Checkpoint({}, 64, frozenset(), {"model": network}, now).load(tmp_path / "c.pt") == Position(1)
    with pytest.raises(DataError, match="with training set size 512, not 511"):
        Checkpoint({}, 64, frozenset(), {"model": network}, now | {"training set size": 511}).load(tmp_path / "c.pt")


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(DataError, match=r"c.pt: no such file or directory"):
        _checkpoint(model=nn.Linear(2, 3)).load(path)
    torch.save(nn.Linear(2, 3).state_dict(), path)
    with pytest.raises(DataError, match="is not a checkpoint of a run like this one"):
        _checkpoint(model=nn.Linear(2, 3)).load(path)
