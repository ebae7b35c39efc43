"""Train and evaluate an image classifier: what `train_imagenet.py` runs.

`train` holds the whole recipe from the data to the weights. The other functions build its parts from the
configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import CenterCropRGBImageDecoder, CropMixRGBImageDecoder, Loader
from ..data.datasets import check_dataset, check_datasets, count_classes, match_classes
from ..errors import DataError, wrong_options
from ..evaluation.accuracy import Evaluation, evaluate
from ..evaluation.weights import create_with_weights, read_weights
from . import compare
from .augment import create_augmentation
from .checkpoint import Stateful
from .config import Config, ModelConfig
from .distributed import Processes, join
from .loaders import pipelines, training_loader, validation_loader
from .models import (
    NormalizedModel,
    average_weights,
    check_arch,
    check_batch,
    check_resolutions,
    choose_precision,
    create_network,
    create_sgd,
    describe,
    mixed_precision,
    parameter_groups,
)
from .objective import create_loss, create_mixing
from .run import Run
from .schedules import lr_schedule, resolution

RRC_SCALE = 0.08  # smallest crop of the plain RandomResizedCrop, as a share of the image


def train(config: Config) -> None:
    """Train a classifier, and print a table of its accuracy and speed.

    Writes log, checkpoint, weights and curves to `config.logging.folder`. Under torchrun, or with
    `training.distributed`, each process trains on its share of every batch.

    Raises:
        DataError: A file is missing, broken or does not fit the others; the loss diverged; or nothing can be written.
        SystemExit: An option is wrong (status 2), or a signal stopped the run (status 128 plus its number).
    """
    training = config.training
    processes = join(config.data.gpu, config.dist if training.distributed else None)
    device, precision = processes.device, choose_precision(training.precision, processes.device)
    torch.manual_seed(training.seed)
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()  # picks another one each time

    # Everything that can be wrong is checked before anything takes long.
    with wrong_options():
        check_arch(config.model.arch)
        augment = create_augmentation(training.augment, random_erasing=training.random_erasing)
    data = check_datasets(config.data.train_dataset, config.data.val_dataset, config.model.num_classes)
    micro_batch_size, accumulation_steps = processes.split_batch(
        training.batch_size, training.global_batch_size, data.train_images
    )
    resolutions = [resolution(epoch, config.resolution) for epoch in range(training.epochs)]
    model = create_model(config, data.num_classes, resolutions, processes)
    describe(model.network, classes=data.classes, **evaluation_options(config))
    with wrong_options():
        check_batch(model.network, micro_batch_size, resolutions)

    average = average_weights(model.network, training.ema_decay) if training.ema_decay else None
    evaluated = NormalizedModel(average.module).to(device) if average else model
    groups = parameter_groups(model, training.weight_decay, bn_wd=bool(training.bn_wd))
    optimizer = create_sgd(groups, config.lr.lr, momentum=training.momentum)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    loss_of = create_loss(training)
    mix = create_mixing(data.num_classes, mixup=training.mixup, cutmix=training.cutmix)
    trained = processes.wrap(torch.compile(model, dynamic=False) if training.compile else model)  # type: ignore[arg-type]

    decoder = create_decoder(config)
    fields = pipelines(decoder, device)
    train_loader = training_loader(
        config.data, fields, batch_size=micro_batch_size, seed=training.seed, processes=processes
    )
    val_loader = create_val_loader(config, processes, data.val_numbers)
    state: dict[str, Stateful] = {"model": model.network, "optimizer": optimizer, "scaler": scaler}
    if average:
        state["ema"] = average
    run = Run(
        config,
        train_loader,
        state,
        processes=processes,
        accumulation_steps=accumulation_steps,
        label=config.label,
    )
    lr_at = lr_schedule(config.lr, training.epochs, run.global_batch_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{config.model.arch}, {parameters / 1e6:.1f} M parameters, {data.num_classes:,} classes; "
        f"{data.train_images:,} training and {data.val_images:,} validation images; {run.batch_summary}; "
        f"{training.epochs} epochs, {min(resolutions)} to {max(resolutions)} px, {config.label['augmentation']}; "
        f"{device.type}, {precision}"
    )

    for epoch in run.epochs():
        side = resolutions[epoch]
        decoder.output_size = (side, side)
        model.train()
        for _ in run.steps():
            run.set_lr(optimizer, lr_at(run.position))
            for images, labels in run.micro_batches(trained):
                images, labels = mix(augment(images), labels)
                with mixed_precision(device, precision):
                    loss = loss_of(trained(images), labels) / accumulation_steps
                scaler.scale(loss).backward()
                run.add_loss(loss)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if average:
                average.update_parameters(model.network)
        metrics = {}
        if config.logging.log_level > 0 or epoch == training.epochs - 1:
            processes.share_buffers(evaluated)
            metrics = validate(config, evaluated, val_loader, data.num_classes, processes).entries()
        run.end_epoch(resolution=side, **metrics)

    if run.log:
        weights = run.log.save_weights(evaluated.network)
        compare.save_curves(run.log.folder)
        print(f"{compare.table([compare.read_run(run.log.folder)])}\nweights: {weights}")


def evaluate_only(config: Config) -> None:
    """Evaluate the weights of `config.resume` on the validation set, and print the result.

    Raises:
        DataError: The weights or the validation set cannot be read, or do not fit each other.
        SystemExit: An option is wrong (status 2).
    """
    processes = join(config.data.gpu, config.dist if config.training.distributed else None)
    path = Path(config.logging.folder) / "checkpoint.pt" if config.resume == "auto" else Path(str(config.resume))
    weights, default = read_weights(path), ModelConfig()
    arch = weights.arch if config.model.arch == default.arch and weights.arch else config.model.arch
    asked: dict[str, Any] = {"blurpool": config.training.use_blurpool, "cifar_stem": config.model.cifar_stem}
    asked = {name: True for name, on in asked.items() if on}
    for name in asked:
        if getattr(weights, name) is False:
            raise DataError(f"{path} is of a network without {name}")
    weights = replace(weights, **asked)  # older files do not say
    classes = config.model.num_classes or weights.num_classes or count_classes(config.data.val_dataset)
    with wrong_options():
        network = create_with_weights(weights, arch, classes)
    numbers = match_classes(config.data.val_dataset, weights.classes, path, weights.notes.append)
    check_dataset(config.data.val_dataset, classes, numbers)
    for name, value in evaluation_options(config).items():
        before = getattr(weights, name)
        if before not in (None, value):
            weights.notes.append(f"{path} was validated with {name} {before}; the options say {value}")
    for note in weights.notes:
        print(note, file=sys.stderr)
    model = NormalizedModel(network).to(processes.device).to(memory_format=torch.channels_last)
    result = validate(config, model, create_val_loader(config, processes, numbers), classes, processes)
    print(
        f"top-1 {result.top_1:.2f} %, top-5 {result.top_5:.2f} %, loss {result.loss:.4f}, "
        f"RMS calibration error {result.rms_calibration_error:.2f} %"
    )


def validate(config: Config, model: nn.Module, loader: Loader, classes: int, processes: Processes) -> Evaluation:
    """Evaluate the model on the validation set; each process gets the result over all of them."""
    with mixed_precision(processes.device, choose_precision(config.training.precision, processes.device)):
        batches = processes.show(loader, "validation")
        return evaluate(model, batches, num_classes=classes, flip_tta=bool(config.validation.lr_tta))


def create_model(config: Config, num_classes: int, resolutions: list[int], processes: Processes) -> NormalizedModel:
    """Create the network with its normalisation, on the device, in the channels-last memory format."""
    with wrong_options():
        network = create_network(
            config.model.arch,
            num_classes,
            pretrained=bool(config.model.pretrained),
            blurpool=bool(config.training.use_blurpool),
            cifar_stem=bool(config.model.cifar_stem),
        )
        if config.training.sync_bn and processes.world_size > 1:
            if processes.device.type == "cpu":
                raise ValueError("training.sync_bn=1: torch synchronises batch normalisation on GPUs only")
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        model = NormalizedModel(network).to(processes.device).to(memory_format=torch.channels_last)
        check_resolutions(model, [*resolutions, config.validation.resolution])
    return model


def evaluation_options(config: Config) -> dict[str, Any]:
    """Return how images are evaluated, as the description of the weights records it."""
    validation = config.validation
    return {
        "resolution": validation.resolution,
        "crop_ratio": validation.crop_ratio,
        "interpolation": "bilinear",
        "flip_tta": bool(validation.lr_tta),
    }


def create_decoder(config: Config) -> CropMixRGBImageDecoder:
    """Create the training decoder: CropMix, or a plain RandomResizedCrop from the same kernels."""
    cropmix, side = config.cropmix, config.resolution.min_res
    return CropMixRGBImageDecoder(
        (side, side),
        scale=cropmix.scale if cropmix.enabled else RRC_SCALE,
        flip_probability=config.data.flip_probability,
        seed=config.training.seed,
        **cropmix.mix(),
    )


def create_val_loader(config: Config, processes: Processes, numbers: Sequence[int] | None = None) -> Loader:
    """Create the loader of centre crops of the validation set.

    Args:
        config: Configuration of the run.
        processes: This process and its peers.
        numbers: Output of the model for each label; see `match_classes`.
    """
    side, batch_size = config.validation.resolution, config.validation.batch_size
    decoder = CenterCropRGBImageDecoder((side, side), ratio=config.validation.crop_ratio)
    return validation_loader(config.data, decoder, batch_size=batch_size, processes=processes, numbers=numbers)
