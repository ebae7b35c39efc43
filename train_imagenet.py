"""Train an image classifier on .beton files, with CropMix or RandomResizedCrop, on one GPU or on the CPU.

python train_imagenet.py --config-file rn50_configs/rn50_16_epochs.yaml \
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs/rn50

Options: --help, or ffcv_cropmix/training/config.py.
"""

from __future__ import annotations

from ffcv_cropmix.training.config import Config, parse_config

if __name__ == "__main__":
    CONFIG = parse_config()  # before torch and FFCV, which take seconds to import: a wrong option is answered at once

import math
import os
import time
from typing import Any

import numpy as np
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.loader import OrderOption
from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage
from torch import nn

from ffcv_cropmix import CenterCropRGBImageDecoder, CropMixRGBImageDecoder, Loader, check_beton
from ffcv_cropmix.data.sidecar import read_sidecar
from ffcv_cropmix.errors import DataError, run_program, usage_error
from ffcv_cropmix.evaluation.accuracy import evaluate
from ffcv_cropmix.evaluation.calibration import rms_calibration_error
from ffcv_cropmix.progress import progress
from ffcv_cropmix.training.logs import EpochRecord, RunLog
from ffcv_cropmix.training.models import (
    NormalizedModel,
    check_arch,
    check_resolutions,
    create_network,
    parameter_groups,
)
from ffcv_cropmix.training.schedules import lr_schedule, resolution

CENTER_CROP_RATIO = 224 / 256
RRC_SCALE = 0.08  # smallest crop of the plain RandomResizedCrop, as a share of the image


def train(config: Config) -> None:
    """Train as `config` says; leave log and weights in `logging.folder`, and print a closing table."""
    training = config.training
    torch.manual_seed(training.seed)
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(worker_count(None))  # importing FFCV set it to 1
    device = choose_device(config.data.gpu)

    # What can be wrong is found before anything takes long.
    try:
        check_arch(config.model.arch)
    except ValueError as error:
        usage_error(str(error))
    classes = config.model.num_classes or count_classes(config.data.train_dataset)
    images_to_train = check_dataset(config.data.train_dataset, classes)
    images_to_validate = check_dataset(config.data.val_dataset, classes)
    if training.batch_size > images_to_train:
        usage_error(f"training.batch_size={training.batch_size} is more than {images_to_train}, the whole training set")

    resolutions = [resolution(epoch, config.resolution) for epoch in range(training.epochs)]
    model = create_model(config, classes, resolutions, device)
    optimizer = torch.optim.SGD(
        parameter_groups(model, training.weight_decay, bn_wd=bool(training.bn_wd)),
        lr=config.lr.lr,
        momentum=training.momentum,
    )
    lr_at = lr_schedule(config.lr, training.epochs)
    criterion = nn.CrossEntropyLoss(label_smoothing=training.label_smoothing)

    decoder = create_decoder(config)
    train_loader = create_train_loader(config, decoder, device)
    val_loader = create_val_loader(config, device)
    log = RunLog(config)
    print(
        f"{config.model.arch} with {classes} classes on {device}: {images_to_train:,} images to train on, "
        f"{training.batch_size} a step, {images_to_validate:,} to validate on"
    )

    for epoch, side in enumerate(resolutions):
        decoder.output_size = (side, side)
        model.train()
        steps = len(train_loader)
        loss_sum = torch.zeros((), device=device)  # read once an epoch: reading waits for the GPU
        started = first_batch = time.perf_counter()
        for step, (images, labels) in enumerate(progress(train_loader, total=steps, desc=f"epoch {epoch + 1}")):
            if step == 0:
                first_batch = time.perf_counter()
            lr = lr_at(epoch + (step + 0.5) / steps)
            for group in optimizer.param_groups:
                group["lr"] = lr

            with mixed_precision(device):
                loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach()
        train_loss = loss_sum.item() / steps
        ended = time.perf_counter()

        if not math.isfinite(train_loss):
            raise DataError(f"the training loss is {train_loss} after epoch {epoch + 1}: try a smaller lr.lr")
        record = EpochRecord(
            epoch=epoch,
            train_loss=train_loss,
            lr=lr,
            resolution=side,
            images_per_second=steps * training.batch_size / (ended - first_batch),
            seconds=ended - started,
        )
        if config.logging.log_level > 0 or epoch == training.epochs - 1:
            with mixed_precision(device):
                result = evaluate(model, val_loader, num_classes=classes, flip_tta=bool(config.validation.lr_tta))
            record.top_1, record.top_5, record.val_loss = result.top_1, result.top_5, result.loss
            record.rms_calibration_error = rms_calibration_error(result.confidence, result.correct)
        log.add(record)

    log.save_weights(model.network)
    print(log.closing_table())


def choose_device(gpu: int) -> torch.device:
    """The GPU of that index, or the CPU where CUDA is not available."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if gpu >= torch.cuda.device_count():
        usage_error(f"data.gpu={gpu}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU (needs no loss scaling); float32 on the CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def count_classes(path: str) -> int:
    """As many classes as the dataset's sidecar names; without one, ImageNet's 1000."""
    sidecar = read_sidecar(path)
    return len(sidecar.classes) if sidecar else 1000


def check_dataset(path: str, num_classes: int) -> int:
    """How many images a .beton file holds; DataError if it is not sound, or has labels that the model does not."""
    beton = check_beton(path)
    missing = {"image", "label"} - beton.fields.keys()
    if missing:
        raise DataError(f"{path} has no field {' and no field '.join(sorted(missing))}")
    labels = beton.column("label")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise DataError(
            f"{path}: sample {wrong[0]} is of class {labels[wrong[0]]}, the model's are 0 to {num_classes - 1}; "
            "set model.num_classes"
        )
    return len(labels)


def create_model(config: Config, num_classes: int, resolutions: list[int], device: torch.device) -> NormalizedModel:
    """The network behind its normalisation, on the device, channels last."""
    pretrained, blurpool = bool(config.model.pretrained), bool(config.training.use_blurpool)
    try:
        network = create_network(config.model.arch, num_classes, pretrained=pretrained, blurpool=blurpool)
        model = NormalizedModel(network).to(device).to(memory_format=torch.channels_last)
        check_resolutions(model, [*resolutions, config.validation.resolution])
    except ValueError as error:
        usage_error(str(error))
    return model


def create_decoder(config: Config) -> CropMixRGBImageDecoder:
    """CropMix, or the plain RandomResizedCrop from the same kernels."""
    cropmix, side = config.cropmix, config.resolution.min_res
    options: dict[str, Any] = {"scale": RRC_SCALE, "number": 1}
    if cropmix.enabled:
        options = {
            "scale": cropmix.scale,
            "number": cropmix.number,
            "operation": cropmix.operation,
            "mix_ratio": cropmix.mix_ratio,
            "inter_aug": bool(cropmix.inter_aug),
        }
    return CropMixRGBImageDecoder(
        (side, side), flip_probability=config.data.flip_probability, seed=config.training.seed, **options
    )


def create_train_loader(config: Config, decoder: CropMixRGBImageDecoder, device: torch.device) -> Loader:
    """Batches of images, uint8 (N, 3, H, W), and labels, int64 (N,), on the device, in random order."""
    return Loader(
        config.data.train_dataset,
        batch_size=config.training.batch_size,
        num_workers=worker_count(config.data.num_workers),
        os_cache=bool(config.data.in_memory),
        order=OrderOption.RANDOM if config.data.in_memory else OrderOption.QUASI_RANDOM,
        seed=config.training.seed,
        drop_last=True,
        pipelines=pipelines(decoder, device),
    )


def create_val_loader(config: Config, device: torch.device) -> Loader:
    """The same of every validation image, in the file's order."""
    side = config.validation.resolution
    return Loader(
        config.data.val_dataset,
        batch_size=config.validation.batch_size,
        num_workers=worker_count(config.data.num_workers),
        os_cache=bool(config.data.in_memory),
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines=pipelines(CenterCropRGBImageDecoder((side, side), ratio=CENTER_CROP_RATIO), device),
    )


def pipelines(decoder: Any, device: torch.device) -> dict[str, list[Any]]:
    """What happens to the fields of a sample."""
    return {
        "image": [decoder, ToTensor(), ToDevice(device), ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), Squeeze(1), ToDevice(device)],
    }


def worker_count(wanted: int | None) -> int:
    """At most the cores that this process may use: FFCV refuses more."""
    allowed = len(os.sched_getaffinity(0))
    return min(wanted or allowed, allowed)


if __name__ == "__main__":
    run_program(lambda: train(CONFIG))
