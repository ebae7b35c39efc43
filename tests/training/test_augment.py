"""Augmentation behind the decoder: each image on its own, reproducibly."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from ffcv_cropmix.training.augment import ERASED, OnePerImage, create_augmentation
from ffcv_cropmix.training.config import augmentation
from ffcv_cropmix.training.distributed import seed_step

pytest.importorskip("kornia")


def _images(count: int = 64) -> Tensor:
    """The same image `count` times, uint8 (count, 3, 8, 8)."""
    return torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8).repeat(count, 1, 1, 1)


def _kinds(images: Tensor) -> int:
    """How many different images there are."""
    return len({image.numpy().tobytes() for image in images})


def test_off_is_no_change() -> None:
    images = _images(2)
    state = torch.get_rng_state()
    assert create_augmentation()(images) is images
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("policy", "erasing"), [("trivial", 0), ("rand", 0), ("jitter", 0), (None, 1)])
def test_each_image_on_its_own_and_reproducibly(policy, erasing: float) -> None:
    augment = create_augmentation(policy, random_erasing=erasing)

    def augmented(*place: int) -> Tensor:
        seed_step(*place)
        return augment(images)

    images = _images()
    before = images.clone()
    first = augmented(3, 1, 5, 0)
    assert torch.equal(images, before)
    assert (first.shape, first.dtype) == (images.shape, torch.float32)
    assert first.min() >= 0 and first.max() <= 255
    assert _kinds(first) > 16  # TrivialAugment leaves some alone
    assert torch.equal(first, augmented(3, 1, 5, 0))
    for place in ((4, 1, 5, 0), (3, 2, 5, 0), (3, 1, 6, 0), (3, 1, 5, 1)):
        assert not torch.equal(first, augmented(*place))


class Add(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, images: Tensor) -> Tensor:
        return images + self.number


@pytest.mark.parametrize("times", [1, 2])
def test_one_operation_of_several_per_image(times: int) -> None:
    images = torch.arange(600.0).view(600, 1, 1, 1).expand(600, 3, 2, 2)
    torch.manual_seed(0)
    added = OnePerImage([Add(1000), Add(2000), Add(4000)], times)(images) - images
    assert torch.equal(added, added[:, :1, :1, :1].expand_as(added))
    values, counts = added[:, 0, 0, 0].unique(return_counts=True)
    expected = {
        1: {1000: 200, 2000: 200, 4000: 200},
        2: {2000: 67, 3000: 133, 4000: 67, 5000: 133, 6000: 133, 8000: 67},
    }[times]
    assert values.tolist() == list(expected)
    assert all(abs(count - near) < 50 for count, near in zip(counts.tolist(), expected.values()))


def test_random_erasing_erases_that_share_of_images() -> None:
    torch.manual_seed(0)
    images = _images(2000)
    erased = (create_augmentation(random_erasing=0.25)(images) - 255 * ERASED).abs().amax(1) < 1e-3
    share = erased.float().mean((1, 2))
    assert 0.22 < (share > 0).float().mean() < 0.28
    assert share.max() < 0.5


def test_a_runs_label_names_it() -> None:
    training = {"augment": "trivial", "random_erasing": 0.25, "mixup": 0.2}
    label = augmentation({"cropmix": {"enabled": 0}, "training": training})
    assert label == "RandomResizedCrop, TrivialAugment, random erasing 0.25 and mixup between images"


def test_without_kornia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    create_augmentation()
    with pytest.raises(ValueError, match=r"training.augment and training.random_erasing need kornia .*pip install"):
        create_augmentation("trivial")
