"""The training loop of finetune.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import Lars, param_groups_layer_decay
from torch import nn

from ffcv_cropmix import CenterCropRGBImageDecoder, Loader
from ffcv_cropmix.data.datasets import check_datasets
from ffcv_cropmix.errors import usage_error, wrong_options
from ffcv_cropmix.evaluation.accuracy import evaluate
from ffcv_cropmix.training import compare
from ffcv_cropmix.training.config import augmentation
from ffcv_cropmix.training.distributed import Processes, join
from ffcv_cropmix.training.loaders import pipelines, training_loader, validation_loader
from ffcv_cropmix.training.models import NormalizedModel, check_batch, choose_precision, mixed_precision
from ffcv_cropmix.training.objective import create_mixing
from ffcv_cropmix.training.run import Run

from .common import create_decoder, lr_schedule
from .config import FinetuneConfig, ModelConfig
from .model import create_vit, load_encoder, read_shape


def finetune(config: FinetuneConfig) -> None:
    """Fine-tune or probe; write log, checkpoint, weights and curves to `config.logging.folder`."""
    training = config.training
    shape = read_shape(Path(config.weights))
    if config.validation.resolution != shape.resolution:
        usage_error(f"validation.resolution={config.validation.resolution}: the encoder takes {shape.resolution} px")
    data = check_datasets(config.data.train_dataset, config.data.val_dataset, config.num_classes)
    classes, images_to_train = data.num_classes, data.train_images
    processes = join(config.data.gpu)
    torch.manual_seed(training.seed)
    micro_batch_size, accumulation_steps = processes.split_batch(
        training.batch_size, training.global_batch_size, images_to_train
    )
    device, precision = processes.device, choose_precision(training.precision, processes.device)

    network = create_probe(shape, classes) if config.linear_probe else create_classifier(config, shape, classes)
    with wrong_options():
        check_batch(network, micro_batch_size, [shape.resolution])
    if not config.from_scratch:
        load_encoder(network, Path(config.weights))
    model = NormalizedModel(network).to(device)
    optimizer = create_optimizer(config, network)
    loss_of = nn.CrossEntropyLoss(label_smoothing=training.label_smoothing)
    mix = create_mixing(classes, mixup=training.mixup, cutmix=training.cutmix)
    trained = processes.wrap(torch.compile(model, dynamic=False) if training.compile else model)  # type: ignore[arg-type]
    fields = pipelines(create_decoder(config, shape), device)
    loader = training_loader(config.data, fields, batch_size=micro_batch_size, seed=training.seed, processes=processes)
    val_loader = create_val_loader(config, shape, processes, data.val_numbers)
    label = {"model": shape.arch, "augmentation": augmentation(asdict(config))}
    run = Run(
        config,
        loader,
        {"model": network, "optimizer": optimizer},
        processes=processes,
        accumulation_steps=accumulation_steps,
        label=label,
        further_options={"model": asdict(shape)},
    )
    lr_at = lr_schedule(training, run.global_batch_size)
    print(
        f"{'linear probe' if config.linear_probe else 'fine-tuning'} of {shape.arch}, {classes:,} classes; "
        f"{images_to_train:,} training and {data.val_images:,} validation images; {run.batch_summary}; "
        f"{training.epochs} epochs, {shape.resolution} px, {label['augmentation']}; {device.type}, {precision}"
    )

    for epoch in run.epochs():
        model.train()
        for _ in run.steps():
            run.set_lr(optimizer, lr_at(run.position))
            for images, labels in run.micro_batches(trained):
                images, labels = mix(images, labels)
                with mixed_precision(device, precision):
                    loss = loss_of(trained(images), labels) / accumulation_steps
                loss.backward()
                run.add_loss(loss)
            optimizer.step()
            optimizer.zero_grad()
        evaluation = {}
        if config.logging.log_level > 0 or epoch == training.epochs - 1:
            processes.share_buffers(model)
            with mixed_precision(device, precision):
                batches, flip = processes.show(val_loader, "validation"), bool(config.validation.lr_tta)
                evaluation = evaluate(model, batches, num_classes=classes, flip_tta=flip).entries()
        run.end_epoch(**evaluation)

    if run.log:
        weights = run.log.save_weights(network)
        compare.save_curves(run.log.folder)
        print(f"top-1 {run.log.records[-1]['top_1']:.2f} %; weights: {weights}")


def create_classifier(config: FinetuneConfig, shape: ModelConfig, classes: int) -> VisionTransformer:
    """Create a classifier: the encoder, the mean over its patches, normalisation and a linear layer."""
    vit = create_vit(shape, num_classes=classes, global_pool="avg", drop_path_rate=config.training.drop_path)
    vit.head = create_head(shape, classes, 2e-5)
    return vit


def create_probe(shape: ModelConfig, classes: int) -> VisionTransformer:
    """Create a linear probe: the frozen encoder, batch normalisation of its class token and a linear layer."""
    vit = create_vit(shape, num_classes=classes, global_pool="token").requires_grad_(False)
    norm = nn.BatchNorm1d(shape.width, eps=1e-6, affine=False)
    vit.head = nn.Sequential(norm, create_head(shape, classes, 0.01))  # type: ignore[assignment]
    return vit


def create_head(shape: ModelConfig, classes: int, std: float) -> nn.Linear:
    """Create a linear layer with initial weights of that standard deviation."""
    head = nn.Linear(shape.width, classes)
    nn.init.trunc_normal_(head.weight, std=std)
    nn.init.zeros_(head.bias)
    return head


def create_optimizer(config: FinetuneConfig, network: VisionTransformer) -> torch.optim.Optimizer:
    """Create AdamW with layer-wise learning rate decay, or LARS, which adapts to the norms of weights only."""
    training = config.training
    if training.optimizer == "lars":
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        groups = [{"params": [parameter], "always_adapt": parameter.ndim > 1} for parameter in trained]
        return Lars(groups, momentum=0.9, weight_decay=training.weight_decay)
    tokens = network.no_weight_decay()  # and positions
    groups = param_groups_layer_decay(network, training.weight_decay, tokens, layer_decay=training.layer_decay)
    return torch.optim.AdamW(groups, betas=(0.9, training.beta_2), fused=True)


def create_val_loader(
    config: FinetuneConfig, shape: ModelConfig, processes: Processes, numbers: Sequence[int] | None = None
) -> Loader:
    """Create the loader of centre crops of the validation set, as train_imagenet.py does, but bicubic."""
    side = (shape.resolution, shape.resolution)
    decoder = CenterCropRGBImageDecoder(side, ratio=config.validation.crop_ratio, interpolation="bicubic")
    batch_size = config.validation.batch_size
    return validation_loader(config.data, decoder, batch_size=batch_size, processes=processes, numbers=numbers)
