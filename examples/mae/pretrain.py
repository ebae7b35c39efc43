"""Pre-train a masked autoencoder on .beton files, with CropMix or RandomResizedCrop, on GPUs or on the CPU.

python -m examples.mae.pretrain --config-file examples/mae/paper.yaml \
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs/mae

On several GPUs: torchrun --nproc-per-node=8 -m examples.mae.pretrain ... Options: --help, or examples/mae/config.py.
"""

from __future__ import annotations

from ffcv_cropmix.training.config import MAY_DIFFER

from .config import PretrainConfig, options, parse_pretrain

if __name__ == "__main__":
    CONFIG = parse_pretrain()  # before torch and FFCV, which take seconds to import: a wrong option is answered at once

from dataclasses import asdict
from pathlib import Path

import torch
from ffcv.transforms import ToTensor, ToTorchImage
from matplotlib.figure import Figure
from torch import Tensor

from ffcv_cropmix import CropMixRGBImageDecoder, Loader
from ffcv_cropmix.errors import run_program
from ffcv_cropmix.training import compare
from ffcv_cropmix.training.config import augmentation
from ffcv_cropmix.training.datasets import check_dataset
from ffcv_cropmix.training.distributed import deal_step, join, seed_step
from ffcv_cropmix.training.loaders import pipelines, training_loader
from ffcv_cropmix.training.models import NormalizedModel, choose_precision, describe, mixed_precision, parameter_groups
from ffcv_cropmix.training.run import Run

from .common import cosine_lr, create_decoder
from .model import MaskedAutoencoder

PICTURES = 8
ANY = 2**31  # classes: labels are not looked at


def pretrain(config: PretrainConfig) -> None:
    """Train as `config` says; leave log, checkpoint, the encoder's weights and a picture in `logging.folder`."""
    training, seed = config.training, config.training.seed
    images_to_train = check_dataset(config.data.train_dataset, ANY)
    processes = join(config.data.gpu)
    torch.manual_seed(seed)
    batch_size, parts = deal_step(
        training.batch_size, training.global_batch_size, images=images_to_train, processes=processes
    )
    device, precision = processes.device, choose_precision(config.training.precision, processes.device)
    pictures = read_pictures(config).to(device)

    network = MaskedAutoencoder(config.model)
    describe(network.encoder.vit, encoder=asdict(config.model))
    model = NormalizedModel(network).to(device)
    groups = parameter_groups(model, training.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, training.beta_2), fused=True)
    trained = processes.wrap(torch.compile(model) if training.compile else model)  # type: ignore[arg-type]
    fields = pipelines(create_decoder(config, config.model), device)
    loader = training_loader(config.data, fields, batch_size=batch_size, seed=seed, processes=processes)
    run = Run(
        Path(config.logging.folder),
        options(config, config.model),
        epochs=training.epochs,
        seed=seed,
        processes=processes,
        loader=loader,
        parts=parts,
        state={"model": network, "optimizer": optimizer},
        resume=config.resume,
        may_differ=MAY_DIFFER,
        tensorboard=bool(config.logging.tensorboard),
    )
    lr_at = cosine_lr(training, run.images)
    print(
        f"MAE, {config.model.arch}, {sum(p.numel() for p in network.encoder.vit.parameters()) / 1e6:.1f} M parameters; "
        f"{images_to_train:,} images, {run.images:,} a step ({processes.count} processes x {parts} x {batch_size}), "
        f"{training.epochs} epochs, {config.model.resolution} px, {augmentation(options(config, config.model))}; "
        f"{device.type}, {precision}"
    )

    for epoch in run.epochs():
        for _ in run.steps():
            run.set_lr(optimizer, lr_at(run.position))
            for part in range(1, parts + 1):
                images, _ = run.next_batch()
                with processes.exchange(trained, part == parts):
                    with mixed_precision(device, precision):
                        loss = trained(images) / parts
                    loss.backward()
                run.add_loss(loss)
            optimizer.step()
            optimizer.zero_grad()
        if run.log and (config.logging.log_level > 0 or epoch == training.epochs - 1):
            seed_step(seed, 0, 0, 0)  # the same masks each time; each step seeds its own
            compare.save(draw(model, pictures), run.log.folder / "reconstructions.png")
        run.end_epoch()

    if run.log:
        print(f"encoder: {run.log.save_weights(network.encoder.vit)}")


def read_pictures(config: PretrainConfig) -> Tensor:
    """The first images of the validation set, whole, if they are square: uint8 (n, 3, side, side)."""
    side, path = config.model.resolution, config.data.val_dataset
    whole = CropMixRGBImageDecoder((side, side), scale=1.0, number=1, ratio=(1, 1), interpolation="bicubic")
    # This decoder, and not the one for evaluation: its compilation is that of the training images.
    indices = list(range(min(PICTURES, check_dataset(path, ANY))))
    pipelines = {"image": [whole, ToTensor(), ToTorchImage()], "label": None}
    [(images,)] = Loader(path, len(indices), indices=indices, num_workers=1, pipelines=pipelines)
    return images.clone()


def draw(model: NormalizedModel, images: Tensor) -> Figure:
    """Images, what the encoder sees of them, and what the decoder makes of that, a row each."""
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


if __name__ == "__main__":
    run_program(lambda: pretrain(CONFIG))
