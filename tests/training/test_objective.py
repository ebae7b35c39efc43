"""Losses and mixing between images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffcv_cropmix.training.config import TrainingConfig
from ffcv_cropmix.training.objective import BinaryCrossEntropy, create_loss, create_mixing


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_by_hand(smoothing: float) -> None:
    random = np.random.default_rng(0)
    outputs, labels = random.normal(size=(6, 5)), random.integers(0, 5, 6)
    targets = np.full((6, 5), smoothing / 5)
    targets[range(6), labels] += 1 - smoothing
    probability = 1 / (1 + np.exp(-outputs))
    expected = -(targets * np.log(probability) + (1 - targets) * np.log(1 - probability)).sum(1).mean()
    loss = BinaryCrossEntropy(smoothing)
    assert float(loss(torch.tensor(outputs), torch.tensor(labels))) == pytest.approx(expected)
    shares = F.one_hot(torch.tensor(labels), 5).double()
    assert float(loss(torch.tensor(outputs), shares)) == pytest.approx(expected)


def test_the_loss_that_was_asked_for() -> None:
    outputs, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1])
    smoothed = F.cross_entropy(outputs, labels, label_smoothing=0.3)
    assert torch.equal(create_loss(TrainingConfig(label_smoothing=0.3))(outputs, labels), smoothed)
    assert create_loss(TrainingConfig(loss="bce", label_smoothing=0.3)).label_smoothing == 0.3


def test_nothing_is_mixed_unless_asked_for() -> None:
    images, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    assert create_mixing(2)(images, labels) == (images, labels)


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_shares_of_labels_are_those_of_the_images(options: dict[str, float]) -> None:
    levels = torch.tensor([10, 60, 110, 160])
    images = levels.to(torch.uint8).view(4, 1, 1, 1).expand(4, 3, 32, 32).contiguous()
    mix = create_mixing(4, **options)
    torch.manual_seed(0)
    kinds = set()
    for _ in range(20):
        mixed, shares = mix(images, torch.arange(4))
        assert shares.shape == (4, 4)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ levels.float(), rtol=0, atol=0.01)
        if len(shares[0].nonzero()) == 2:
            kinds.add("cutmix" if len(mixed[0].unique()) == 2 else "mixup")
    assert kinds == options.keys()
