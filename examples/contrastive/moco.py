"""The training loop of pretrain.py: MoCo v2, with CropMix for the query."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.models.utils import (
    batch_shuffle_distributed,
    batch_unshuffle_distributed,
    deactivate_requires_grad,
    update_momentum,
)
from lightly.utils.benchmarking.knn import knn_predict
from torch import Tensor, nn
from torchvision.models import ResNet

from ffcv_cropmix import CenterCropRGBImageDecoder, Loader, MultiViewRGBImageDecoder, ToTorchViews, ViewSpec
from ffcv_cropmix.data.datasets import check_datasets
from ffcv_cropmix.errors import usage_error, wrong_options
from ffcv_cropmix.training import compare
from ffcv_cropmix.training.config import DataConfig, ModelConfig
from ffcv_cropmix.training.distributed import Processes, join
from ffcv_cropmix.training.loaders import pipelines, training_loader
from ffcv_cropmix.training.models import (
    NormalizedModel,
    check_batch,
    choose_precision,
    create_network,
    create_sgd,
    describe,
    mixed_precision,
)
from ffcv_cropmix.training.run import Run
from ffcv_cropmix.training.schedules import cosine_lr

from .config import PretrainConfig
from .views import Augment, paste_boxes


class Queue:
    """The queue of keys, as a state to save: lightly's loss does not save it."""

    def __init__(self, loss: NTXentLoss) -> None:
        self._buffers: dict[str, Tensor] = dict(loss.memory_bank.named_buffers())

    def state_dict(self) -> dict[str, Tensor]:
        return self._buffers

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, buffer in self._buffers.items():
            buffer.copy_(state[name])


class Encoder(nn.Module):
    """A ResNet with MoCo's projection head and batch normalisation: normalised images to float (N, 128)."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.inplanes
        self.head = MoCoProjectionHead(width, width, 128, batch_norm=True)

    def forward(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.head(self.backbone(images))
        return embedded


def create_backbone(model: ModelConfig) -> ResNet:
    """Create a torchvision ResNet without its last layer: images to features."""
    try:
        network = create_network(model.arch, 2, cifar_stem=bool(model.cifar_stem))
    except ValueError as error:
        usage_error(str(error))
    if not isinstance(network, ResNet):
        usage_error(f"model.arch={model.arch}: this example supports torchvision's ResNets only")
    network.fc = nn.Identity()
    describe(network, num_classes=0)  # no head
    return network


def pretrain(config: PretrainConfig) -> None:
    """Pre-train; write log, checkpoint and the backbone's weights to `config.logging.folder`."""
    training = config.training
    processes = join(config.data.gpu, config.dist if training.distributed else None)
    device = processes.device
    precision = choose_precision(training.precision, device)
    torch.manual_seed(training.seed)
    data = check_datasets(config.data.train_dataset, config.data.val_dataset)
    classes, images = data.num_classes, data.train_images
    whole = training.global_batch_size
    batch_size, _ = processes.split_batch(whole, whole, images)

    backbone = create_backbone(config.model)
    query = NormalizedModel(Encoder(backbone)).to(device).to(memory_format=torch.channels_last)
    with wrong_options():
        check_batch(query.network, batch_size, [training.resolution])
    key = copy.deepcopy(query)
    deactivate_requires_grad(key)
    trained = processes.wrap(query)
    loss_of = NTXentLoss(training.temperature, (training.queue, 128), gather_distributed=processes.world_size > 1).to(
        device
    )
    optimizer = create_sgd(
        query.parameters(), training.lr, momentum=training.momentum, weight_decay=training.weight_decay
    )
    augment = Augment(training.resolution).to(device)
    run = Run(
        config,
        create_train_loader(config, batch_size, processes),
        {"query": query, "key": key, "queue": Queue(loss_of), "optimizer": optimizer},
        processes=processes,
        label=config.label,
    )
    known = np.random.default_rng(training.seed).permutation(images)[: training.known]
    bank = create_eval_loader(config.data, config.data.train_dataset, training.resolution, processes, np.sort(known))
    validation = create_eval_loader(
        config.data, config.data.val_dataset, training.resolution, processes, numbers=data.val_numbers
    )

    for _ in run.epochs():
        query.train()
        key.train()
        for _ in run.steps():
            run.set_lr(optimizer, cosine_lr(run.position, lr=training.lr, epochs=training.epochs))
            *crops, other = (augment(view) for view in run.next_batch()[0])
            image = paste_boxes(*crops) if config.cropmix.enabled else crops[0]
            with mixed_precision(device, precision):
                with torch.no_grad():
                    keys = encode_keys(key, other, processes)
                loss = loss_of(trained(255 * image), keys)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            update_momentum(query, key, training.key_momentum)
            run.add_loss(loss)
        processes.share_buffers(query)
        with mixed_precision(device, precision):
            accuracy = knn_accuracy(
                NormalizedModel(backbone).to(device),
                processes.show(bank, "features"),
                processes.show(validation, "neighbours"),
                classes,
                training.neighbors,
            )
        run.end_epoch(top_1=accuracy)

    if run.log:
        weights = run.log.save_weights(backbone)
        compare.save_curves(run.log.folder)
        last = run.log.records[-1]
        print(f"k-NN top-1 {last['top_1']:.2f} %, training loss {last['train_loss']:.3f}; backbone: {weights}")


def encode_keys(key: nn.Module, images: Tensor, processes: Processes) -> Tensor:
    """Encode keys. Several processes shuffle the images first, so that batch normalisation does not give pairs away."""
    keys: Tensor
    if processes.world_size == 1:
        keys = key(255 * images)
        return keys
    images, order = batch_shuffle_distributed(images)
    keys = batch_unshuffle_distributed(key(255 * images), order)
    return keys


@torch.no_grad()
def knn_accuracy(
    backbone: nn.Module, bank: Iterable[Any], validation: Iterable[Any], classes: int, neighbors: int
) -> float:
    """Return the top-1 accuracy, percent, of a vote of the nearest training images."""
    backbone.eval()
    features, labels = [], []
    for images, of in bank:
        features.append(nn.functional.normalize(backbone(images).float()))
        labels.append(of.clone())
    known, classes_of = torch.cat(features).T.contiguous(), torch.cat(labels)
    hits = total = 0
    for images, of in validation:
        asked = nn.functional.normalize(backbone(images).float())
        voted = knn_predict(asked, known, classes_of, classes, min(neighbors, len(classes_of)))
        hits += int((voted[:, 0] == of).sum())
        total += len(of)
    return 100 * hits / total


def create_train_loader(config: PretrainConfig, batch_size: int, processes: Processes) -> Loader:
    """Create the loader of views, uint8 (N, 3, H, W) each: one or two for the query, and one for the key."""
    side = (config.training.resolution,) * 2
    scales = [(0.2, 0.6), (0.6, 1.0)] if config.cropmix.enabled else [(0.2, 1.0)]
    views = [ViewSpec(side, scale, flip_probability=0.5) for scale in [*scales, (0.2, 1.0)]]
    decoder = MultiViewRGBImageDecoder(views, seed=config.training.seed)
    fields = {"image": [decoder, ToTorchViews(processes.device)], "label": None}
    seed = config.training.seed
    return training_loader(config.data, fields, batch_size=batch_size, seed=seed, processes=processes)


def create_eval_loader(
    data: DataConfig,
    path: str,
    resolution: int,
    processes: Processes,
    indices: np.ndarray | None = None,
    numbers: Sequence[int] | None = None,
) -> Loader:
    """Create a loader of centre crops, uint8 (N, 3, resolution, resolution), and labels; the same in each process."""
    return Loader(
        path,
        256,
        processes.workers(data.num_workers),
        os_cache=bool(data.in_memory),
        indices=indices,  # type: ignore[arg-type]
        drop_last=False,
        pipelines=pipelines(CenterCropRGBImageDecoder((resolution,) * 2), processes.device, numbers),
    )
