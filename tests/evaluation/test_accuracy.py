"""Accuracy, loss and flip averaging against values worked out from the outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ffcv_cropmix.evaluation.accuracy import evaluate


class _Pixels(nn.Module):
    """Outputs are the first row of the image's first channel: what an image says is easy to write down."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return images[:, 0, 0, :] * self.gain


def _batches(outputs: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    images = outputs[:, None, None, :].expand(-1, 3, 2, -1)
    return list(zip(images.split(size), labels.split(size), strict=True))


@pytest.fixture
def outputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(37, 8, generator=generator) * 3, torch.randint(0, 8, (37,), generator=generator)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("flip_tta", [False, True])
@pytest.mark.parametrize("batch_size", [37, 10])  # the second leaves a smaller last batch
def test_against_numpy(outputs: tuple[Tensor, Tensor], flip_tta: bool, batch_size: int) -> None:
    logits, labels = outputs[0].double().numpy(), outputs[1].numpy()
    if flip_tta:
        logits = (logits + logits[:, ::-1]) / 2
    rank = (logits > logits[np.arange(37), labels][:, None]).sum(1)  # outputs larger than the label's
    probabilities = _softmax(logits)

    result = evaluate(_Pixels(), _batches(*outputs, batch_size), num_classes=8, flip_tta=flip_tta)
    # Averaging with the mirror image makes these outputs symmetric: of two equal ones, the first counts.
    predicted = logits.argmax(1)
    assert result.top_1 == pytest.approx(100 * (predicted == labels).mean(), abs=1e-3)
    assert result.loss == pytest.approx(-np.log(probabilities[np.arange(37), labels]).mean(), rel=1e-5)
    np.testing.assert_allclose(result.confidence, probabilities.max(1), rtol=1e-5)
    np.testing.assert_array_equal(result.correct, predicted == labels)
    if not flip_tta:
        assert result.top_5 == pytest.approx(100 * (rank < 5).mean(), abs=1e-3)
        assert 0 < result.top_1 < result.top_5 < 100


def test_flip_averages_before_the_softmax() -> None:
    batches = _batches(torch.tensor([[4.0, 0.0, 1.0]]), torch.tensor([0]), 1)
    result = evaluate(_Pixels(), batches, num_classes=3, flip_tta=True)
    expected = _softmax(np.array([[2.5, 0.0, 2.5]]))
    assert result.confidence == pytest.approx(expected.max(), rel=1e-6)
    assert result.loss == pytest.approx(-np.log(expected[0, 0]), rel=1e-6)


def test_model_is_evaluated_in_evaluation_mode_and_without_gradients() -> None:
    model = nn.Sequential(_Pixels(), nn.Dropout(1.0))
    result = evaluate(model, _batches(torch.eye(4), torch.arange(4), 2), num_classes=4, flip_tta=False)
    assert result.top_1 == 100
    assert not model.training


def test_fewer_than_five_classes() -> None:
    result = evaluate(_Pixels(), _batches(torch.eye(3), torch.tensor([1, 2, 0]), 3), num_classes=3, flip_tta=False)
    assert (result.top_1, result.top_5) == (0, 100)


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no batches"):
        evaluate(_Pixels(), [], num_classes=3)
