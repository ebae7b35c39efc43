"""python -m ffcv_cropmix.evaluate: every number against one worked out from the images with torch and numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor
from torchvision import transforms

from ffcv_cropmix import MixPlan, cropmix, evaluate
from ffcv_cropmix.errors import run_program
from ffcv_cropmix.evaluation.suite import Settings, ValidationSet, _noisy, _replaced
from ffcv_cropmix.training.models import IMAGENET_MEAN, IMAGENET_STD, create_network, describe
from tests.betons import COUNT, photo

SIDE, EPS, STD = 32, 0.02, 0.4
NORMALIZE = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
ANNOTATION = """<annotation><size><width>{0}</width><height>{1}</height></size><object><name>class {2}</name><bndbox>
<xmin>{3}</xmin><ymin>{4}</ymin><xmax>{5}</xmax><ymax>{6}</ymax></bndbox></object></annotation>"""


def _center(image: np.ndarray) -> Tensor:
    """What the model is shown of an image, float (3, SIDE, SIDE) in [0, 1]."""
    height, width, _ = image.shape
    side = max(int(0.875 * min(height, width)), 1)
    plan = MixPlan(crops=[((height - side) // 2, (width - side) // 2, side, side)])
    return torch.from_numpy(cropmix(image, plan, (SIDE, SIDE))).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.stack([_center(photo(index)) for index in range(COUNT)])


@pytest.fixture(scope="module")
def network(images: Tensor) -> torch.nn.Module:
    """A network without training that knows most of the photos: its last layer is fitted to the others' outputs."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=COUNT).eval()
    last, network.fc = network.fc, torch.nn.Identity()
    with torch.no_grad():
        features = network(NORMALIZE(images))
        fitted = torch.linalg.pinv(features, rtol=3e-2) @ torch.eye(COUNT)
        last.weight.copy_(10 * fitted.T)
        last.bias.zero_()
    network.fc = last
    return network


@pytest.fixture(scope="module")
def checkpoint(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "final_weights.pt"
    torch.save(network.state_dict(), path)
    params = {"model": {"arch": "resnet18"}, "validation": {"resolution": SIDE}}
    path.with_name("params.json").write_text(json.dumps(params))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        status: object = 0
        try:
            run_program(evaluate.main)
        except SystemExit as end:
            status = end.code
        out, error = capsys.readouterr()
        return (status, out, error) if isinstance(status, int) else (1, out, f"{status}\n")

    return run


def _percent(network: torch.nn.Module, images: Tensor, outputs: list[int], labels: np.ndarray) -> float:
    with torch.no_grad():
        return 100 * (network(NORMALIZE(images)).numpy()[:, outputs].argmax(1) == labels).mean()


def _noise() -> Tensor:
    draws = [np.random.Generator(np.random.Philox(key=[5, row])) for row in range(COUNT)]
    return torch.from_numpy(np.stack([draw.standard_normal((3, SIDE, SIDE), np.float32) for draw in draws]))


def _folders(folder: Path, labels: list[int]) -> tuple[Path, Tensor]:
    """Two images of each class, the photo and a darker one, and what the model is shown of them."""
    shown = []
    for label in sorted(labels, key=str):
        (folder / f"class {label}").mkdir(parents=True)
        for name, pixels in (("a", photo(label)), ("b", photo(label) // 2)):
            Image.fromarray(pixels).save(folder / f"class {label}" / f"{name}.png")
            resized = transforms.Resize(round(SIDE / 0.875))(Image.fromarray(pixels))
            shown.append(transforms.functional.to_tensor(transforms.CenterCrop(SIDE)(resized)))
    return folder, torch.stack(shown)


def test_every_figure(run, sealed, checkpoint: Path, network, images: Tensor, tmp_path: Path) -> None:
    some = [35, 8, 20, 31]
    few, shown = _folders(tmp_path / "few", some)
    variants = ["--imagenet_a", few, "--imagenet_r", few, "--imagenet_sketch", few]
    options = ["--eps", EPS, "--noise_std", STD, "--seed", 5, "--batch_size", 10, *variants]
    status, out, error = run("--checkpoint", checkpoint, "--data", sealed["raw"], "--json", *options)
    assert status == 0, error
    (result,) = json.loads(out)["results"]

    rows, every = np.arange(COUNT), list(range(COUNT))
    border = round(SIDE * (1 - 0.5**0.5) / 2)
    foreground = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    foreground[border : SIDE - border, border : SIDE - border] = True
    leaf = images.clone().requires_grad_()
    F.cross_entropy(network(NORMALIZE(leaf)), torch.arange(COUNT)).backward()
    assert leaf.grad is not None
    with torch.no_grad():
        probabilities = network(NORMALIZE(images)).softmax(1).max(1)
    correct = (probabilities.indices.numpy() == rows).mean()
    noisy = torch.where(foreground, images, (images + STD * _noise()).clamp(0, 1))
    replaced = torch.where(foreground, images, images[(rows + COUNT // 2) % COUNT])
    labels = np.repeat(sorted(some, key=str), 2)
    expected = {
        "clean": 100 * correct,
        "rms": 100 * abs(probabilities.values.mean().item() - correct),  # 37 samples are one bin
        "fgsm": _percent(network, (images + EPS * leaf.grad.sign()).clamp(0, 1), every, rows),
        "noise": _percent(network, noisy, every, rows),
        "replace": _percent(network, replaced, every, rows),
        "imagenet_a": _percent(network, shown, sorted(some), np.searchsorted(sorted(some), labels)),
        "imagenet_sketch": _percent(network, shown, every, labels),
    }
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=0.01)
    assert result["imagenet_r"] == result["imagenet_a"]
    assert result["clean"] > max(result["fgsm"], result["noise"], result["replace"]) > 0
    assert result["imagenet_a"] > result["imagenet_sketch"] > 0
    assert (result["checkpoint"], result["arch"], result["resolution"]) == (str(checkpoint), "resnet18", SIDE)
    for name in ("clean", "fgsm", "noise", "replace"):
        assert error.count(f"{checkpoint}, {name}: 4/4 in ") == 1  # one pass each
    for name in ("imagenet_a", "imagenet_r", "imagenet_sketch"):
        assert error.count(f"{checkpoint}, {name}: 1/1 in ") == 1
    assert ", rms" not in error


def test_boxes_say_what_is_foreground(run, sealed, checkpoint: Path, network, images: Tensor, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    masks = torch.zeros(COUNT, 1, SIDE, SIDE, dtype=torch.bool)
    for row, mask in enumerate(masks):
        height, width, _ = photo(row).shape
        side = max(int(0.875 * min(height, width)), 1)
        top, left = random.integers(0, height), random.integers(0, width)
        bottom, right = random.integers(top, height) + 1, random.integers(left, width) + 1
        for r in range(SIDE):  # a pixel of the resized centre belongs to a box if its middle does
            for c in range(SIDE):
                y = (height - side) // 2 + (r + 0.5) / SIDE * side
                x = (width - side) // 2 + (c + 0.5) / SIDE * side
                mask[0, r, c] = bool(top <= y < bottom and left <= x < right)
        text = ANNOTATION.format(width, height, row, left, top, right, bottom)
        (tmp_path / f"ILSVRC2012_val_{row + 1:08}.xml").write_text(text)
    found = ValidationSet(sealed["raw"]).foreground(tmp_path, SIDE).masks(0, COUNT)
    assert (found != masks).float().mean() < 0.001  # a middle that lies on a side, with rounding
    options = ["--metrics", "noise", "replace", "--boxes", tmp_path, "--seed", 5, "--noise_std", STD, "--batch_size", 9]
    _, out, _ = run("--checkpoint", checkpoint, "--data", sealed["raw"], "--json", *options)
    (result,) = json.loads(out)["results"]
    rows, every = np.arange(COUNT), list(range(COUNT))
    noisy = torch.where(found, images, (images + STD * _noise()).clamp(0, 1))
    assert result["noise"] == pytest.approx(_percent(network, noisy, every, rows), abs=0.01)
    replaced = torch.where(found, images, images[(rows + COUNT // 2) % COUNT])
    assert result["replace"] == pytest.approx(_percent(network, replaced, every, rows), abs=0.01)
    assert "clean" not in result


def test_corrupted_images_do_not_depend_on_the_batch_size(sealed) -> None:
    data, device = ValidationSet(sealed["raw"]), torch.device("cpu")
    foreground = data.foreground(None, 16)
    made = []
    for batch_size in (5, 64):
        settings = Settings(metrics=[], batch_size=batch_size)
        noisy = _noisy(data.loader(16, settings, device), foreground, settings)
        replaced = _replaced(data.loader(16, settings, device, with_others=True), foreground)
        made.append([torch.cat([images.clone() for images, _ in batches]) for batches in (noisy, replaced)])
        assert [len(images) for images in made[-1]] == [COUNT, COUNT]
    for first, second in zip(*made, strict=True):
        assert torch.equal(first, second)


def test_table(run, sealed, checkpoint: Path) -> None:
    result = {"checkpoint": "mine.pt", "clean": 77.123, "imagenet_sketch": 5}
    lines = evaluate.table([result]).splitlines()
    columns = [" ".join(line.split()) for line in lines]
    assert columns[0] == "top-1, % Clean RMS cal. FGSM Replace Noise IN-A IN-R IN-S"
    assert columns[2] == "paper, R1, CropMix 77.60 7.73 23.94 59.29 73.82 6.53 39.12 25.56"
    assert columns[-1] == "mine.pt 77.12 - - - - - - 5.00"
    assert len({len(line) for line in lines}) == 1
    status, out, _ = run("--checkpoint", checkpoint, checkpoint, "--data", sealed["raw"], "--metrics", "clean")
    assert status == 0
    assert out.splitlines()[0] == f"{sealed['raw']}: {COUNT} images of {COUNT} classes"
    assert out.count(f"\n{checkpoint} ") == 2


def test_weights_say_what_they_need(run, sealed, checkpoint: Path, network, images: Tensor, tmp_path: Path) -> None:
    """In a folder of their own: their classes, in another order, their normalisation, and how they were evaluated."""
    order = np.random.default_rng(0).permutation(COUNT + 1)  # one more than the file has
    changed = create_network("resnet18", COUNT + 1)
    state = network.state_dict()
    for name in ("fc.weight", "fc.bias"):
        state[name] = torch.cat([state[name], state[name][:1] - 50])[order]
    mean, std = [0.3, 0.5, 0.4], [0.5, 0.2, 0.3]
    facts = {"resolution": SIDE, "crop_ratio": 0.875, "interpolation": "bilinear", "flip_tta": False}
    describe(changed, classes=[f"class {label}" for label in order], mean=mean, std=std, **facts)
    changed.load_state_dict(state)
    torch.save(changed.state_dict(), tmp_path / "weights.pt")
    options = ["--checkpoint", tmp_path / "weights.pt", "--data", sealed["raw"], "--metrics", "clean", "--json"]
    status, out, error = run(*options, "--imagenet_sketch", _folders(tmp_path / "few", [35, 8])[0])
    assert status == 0, error
    assert "labels are matched by name" in error
    (result,) = json.loads(out)["results"]
    with torch.no_grad():
        found = order[changed.eval()(transforms.Normalize(mean, std)(images)).argmax(1).numpy()]
    assert result["clean"] == pytest.approx(100 * (found == np.arange(COUNT)).mean(), abs=0.01)
    assert 0 < result["clean"] < 100
    assert result["imagenet_sketch"] > 0
    assert (result["arch"], result["mean"], result["std"], result["resolution"]) == ("resnet18", mean, std, SIDE)
    for option, message in {
        "--mean 0.5 0.5 0.5 --std 0.5 0.2 0.3": "--mean: ",
        "--arch resnet34": "is not of resnet34",
        f"--classes_of {sealed['raw']}": "--classes_of: ",
    }.items():
        status, _, error = run(*options, *option.split())
        assert (status, message in error, error.count("\n")) == (1, True, 1)


def test_mistakes_are_one_line(run, sealed, betons, checkpoint: Path, tmp_path: Path) -> None:
    def refused(*arguments: object, data: Path = sealed["raw"], file: Path = checkpoint) -> tuple[int, str]:
        status, out, error = run("--checkpoint", file, "--data", data, "--metrics", *arguments)
        assert (out, error.count("\n")) == ("", 1)
        return status, error

    assert refused(data=betons["raw"]) == (
        1,
        f"error: {betons['raw']}.json, which names the classes, is missing: write_dataset.py writes both\n",
    )
    assert refused("--arch", "resnet51")[0] == 2
    status, error = refused("--arch", "resnet50")
    assert (status, "in resnet50 with 37 classes it has" in error) == (1, True)
    lone = tmp_path / "weights.pt"
    lone.write_bytes(checkpoint.read_bytes())
    status, error = refused(file=lone)
    assert (status, error.startswith("error: --arch NAME is needed")) == (2, True)
    assert refused("--arch", "resnet18", file=tmp_path / "missing.pt") == (
        1,
        f"error: {tmp_path}/missing.pt: no such file or directory\n",
    )
    for count in (10, 40):
        (tmp_path / "params.json").write_text(json.dumps({"model": {"arch": "resnet18", "num_classes": count}}))
        assert refused(file=lone) == (
            1,
            f"error: {lone} has {count} classes and does not name them, {sealed['raw']} has {COUNT}: "
            "name them with --classes_of TRAIN.beton\n",
        )
    for option, value in (("eps", 2), ("noise_std", -1), ("batch_size", 0), ("num_workers", 999), ("resolution", 0)):
        status, error = refused(f"--{option}={value}")
        assert (status, f"{option} must be" in error, str(value) in error) == (2, True, True)


def test_wrong_options_are_answered_at_once() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ffcv_cropmix.evaluate", "--data", "x.beton"]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    imports = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert not {"torch", "ffcv", "numba"} & imports
    assert result.returncode == 2
    assert "error: the following arguments are required: checkpoint" in imports
