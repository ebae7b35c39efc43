"""The training loop of linear.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from ffcv_cropmix import CenterCropRGBImageDecoder, CropMixRGBImageDecoder
from ffcv_cropmix.data.datasets import check_datasets
from ffcv_cropmix.evaluation.accuracy import evaluate
from ffcv_cropmix.evaluation.weights import load_weights, read_weights
from ffcv_cropmix.training.distributed import join
from ffcv_cropmix.training.loaders import pipelines, training_loader, validation_loader
from ffcv_cropmix.training.models import NormalizedModel, choose_precision, create_sgd, mixed_precision
from ffcv_cropmix.training.run import Run

from .config import LinearConfig
from .moco import create_backbone


def train(config: LinearConfig) -> None:
    """Train the classifier and print its accuracy; write log, checkpoint and weights to `config.logging.folder`."""
    training = config.training
    processes = join(config.data.gpu)
    device = processes.device
    torch.manual_seed(training.seed)
    data = check_datasets(config.data.train_dataset, config.data.val_dataset)
    classes, images_to_train = data.num_classes, data.train_images
    whole = training.global_batch_size
    batch_size, _ = processes.split_batch(whole, whole, images_to_train)
    backbone = create_backbone(config.model)
    weights = read_weights(Path(config.weights))
    load_weights(backbone, weights, config.model.arch, without=("fc.",))  # a head of the pre-training
    for note in weights.notes:
        print(note, file=sys.stderr)
    features = NormalizedModel(backbone).requires_grad_(False).to(device).eval()
    classifier = nn.Linear(backbone.inplanes, classes).to(device)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    trained = processes.wrap(classifier)
    optimizer = create_sgd(classifier.parameters(), training.lr, momentum=0.9)

    side = (training.resolution,) * 2
    decoder = CropMixRGBImageDecoder(side, scale=0.08, number=1, flip_probability=0.5, seed=training.seed)
    fields = pipelines(decoder, device)
    loader = training_loader(config.data, fields, batch_size=batch_size, seed=training.seed, processes=processes)
    center, numbers = CenterCropRGBImageDecoder(side), data.val_numbers
    validation = validation_loader(config.data, center, batch_size=256, processes=processes, numbers=numbers)
    run = Run(
        config,
        loader,
        {"model": classifier, "optimizer": optimizer},
        processes=processes,
        label=config.label,
    )
    for _ in run.epochs():
        for _ in run.steps():
            drops = sum(run.position >= share * training.epochs for share in (0.6, 0.8))
            run.set_lr(optimizer, training.lr * 0.1**drops)
            images, labels = run.next_batch()
            with mixed_precision(device, choose_precision(None, device)):
                loss = nn.functional.cross_entropy(trained(features(images)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.add_loss(loss)
        batches = processes.show(validation, "validation")
        with mixed_precision(device, choose_precision(None, device)):
            result = evaluate(nn.Sequential(features, classifier), batches, num_classes=classes, flip_tta=False)
        run.end_epoch(**result.entries())
    if run.log:
        run.log.save_weights(classifier)
        print(f"linear top-1 {run.log.records[-1]['top_1']:.2f} %")
