"""The training loop of pretrain.py."""

from __future__ import annotations

from dataclasses import asdict

import torch
from ffcv.transforms import ToTensor, ToTorchImage
from matplotlib.figure import Figure
from torch import Tensor

from ffcv_cropmix import CropMixRGBImageDecoder, Loader
from ffcv_cropmix.data.datasets import check_dataset
from ffcv_cropmix.training import compare
from ffcv_cropmix.training.distributed import join, seed_step
from ffcv_cropmix.training.loaders import pipelines, training_loader
from ffcv_cropmix.training.models import NormalizedModel, choose_precision, describe, mixed_precision, parameter_groups
from ffcv_cropmix.training.run import Run

from .common import create_decoder, lr_schedule
from .config import PretrainConfig
from .model import MaskedAutoencoder

PICTURES = 8
ANY = 2**31  # number of classes: labels are ignored


def pretrain(config: PretrainConfig) -> None:
    """Pre-train; write log, checkpoint, the encoder's weights and a picture to `config.logging.folder`."""
    training, seed = config.training, config.training.seed
    images_to_train = check_dataset(config.data.train_dataset, ANY)
    processes = join(config.data.gpu)
    torch.manual_seed(seed)
    micro_batch_size, accumulation_steps = processes.split_batch(
        training.batch_size, training.global_batch_size, images_to_train
    )
    device, precision = processes.device, choose_precision(config.training.precision, processes.device)
    pictures = read_pictures(config).to(device)

    network = MaskedAutoencoder(config.model)
    describe(network.encoder.vit, encoder=asdict(config.model))
    model = NormalizedModel(network).to(device)
    groups = parameter_groups(model, training.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, training.beta_2), fused=True)
    trained = processes.wrap(torch.compile(model, dynamic=False) if training.compile else model)  # type: ignore[arg-type]
    fields = pipelines(create_decoder(config, config.model), device)
    loader = training_loader(config.data, fields, batch_size=micro_batch_size, seed=seed, processes=processes)
    run = Run(
        config,
        loader,
        {"model": network, "optimizer": optimizer},
        processes=processes,
        accumulation_steps=accumulation_steps,
        label=config.label,
    )
    lr_at = lr_schedule(training, run.global_batch_size)
    print(
        f"MAE, {config.model.arch}, {sum(p.numel() for p in network.encoder.vit.parameters()) / 1e6:.1f} M parameters; "
        f"{images_to_train:,} images; {run.batch_summary}; {training.epochs} epochs, {config.model.resolution} px, "
        f"{config.label['augmentation']}; {device.type}, {precision}"
    )

    for epoch in run.epochs():
        for _ in run.steps():
            run.set_lr(optimizer, lr_at(run.position))
            for images, _ in run.micro_batches(trained):
                with mixed_precision(device, precision):
                    loss = trained(images) / accumulation_steps
                loss.backward()
                run.add_loss(loss)
            optimizer.step()
            optimizer.zero_grad()
        if run.log and (config.logging.log_level > 0 or epoch == training.epochs - 1):
            seed_step(seed, 0, 0, 0)  # the same masks each time; every step sets its own seed
            compare.save(plot(model, pictures), run.log.folder / "reconstructions.png")
        run.end_epoch()

    if run.log:
        print(f"encoder: {run.log.save_weights(network.encoder.vit)}")


def read_pictures(config: PretrainConfig) -> Tensor:
    """Read the first images of the validation set, resized: uint8 (n, 3, side, side). Square ones are not cropped."""
    side, path = config.model.resolution, config.data.val_dataset
    whole = CropMixRGBImageDecoder((side, side), scale=1.0, number=1, ratio=(1, 1), interpolation="bicubic")
    # This decoder rather than the one for evaluation: it is compiled already for the training images.
    indices = list(range(min(PICTURES, check_dataset(path, ANY))))
    pipelines = {"image": [whole, ToTensor(), ToTorchImage()], "label": None}
    [(images,)] = Loader(path, len(indices), indices=indices, num_workers=1, pipelines=pipelines)
    return images.clone()


def plot(model: NormalizedModel, images: Tensor) -> Figure:
    """Plot rows of images, of the patches that the encoder sees, and of the reconstructions."""
    network = model.network
    assert isinstance(network, MaskedAutoencoder)
    hidden, filled = network.reconstruct(images * model.scale + model.shift)
    rows = [images, *(((picture - model.shift) / model.scale).round() for picture in (hidden, filled))]
    figure = Figure(figsize=(1.1 * len(images), 3.5), dpi=150, layout="constrained")
    for axes, pictures, name in zip(figure.subplots(3, len(images), squeeze=False), rows, ("image", "seen", "filled")):
        axes[0].set_ylabel(name)
        for axis, picture in zip(axes, pictures):
            axis.imshow(picture.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())
            axis.set_xticks([])
            axis.set_yticks([])
    return figure
