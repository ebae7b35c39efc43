"""Images/s of training on a GPU: this package's trainer and ffcv-imagenet's loop, and what each loop could do at most.

    python benchmarks/gpu.py --json gpu.json

- trainer: `train_imagenet.py` with CropMix; bf16, or --precision.
- ffcv-imagenet: FFCV's loader and one random crop, in a loop written after ffcv-imagenet's: fp16 with scaled losses,
  channels_last, SGD, label smoothing, images normalised on the GPU (before the copy where cupy or pytorch-pfn-extras,
  which FFCV needs for that, are missing).

"resident" is the same loop on one batch that stays on the GPU: the most that a loader could reach. "waiting" is the
share of the time that the loop waited for batches. Both loops run two epochs, and the second one counts, from its first
batch to the end of its work on the GPU. Photos are those of --data_dir, or synthetic ones of 500 x 375 px.

The JSON: date, command, gpu, cores, versions, normalized_on_gpu, batch_size, images, results: a list of loop, arch,
side, images_per_second, resident, waiting.
"""

from __future__ import annotations

import ffcv_cropmix.ffcv_compat  # noqa: F401

# isort: split
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ffcv.loader
import numpy as np
import torch
import torchvision
from ffcv.fields.basics import IntDecoder
from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
from ffcv.loader import OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage
from PIL import Image
from torch import nn

from ffcv_cropmix import Loader
from ffcv_cropmix.data.replacing import replacing
from ffcv_cropmix.errors import run_program
from ffcv_cropmix.options import option, parse_options, require
from ffcv_cropmix.training import classifier, loaders
from ffcv_cropmix.training.config import parse_config
from ffcv_cropmix.training.logs import Meter
from ffcv_cropmix.training.models import IMAGENET_MEAN, IMAGENET_STD

REPOSITORY = Path(__file__).parents[1]
CLASSES, PHOTOS = 8, 256  # of the synthetic data set, whose files are linked until there are --images
EPOCHS = 2
NORMALIZE_ON_GPU = bool(find_spec("cupy") and find_spec("pytorch_pfn_extras"))
Rate = tuple[float, float]  # images/s, percent of the time waited for batches


@dataclass(kw_only=True)
class Options:
    """The command line."""

    data_dir: Path | None = option(None, metavar="FOLDER")
    """Photos in a folder per class; default: synthetic ones"""
    arch: list[str] = option(["resnet18", "resnet50"], metavar="ARCH")
    """Networks of torchvision"""
    side: list[int] = option([128, 160, 224], metavar="PX")
    """Sides of the training images"""
    batch_size: int = 256
    """Images per batch"""
    images: int = 8192
    """Number of synthetic images"""
    precision: str = "bf16"
    """Of the trainer: bf16, fp16 or fp32"""
    num_workers: int | None = None
    """Threads that decode; default: all cores"""
    device: str = "cuda"
    """cpu: to test this program"""
    json: Path | None = option(None, metavar="OUT")
    """File for the results"""

    def __post_init__(self) -> None:
        require(self.device in ("cuda", "cpu"), "device", "cuda or cpu", self.device)
        require(self.precision in ("bf16", "fp16", "fp32"), "precision", "bf16, fp16 or fp32", self.precision)
        require(min(self.side) >= 32, "side", ">= 32 px", self.side)
        require(self.images >= 2 * self.batch_size > 0, "images", ">= 2 batch_size", self.images)
        require(self.data_dir is None or self.data_dir.is_dir(), "data_dir", "a folder", str(self.data_dir))


class ResidentLoader(Loader):
    """A loader whose batches are all its first one, which stays on the device."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:  # type: ignore[override]
        passes = super().__iter__()
        batch = tuple(tensor.clone() for tensor in next(passes))
        passes.close()
        return iter([batch] * len(self))


def write_photos(folder: Path, count: int) -> Path:
    """Write synthetic JPEG files of 500 x 375 px, some 60 kB each, in a folder per class."""
    rows, columns = np.mgrid[:375, :500][:, :, :, None] / 40
    for index in range(count):
        path = folder / str(index % CLASSES) / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index >= PHOTOS:
            path.hardlink_to(folder / str(index % PHOTOS % CLASSES) / f"{index % PHOTOS}.jpg")
            continue
        random = np.random.default_rng(index)
        waves = np.sin(rows * random.uniform(0.2, 4, 3)) * np.cos(columns * random.uniform(0.2, 4, 3))
        noise = random.normal(0, 12, (*rows.shape[:2], 1))
        Image.fromarray(np.uint8(np.clip(127 + 90 * waves + noise, 0, 255))).save(path, quality=90)
    return folder


def write_beton(photos: Path, path: Path) -> Path:
    options = ["--data_dir", str(photos.resolve()), "--write_mode", "jpg", "--write_path", str(path)]
    subprocess.run([sys.executable, REPOSITORY / "write_dataset.py", *options], check=True, cwd=REPOSITORY)
    return path


def trainer(options: Options, beton: Path, arch: str, side: int, resident: bool) -> Rate:
    """Train with this package."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            *(f"--model.arch={arch}", f"--resolution.min_res={side}", f"--resolution.max_res={side}"),
            *(f"--training.batch_size={options.batch_size}", f"--training.epochs={EPOCHS}", "--lr.lr=0.01"),
            *(f"--training.precision={options.precision}", "--cropmix.enabled=1", "--logging.log_level=0"),
            *(f"--validation.batch_size={options.batch_size}", f"--validation.resolution={side}"),
            *(f"--data.train_dataset={beton}", f"--data.val_dataset={beton}", f"--logging.folder={folder}"),
            *(["--logging.tensorboard=0"] + [f"--data.num_workers={options.num_workers}"] * bool(options.num_workers)),
        ]
        replaced = patch.object(loaders, "Loader", ResidentLoader if resident else Loader)
        unvalidated = patch.object(classifier, "validate", lambda *_: _NoMetrics)
        with replaced, unvalidated, redirect_stdout(io.StringIO()):
            classifier.train(parse_config(arguments))
        entries = json.loads((Path(folder) / "log").read_text().splitlines()[-1])
    return entries["images_per_second"], entries["waiting"]


class _NoMetrics:
    """Stands for an evaluation, which this does not measure."""

    @staticmethod
    def entries() -> dict[str, float]:
        return {"top_1": 0.0, "top_5": 0.0, "val_loss": 0.0, "rms_calibration_error": 0.0}


@cache
def ffcv_loader(beton: Path, side: int, batch_size: int, num_workers: int, device: torch.device) -> Any:
    """FFCV's own, for one random crop; compiled once per side."""
    kind = np.float16 if device.type == "cuda" else np.float32
    normalize = NormalizeImage(255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD), kind)
    decoder: list[Any] = [RandomResizedCropRGBImageDecoder((side, side)), RandomHorizontalFlip()]
    transfer: list[Any] = [ToTensor(), ToDevice(device), ToTorchImage()]
    on_gpu = NORMALIZE_ON_GPU and device.type == "cuda"
    image = [*decoder, *transfer, normalize] if on_gpu else [*decoder, normalize, *transfer]
    return ffcv.loader.Loader(
        str(beton),
        batch_size=batch_size,
        num_workers=num_workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": image, "label": [IntDecoder(), ToTensor(), Squeeze(), ToDevice(device)]},
    )


def ffcv_imagenet(options: Options, beton: Path, arch: str, side: int, resident: bool) -> Rate:
    """Train as ffcv-imagenet does."""
    device = torch.device(options.device)
    half = device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    model = (
        torchvision.models.get_model(arch, num_classes=1000).to(memory_format=torch.channels_last).to(device).train()
    )
    parameters: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for name, parameter in model.named_parameters():
        parameters["bn" in name].append(parameter)
    groups = [{"params": parameters[0], "weight_decay": 1e-4}, {"params": parameters[1], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    workers = options.num_workers or len(os.sched_getaffinity(0))
    loader = ffcv_loader(beton, side, options.batch_size, workers, device)
    batches: Iterable[Any] = loader
    if resident:
        batches = [tuple(tensor.clone() for tensor in next(iter(loader)))] * len(loader)
    for _ in range(EPOCHS):
        meter = Meter(options.batch_size)
        loss_sum = torch.zeros((), device=device)
        for step, (images, labels) in enumerate(meter.watch(batches), start=1):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.float16, enabled=half):
                loss = loss_of(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            loss_sum += loss.detach()
            meter.step(loss_sum, step, 0.01)
        float(loss_sum)  # waits for the GPU
        meter.finish()
    return meter.images_per_second, meter.waiting


LOOPS: dict[str, Callable[[Options, Path, str, int, bool], Rate]] = {
    "trainer": trainer,
    "ffcv-imagenet": ffcv_imagenet,
}


def measure(options: Options, beton: Path) -> Iterator[dict[str, Any]]:
    """Measure both loops; print each result as a line of a table."""
    print(f"{'loop':15}{'network':>10}{'px':>5}{'images/s':>10}{'resident':>10}{'share':>7}{'waiting':>9}")
    for arch in options.arch:
        for side in options.side:
            for name, loop in LOOPS.items():
                rate, waiting = loop(options, beton, arch, side, False)
                resident, _ = loop(options, beton, arch, side, True)
                share = f"{100 * rate / resident:.0f} %"
                print(
                    f"{name:15}{arch:>10}{side:5}{rate:10,.0f}{resident:10,.0f}{share:>7}{waiting:7.1f} %", flush=True
                )
                yield {
                    **{"loop": name, "arch": arch, "side": side, "images_per_second": rate},
                    **{"resident": resident, "waiting": waiting},
                }


def main() -> None:
    options = parse_options(Options, prog="benchmarks/gpu.py", description=(__doc__ or "").split("\n")[0])
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: no CUDA. Would measure images/s of: " + "; ".join(LOOPS))
        return
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder:
        photos = options.data_dir or write_photos(Path(folder) / "photos", options.images)
        results = list(measure(options, write_beton(photos, Path(folder) / "photos.beton")))
    report = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "ffcv")},
        },
        "normalized_on_gpu": NORMALIZE_ON_GPU,
        "batch_size": options.batch_size,
        "images": str(options.data_dir or f"{options.images} synthetic photos of 500 x 375 px"),
        "results": results,
    }
    if options.json:
        with replacing(options.json) as (file,):
            file.write((json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    run_program(main)
