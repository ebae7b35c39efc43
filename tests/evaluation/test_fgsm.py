"""FGSM against autograd written out, and against the gradient of a linear model worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ffcv_cropmix.evaluation.fgsm import fgsm


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 8, 8, generator=generator)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0, 1
    return images, torch.randint(0, 4, (5,), generator=generator)


def test_against_autograd(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = batch
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).eval()
    leaf = images.clone().requires_grad_()
    nn.CrossEntropyLoss()(model(leaf), labels).backward()
    assert leaf.grad is not None
    expected = (images + 0.03 * leaf.grad.sign()).clamp(0, 1)
    model.zero_grad()
    with torch.no_grad():  # as `evaluate` calls it
        attacked = fgsm(model, images, labels, eps=0.03)
    torch.testing.assert_close(attacked, expected, rtol=0, atol=0)
    assert not attacked.requires_grad
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (attacked.min(), attacked.max()) >= (0, 0.9)
    assert attacked.max() <= 1


def test_against_the_gradient_of_a_linear_model(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = batch
    torch.manual_seed(2)
    linear = nn.Linear(192, 4)
    weight, bias = linear.weight.detach().double().numpy(), linear.bias.detach().double().numpy()
    pixels = images.reshape(5, -1).double().numpy()
    powers = np.exp(pixels @ weight.T + bias)
    gradient = (powers / powers.sum(1, keepdims=True) - np.eye(4)[labels.numpy()]) @ weight
    expected = np.clip(pixels + 0.007 * np.sign(gradient), 0, 1)
    attacked = fgsm(nn.Sequential(nn.Flatten(), linear), images, labels)
    np.testing.assert_allclose(attacked.reshape(5, -1).numpy(), expected, atol=1e-6)
