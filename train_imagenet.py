"""Train an image classifier on .beton files, with CropMix or RandomResizedCrop, on GPUs or on the CPU.

python train_imagenet.py --config-file rn50_configs/rn50_16_epochs.yaml \
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs/rn50

On several GPUs: torchrun --nproc-per-node=8 train_imagenet.py ... Options: --help, or ffcv_cropmix/training/config.py.
"""

from __future__ import annotations

from ffcv_cropmix.training.config import MAY_DIFFER, Config, ModelConfig, augmentation, parse_config

if __name__ == "__main__":
    CONFIG = parse_config()  # before torch and FFCV, which take seconds to import: a wrong option is answered at once

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ffcv_cropmix import CenterCropRGBImageDecoder, CropMixRGBImageDecoder, Loader
from ffcv_cropmix.errors import DataError, run_program, wrong_options
from ffcv_cropmix.evaluation.accuracy import Evaluation, evaluate
from ffcv_cropmix.evaluation.weights import create_with_weights, read_weights
from ffcv_cropmix.training import compare
from ffcv_cropmix.training.datasets import check_dataset, check_datasets, count_classes, match_classes
from ffcv_cropmix.training.distributed import Processes, deal_step, join
from ffcv_cropmix.training.loaders import pipelines, training_loader, validation_loader
from ffcv_cropmix.training.logs import closing_table
from ffcv_cropmix.training.models import (
    NormalizedModel,
    average_weights,
    check_arch,
    check_batch,
    check_resolutions,
    choose_precision,
    create_network,
    create_sgd,
    describe,
    estimate_bytes,
    mixed_precision,
    parameter_groups,
)
from ffcv_cropmix.training.objective import create_loss, create_mixing
from ffcv_cropmix.training.run import Run
from ffcv_cropmix.training.schedules import lr_schedule, resolution

RRC_SCALE = 0.08  # smallest crop of the plain RandomResizedCrop, as a share of the image


def train(config: Config) -> None:
    """Train as `config` says; leave log, checkpoint and weights in `logging.folder`, and print a closing table."""
    training = config.training
    processes = join(config.data.gpu, config.dist if training.distributed else None)
    device, precision = processes.device, choose_precision(config.training.precision, processes.device)
    torch.manual_seed(training.seed)
    torch.backends.cudnn.benchmark = True

    # What can be wrong is found before anything takes long.
    with wrong_options():
        check_arch(config.model.arch)
    data = check_datasets(config.data.train_dataset, config.data.val_dataset, config.model.num_classes)
    classes, images_to_train = data.num_classes, data.train_images
    batch_size, parts = deal_step(
        training.batch_size, training.global_batch_size, images=images_to_train, processes=processes
    )
    images_a_step = batch_size * parts * processes.count

    resolutions = [resolution(epoch, config.resolution) for epoch in range(training.epochs)]
    model = create_model(config, classes, resolutions, processes)
    describe(model.network, classes=data.classes, **evaluation_options(config))
    with wrong_options():
        check_batch(model.network, batch_size, resolutions)
    average = average_weights(model.network, training.ema_decay) if training.ema_decay else None
    evaluated = NormalizedModel(average.module).to(device) if average else model
    groups = parameter_groups(model, training.weight_decay, bn_wd=bool(training.bn_wd))
    optimizer = create_sgd(groups, config.lr.lr, momentum=training.momentum)
    lr_at = lr_schedule(config.lr, training.epochs, images_a_step)
    loss_of = create_loss(training)
    mix = create_mixing(classes, mixup=training.mixup, cutmix=training.cutmix)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    trained = processes.wrap(torch.compile(model) if training.compile else model)  # type: ignore[arg-type]

    decoder = create_decoder(config)
    fields = pipelines(decoder, device)
    train_loader = training_loader(config.data, fields, batch_size=batch_size, seed=training.seed, processes=processes)
    val_loader = create_val_loader(config, processes, data.val_numbers)
    averaged = {"ema": average} if average else {}
    run = Run(
        Path(config.logging.folder),
        asdict(config),
        epochs=training.epochs,
        seed=training.seed,
        processes=processes,
        loader=train_loader,
        parts=parts,
        state={"model": model.network, "optimizer": optimizer, "scaler": scaler, **averaged},
        resume=config.resume,
        may_differ=MAY_DIFFER,
        tensorboard=bool(config.logging.tensorboard),
    )
    half = precision != "fp32"
    size = estimate_bytes(model.network, batch_size, max(resolutions), half=half, averaged=bool(average))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{config.model.arch}, {parameters / 1e6:.1f} M parameters, {classes:,} classes; {images_to_train:,} images, "
        f"{images_a_step:,} a step ({processes.count} processes x {parts} x {batch_size}), {training.epochs} epochs, "
        f"{min(resolutions)} to {max(resolutions)} px, {augmentation(asdict(config))}; {data.val_images:,} to "
        f"validate on; {device.type}, {precision}, about {size / 2**30:.1f} GiB each"
    )

    for epoch in run.epochs():
        side = resolutions[epoch]
        decoder.output_size = (side, side)
        model.train()
        for _ in run.steps():
            run.set_lr(optimizer, lr_at(run.position))
            for part in range(1, parts + 1):
                images, labels = mix(*run.next_batch())
                with processes.exchange(trained, part == parts):
                    with mixed_precision(device, precision):
                        loss = loss_of(trained(images), labels) / parts
                    scaler.scale(loss).backward()
                run.add_loss(loss)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if average:
                average.update_parameters(model.network)
        evaluation = {}
        if config.logging.log_level > 0 or epoch == training.epochs - 1:
            processes.share_buffers(evaluated)
            evaluation = validate(config, evaluated, val_loader, classes, processes).entries()
        run.end_epoch(resolution=side, **evaluation)

    if run.log:
        weights = run.log.save_weights(evaluated.network)
        compare.save_curves(run.log.folder)
        print(closing_table(config, run.log, weights))


def evaluate_only(config: Config) -> None:
    """Evaluate the weights of `resume` on the validation set."""
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
    """Evaluate on the validation set; all processes get the result of all."""
    with mixed_precision(processes.device, choose_precision(config.training.precision, processes.device)):
        batches = processes.show(loader, "validation")
        return evaluate(model, batches, num_classes=classes, flip_tta=bool(config.validation.lr_tta))


def create_model(config: Config, num_classes: int, resolutions: list[int], processes: Processes) -> NormalizedModel:
    """The network behind its normalisation, on the device, channels last."""
    with wrong_options():
        network = create_network(
            config.model.arch,
            num_classes,
            pretrained=bool(config.model.pretrained),
            blurpool=bool(config.training.use_blurpool),
            cifar_stem=bool(config.model.cifar_stem),
        )
        if config.training.sync_bn and processes.count > 1:
            if processes.device.type == "cpu":
                raise ValueError("training.sync_bn=1: torch synchronises batch normalisation on GPUs only")
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        model = NormalizedModel(network).to(processes.device).to(memory_format=torch.channels_last)
        check_resolutions(model, [*resolutions, config.validation.resolution])
    return model


def evaluation_options(config: Config) -> dict[str, Any]:
    """How images are evaluated, as weights are to say."""
    validation = config.validation
    return {
        "resolution": validation.resolution,
        "crop_ratio": validation.crop_ratio,
        "interpolation": "bilinear",
        "flip_tta": bool(validation.lr_tta),
    }


def create_decoder(config: Config) -> CropMixRGBImageDecoder:
    """CropMix, or the plain RandomResizedCrop from the same kernels."""
    cropmix, side = config.cropmix, config.resolution.min_res
    return CropMixRGBImageDecoder(
        (side, side),
        scale=cropmix.scale if cropmix.enabled else RRC_SCALE,
        flip_probability=config.data.flip_probability,
        seed=config.training.seed,
        **cropmix.mix(),
    )


def create_val_loader(config: Config, processes: Processes, numbers: Sequence[int] | None = None) -> Loader:
    """The centres of the validation images, and their labels by `numbers`, see `match_classes`."""
    side, batch_size = config.validation.resolution, config.validation.batch_size
    decoder = CenterCropRGBImageDecoder((side, side), ratio=config.validation.crop_ratio)
    return validation_loader(config.data, decoder, batch_size=batch_size, processes=processes, numbers=numbers)


if __name__ == "__main__":
    run_program(lambda: evaluate_only(CONFIG) if CONFIG.training.eval_only else train(CONFIG))
