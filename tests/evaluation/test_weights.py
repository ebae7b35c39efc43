"""Weights in all the forms in which they come."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from ffcv_cropmix.errors import DataError
from ffcv_cropmix.evaluation.weights import create_with_weights, load_weights, read_weights
from ffcv_cropmix.training.models import IMAGENET_MEAN, create_network

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
        with pytest.raises(DataError, match=r"params\.json does not contain the options of a run"):
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


def _kind(name: str, base: type = object) -> Any:
    """A class of a library that is not installed, once `_save` is done."""
    made = type(name, (base,), {"__module__": "some_library"})
    setattr(sys.modules.setdefault("some_library", ModuleType("some_library")), name, made)
    return made


def _save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    sys.modules.pop("some_library", None)
    return path


def _without_head(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


TIMM: dict[str, Any] = {
    "model": "resnet18",
    "num_classes": 4,
    "mean": None,
    "std": None,
    "interpolation": "",
    "crop_pct": None,
}
OTHERS: dict[str, tuple[Callable[[State], Any], dict[str, Any], list[str]]] = {
    "timm's, averaged": (
        lambda state: {
            **{"epoch": 1, "arch": "resnet18", "state_dict": _zeros(state), "state_dict_ema": state},
            **{"args": Namespace(**TIMM, output=Path("x")), "metric": np.float64(77)},
        },
        {"arch": "timm/resnet18", "num_classes": 4},
        ["skipped in .*: numpy", "using state_dict_ema, not state_dict"],
    ),
    "timm's": (
        lambda state: {
            **{"arch": "resnet18", "state_dict": state},
            "args": Namespace(
                **TIMM | {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0, "interpolation": "bicubic"}
            ),
        },
        {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_ratio": 1.0, "interpolation": "bicubic"},
        [],
    ),
    "torchvision's": (
        lambda state: {
            **{"model": _zeros(state), "model_ema": {"n_averaged": torch.tensor(3), **_prefixed("module.", state)}},
            "args": Namespace(model="resnet18", val_crop_size=32, val_resize_size=40, interpolation="bilinear"),
        },
        {"arch": "resnet18", "resolution": 32, "crop_ratio": 0.8},
        [r"using model_ema\.module, not model"],
    ),
    "Lightning's": (
        lambda state: {
            "state_dict": {**_prefixed("model.", state), "criterion.weight": torch.ones(4)},
            **{
                "hyper_parameters": _kind("Options", dict)(lr=0.1),
                "loops": {_kind("Loop")(): _kind("List", list)([1])},
            },
        },
        {},
        [
            r"as neither tensors nor plain values: some_library\.Loop$",
            r"skipped in .*: state_dict\.criterion\.weight$",
        ],
    ),
    "Composer's": (
        lambda state: {
            "state": {"model": _prefixed("module.", state), "timestamp": _kind("Time")()},
            "rng": [{"cuda": [torch.get_rng_state()]}],
        },
        {},
        [r"some_library\.Time"],
    ),
    "this trainer's": (
        lambda state: {
            **{"model": _zeros(state), "ema": {**_prefixed("module.", state), "n_averaged": torch.tensor(5)}},
            "options": {"model.arch": "resnet18", "validation.crop_ratio": 1, "validation.lr_tta": 1},
        },
        {"arch": "resnet18", "crop_ratio": 1, "flip_tta": True, "mean": list(IMAGENET_MEAN)},
        [r"using ema\.module, not model"],
    ),
    "before counters": (lambda state: {k: v for k, v in state.items() if "num_batches" not in k}, {}, []),
    "parameters": (lambda state: {k: nn.Parameter(v.float()) for k, v in state.items()}, {}, []),
    "parts compiled": (lambda state: {k.replace("layer1.", "layer1._orig_mod."): v for k, v in state.items()}, {}, []),
}


@pytest.mark.parametrize("form", OTHERS)
def test_checkpoints_of_others(form: str, state: State, tmp_path: Path) -> None:
    make, facts, notes = OTHERS[form]
    weights = read_weights(_save(make(state), tmp_path / "weights.pt"))
    assert {name: getattr(weights, name) for name in facts} == facts
    loaded = create_with_weights(weights, "resnet18", 4).state_dict()
    counted = [key for key in state if form != "before counters" or "num_batches" not in key]
    assert all(torch.equal(loaded[key], state[key]) for key in counted)
    assert len(weights.notes) == len(notes)
    assert all(re.search(pattern, note) for pattern, note in zip(notes, weights.notes))


def test_safetensors(state: State, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    safetensors.save_file(state, path)
    loaded = create_with_weights(read_weights(path), "resnet18", 4).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
        read_weights(path)


def test_several_networks(state: State, tmp_path: Path) -> None:
    both = {**_prefixed("student.", state), **_prefixed("teacher.", _zeros(state))}
    weights = read_weights(_save({"state_dict": both}, tmp_path / "two.pt"))
    choices = r"two\.pt has several networks that fit resnet18: choose one with --entry: \S+student, \S+teacher"
    with pytest.raises(DataError, match=choices):
        create_with_weights(weights, "resnet18", 4)
    assert create_with_weights(weights, "resnet18", 4, entry="teacher").fc.weight.count_nonzero() == 0
    with pytest.raises(DataError, match=r"it has no conv1\.weight in other"):
        create_with_weights(weights, "resnet18", 4, entry="other")


def test_mocos_query_encoder_is_a_backbone(state: State, tmp_path: Path) -> None:
    queries, keys = (_without_head(of) for of in (state, _zeros(state)))
    both = {**_prefixed("module.encoder_q.", queries), **_prefixed("module.encoder_k.", keys)}
    both |= {"module.encoder_q.fc.0.weight": torch.ones(2), "module.queue": torch.ones(3)}
    weights = read_weights(_save({"arch": "resnet18", "state_dict": both}, tmp_path / "moco.pt"))
    with pytest.raises(DataError, match=r"moco\.pt is not of resnet18: it lacks fc.weight and 1 more"):
        create_with_weights(weights, "resnet18", 4)
    backbone = torchvision.models.resnet18()
    backbone.fc = nn.Identity()
    load_weights(backbone, weights, "resnet18", without=("fc.",))
    assert torch.equal(backbone.conv1.weight, state["conv1.weight"])
    assert re.search(r"encoder_q, not \S+encoder_k", weights.notes[-2])
    assert re.search(r"skipped in .*: fc\.0\.weight and \d+ more", weights.notes[-1])


def _changed(state: State, **changes: Tensor | None) -> State:
    return {key: value for key, value in {**state, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fc.weight": torch.zeros(9, 512)},
            r"fc\.weight has the shape \(9, 512\), in resnet18 with 4 classes it has \(4,",
        ),
        ({"bn1.bias": None}, r"weights\.pt is not of resnet18: it lacks bn1\.bias$"),
        ({"fc.bias": torch.full((4,), torch.nan)}, r"weights\.pt: fc\.bias contains NaN or infinity"),
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
    with pytest.raises(DataError, match=r"weights\.pt (has no weights|is not a weights file)") as error:
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
        "is not a weights file: it is empty": [b""],
        "is not a weights file, or holds more": [b"no weights here", b"<!DOCTYPE html>"],
        "is not a weights file but a Git LFS pointer": [b"version https://git-lfs.github.com/spec/v1\noid"],
        "is damaged: its [0-9,]+ bytes were truncated or changed": damaged,
    }
    for message, contents in messages.items():
        for content in contents:
            (tmp_path / "text.pt").write_bytes(content)
            with pytest.raises(DataError, match=rf"text\.pt {message}") as error:
                read_weights(tmp_path / "text.pt")
            assert "\n" not in str(error.value)
