"""Weights in all the forms in which they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ffcv_cropmix.errors import DataError
from ffcv_cropmix.evaluation.weights import create_with_weights, read_weights
from ffcv_cropmix.training.models import create_network

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=4).state_dict()


def _prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def _zeros(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "ours, torchvision's": lambda state: state,
    "the authors'": lambda state: {
        "epoch": 300,
        "arch": "resnet18",
        "state_dict": _prefixed("module.", state),
        "best_acc1": torch.tensor(77.6),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    },
    "a checkpoint without EMA": lambda state: {"epoch": 3, "model": _prefixed("network.", state), "ema": None},
    "a checkpoint with EMA": lambda state: {
        "model": _zeros(state),
        "ema": {**_prefixed("module.network.", state), "n_averaged": torch.tensor(5)},
    },
    "compiled": lambda state: _prefixed("_orig_mod.", state),
    "compiled, in processes": lambda state: _prefixed("module._orig_mod.", state),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(FORMS[form](state), path)
    weights = read_weights(path)
    assert weights.arch == ("resnet18" if form == "the authors'" else None)
    assert not weights.blurpool
    loaded = create_with_weights(weights, "resnet18", 4).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_what_the_run_says_of_itself(state: State, tmp_path: Path) -> None:
    path = tmp_path / "final_weights.pt"
    torch.save(state, path)
    params = {
        "model": {"arch": "resnet18", "num_classes": 4},
        "training": {"use_blurpool": 1},
        "validation": {"resolution": 256},
    }
    flat = {f"{section}.{key}": value for section, of in params.items() for key, value in of.items()}
    for content in (params, flat):  # ffcv-imagenet's are flat
        (tmp_path / "params.json").write_text(json.dumps(content))
        weights = read_weights(path)
        known = (weights.arch, weights.num_classes, weights.blurpool, weights.resolution)
        assert known == ("resnet18", 4, True, 256)
    for content in ("[", "[]"):
        (tmp_path / "params.json").write_text(content)
        with pytest.raises(DataError, match=r"params\.json does not hold the options of a run"):
            read_weights(path)


class _Blurred(nn.Module):
    """As ffcv-imagenet wraps a strided convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("blur_filter", torch.ones(conv.in_channels, 1, 3, 3))


def test_blurred_convolutions_of_ffcv_imagenet(tmp_path: Path) -> None:
    network = torchvision.models.resnet18(num_classes=4)
    network.layer2[0].conv1 = _Blurred(network.layer2[0].conv1)
    network.layer2[0].downsample[0] = _Blurred(network.layer2[0].downsample[0])
    torch.save(_prefixed("module.", network.state_dict()), tmp_path / "final_weights.pt")
    weights = read_weights(tmp_path / "final_weights.pt")
    assert weights.blurpool
    loaded = create_with_weights(weights, "resnet18", 4)
    assert torch.equal(loaded.layer2[0].downsample[0].weight, network.layer2[0].downsample[0].conv.weight)
    assert loaded.state_dict().keys() == create_network("resnet18", 4, blurpool=True).state_dict().keys()


def _changed(state: State, **changes: Tensor | None) -> State:
    return {key: value for key, value in {**state, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fc.weight": torch.zeros(9, 512)},
            r"fc\.weight is \(9, 512\), that of resnet18 with 4 classes is \(4,",
        ),
        ({"bn1.bias": None}, r"weights\.pt is not of resnet18: it lacks bn1\.bias$"),
        ({"more": torch.zeros(1), "yet": torch.zeros(1)}, r"it also has more and 1 more$"),
    ],
)
def test_weights_of_other_networks(state: State, tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / "weights.pt"
    torch.save(_changed(state, **changes), path)
    with pytest.raises(DataError, match=message):
        create_with_weights(read_weights(path), "resnet18", 4)


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code of the file runs",)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"model": {}}, _Harmful()])
def test_files_without_weights(tmp_path: Path, content: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(DataError, match=r"weights\.pt (has no weights|is no file of weights)") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.pt: no such file or directory"):
        read_weights(tmp_path / "missing.pt")
    whole = {}
    for zipped in (True, False):  # torch's format, and that before 1.6
        torch.save({"weight": torch.arange(9999.0)}, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
        whole[zipped] = (tmp_path / "whole.pt").read_bytes()
    flipped = bytearray(whole[True])
    flipped[20_000] ^= 1
    damaged = [b"PK\x03\x04 cut off", flipped, *(file[:end] for file in whole.values() for end in (99, -9999, -1))]
    messages = {
        "is no file of weights: it is empty": [b""],
        "is no file of weights, or has more in it": [b"no weights here", b"<!DOCTYPE html>"],
        "is no file of weights, but Git LFS's pointer": [b"version https://git-lfs.github.com/spec/v1\noid"],
        "is damaged: its [0-9,]+ bytes were cut off or changed": damaged,
    }
    for message, contents in messages.items():
        for content in contents:
            (tmp_path / "text.pt").write_bytes(content)
            with pytest.raises(DataError, match=rf"text\.pt {message}") as error:
                read_weights(tmp_path / "text.pt")
            assert "\n" not in str(error.value)
