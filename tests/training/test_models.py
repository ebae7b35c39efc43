"""BlurPool, normalisation, parameter groups, architectures."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from io import BytesIO
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ffcv_cropmix.errors import DataError
from ffcv_cropmix.training.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BlurPoolConv2d,
    NormalizedModel,
    apply_blurpool,
    average_weights,
    check_arch,
    check_batch,
    check_resolutions,
    create_network,
    create_sgd,
    describe,
    description,
    mixed_precision,
    normalization,
    parameter_groups,
)


def _blur(image: np.ndarray) -> np.ndarray:
    """The 3 x 3 binomial filter of one (H, W) channel, zero-padded, as sums over neighbours."""
    height, width = image.shape
    padded = np.zeros((height + 2, width + 2))
    padded[1:-1, 1:-1] = image
    weights = {-1: 0.25, 0: 0.5, 1: 0.25}
    blurred = np.zeros_like(image)
    for down, vertical in weights.items():
        for right, horizontal in weights.items():
            shifted = padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
            blurred += vertical * horizontal * shifted
    return blurred


@pytest.mark.parametrize(("kernel", "padding", "groups"), [(3, 1, 1), (1, 0, 1), (3, 1, 4)])
def test_blurpool_convolves_the_blurred_input(kernel: int, padding: int, groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 8, kernel, stride=2, padding=padding, groups=groups)
    images = torch.randn(2, 16, 9, 7)
    expected_input = np.array([[_blur(channel) for channel in image] for image in images.double().numpy()])
    expected = conv.double()(torch.from_numpy(expected_input))
    output = BlurPoolConv2d.replacing(conv.float())(images)
    assert output.shape == (2, 8, 5, 4)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)


def test_blurpool_replaces_strided_convolutions_of_16_channels_or_more_only() -> None:
    network = create_network("resnet50", 10, blurpool=True)
    blurred = [name for name, module in network.named_modules() if isinstance(module, BlurPoolConv2d)]
    expected = [f"layer{n}.0.{conv}" for n in (2, 3, 4) for conv in ("conv2", "downsample.0")]
    assert blurred == expected
    small = nn.Sequential(nn.Conv2d(15, 4, 3, stride=2), nn.Conv2d(16, 4, 3, stride=(1, 2)), nn.Conv2d(16, 4, 3))
    apply_blurpool(small)
    assert [isinstance(module, BlurPoolConv2d) for module in small] == [False, True, False]


def test_weights_with_blurpool_are_refused_by_networks_without() -> None:
    network = create_network("resnet18", 10, blurpool=True)
    state, plain = network.state_dict(), torchvision.models.resnet18(num_classes=10)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layer2\.0\.conv1\.blur"):
        plain.load_state_dict(state)
    other = create_network("resnet18", 10, blurpool=True)
    other.load_state_dict(state)
    assert torch.equal(other.fc.weight, network.fc.weight)
    before = {key: value for key, value in state.items() if not key.endswith(".blur")}  # as 0.1.0 wrote them
    other.load_state_dict(before)
    plain.load_state_dict(before)


def _saved(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict after a way through a file."""
    file = BytesIO()
    torch.save({"ema": average_weights(network, 0.9).state_dict(), "model": network.state_dict()}, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    assert description(read["ema"]) == description(read["model"])
    return read["model"]


def test_a_state_dict_describes_its_network() -> None:
    network = create_network("resnet18", 10, cifar_stem=True)
    describe(network, classes=["a", "b"])
    state = _saved(network)
    assert description(state) == {
        **{"arch": "resnet18", "num_classes": 10, "blurpool": False, "cifar_stem": True, "classes": ["a", "b"]},
        **{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }
    assert description(torchvision.models.resnet18().state_dict()) == description({}) == {}
    plain = torchvision.models.resnet18(num_classes=10)
    plain.conv1 = nn.Conv2d(3, 64, 3, bias=False)
    plain.load_state_dict(state)  # other modules ignore it
    for facts in ({"classes": ["b", "a"]}, {"mean": [0.5] * 3}, {"arch": "resnet34"}):
        describe(network, **facts)
        with pytest.raises(DataError, match=rf"the weights are of a network with {next(iter(facts))} \S+.*, not "):
            network.load_state_dict(state)
        describe(network, **description(state))


def test_pretrained_networks_get_the_images_that_torchvision_gives_them(monkeypatch) -> None:
    arch = "googlenet"
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(arch, init_weights=False, transform_input=True)
    for module in theirs.eval().modules():  # as far from normalised by themselves as they are after a training
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = None
    theirs(torch.rand(2, 3, 96, 96))
    weights = torchvision.models.get_model_weights(arch).DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: theirs.state_dict())
    ours = create_network(arch, 1000, pretrained=True)
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    normalized = torchvision.transforms.functional.normalize(images / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    with torch.no_grad():
        expected = theirs.eval()(normalized)
        torch.testing.assert_close(NormalizedModel(ours).eval()(images), expected, atol=1e-4, rtol=1e-4)
        other = create_network(arch, 1000)
        describe(other, **description(_saved(ours)))
        other.load_state_dict(_saved(ours))
        torch.testing.assert_close(NormalizedModel(other).eval()(images), expected, atol=1e-4, rtol=1e-4)
    for name, half in (("inception_v3", True), ("resnet18", False)):
        mean, std = normalization(nn.Identity(), name, pretrained=True)
        assert (mean == std == [0.5] * 3) == half


def test_timms_normalisation() -> None:
    timm = pytest.importorskip("timm")
    for name, mean in (("vit_tiny_patch16_224", [0.5] * 3), ("resnet18", list(IMAGENET_MEAN))):
        assert timm.get_pretrained_cfg(name).mean == tuple(mean)
        network = create_network(f"timm/{name}", 5)
        assert description(network.state_dict())["mean"] == mean
        model, std = NormalizedModel(network), torch.tensor(network.pretrained_cfg["std"])
        white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8) * model.scale + model.shift
        torch.testing.assert_close(white[0, :, 0, 0], (1 - torch.tensor(mean)) / std)


def test_blurpool_keeps_initial_weights_and_random_numbers() -> None:
    torch.manual_seed(3)
    plain = create_network("resnet18", 10)
    sampled = torch.rand(1)
    torch.manual_seed(3)
    blurred = create_network("resnet18", 10, blurpool=True)
    assert torch.equal(torch.rand(1), sampled)
    assert torch.equal(plain.layer2[0].conv1.weight, blurred.layer2[0].conv1.weight)


def test_normaliser_equals_torchvisions_and_is_not_saved() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8)
    model = NormalizedModel(nn.Identity())
    mean, std = torchvision.models.ResNet18_Weights.DEFAULT.transforms().mean, (0.229, 0.224, 0.225)
    expected = torchvision.transforms.functional.normalize(images / 255, list(mean), list(std))
    torch.testing.assert_close(model(images), expected, atol=1e-6, rtol=1e-5)
    assert model.state_dict() == {}
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert model(channels_last).is_contiguous(memory_format=torch.channels_last)


def test_no_weight_decay_on_norm_layers_and_biases() -> None:
    network = create_network("resnet50", 10)
    decayed, exempt = parameter_groups(network, 1e-4)
    assert decayed["weight_decay"] == 1e-4
    assert exempt["weight_decay"] == 0
    names = {parameter: name for name, parameter in network.named_parameters()}
    exempt_names = {names[parameter] for parameter in exempt["params"]}
    assert {"bn1.weight", "layer1.0.bn3.bias", "layer1.0.downsample.1.weight", "fc.bias"} <= exempt_names
    assert {names[parameter] for parameter in decayed["params"]} == {
        name for name, parameter in network.named_parameters() if parameter.ndim > 1
    }
    assert len(decayed["params"]) + len(exempt["params"]) == len(names)


def test_layer_norm_and_group_norm_are_norm_layers() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((2, 4)), nn.GroupNorm(2, 4), nn.BatchNorm1d(4))
    decayed, exempt = parameter_groups(network, 1.0)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(4, 4)]
    assert len(exempt["params"]) == 7


@pytest.mark.parametrize(
    "arch",
    [
        *("vit_b_16", "swin_v2_t", "convnext_tiny", "timm/vit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224"),
        *("timm/convnextv2_atto", "timm/beit_base_patch16_224", "timm/cait_xxs24_224", "timm/xcit_nano_12_p16_224"),
        *("timm/poolformer_s12", "timm/resnet18", "timm/resmlp_12_224"),
    ],
)
def test_weight_decay_is_as_timm_has_it(arch: str) -> None:
    optim = pytest.importorskip("timm.optim")
    with torch.device("meta"):
        network = create_network(arch, 10)
    names = {parameter: name for name, parameter in network.named_parameters()}
    skipped = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    theirs = optim.param_groups_weight_decay(network, 1e-4, no_weight_decay_list=skipped)
    for model in (network, NormalizedModel(network)):
        for group in parameter_groups(model, 1e-4):
            [expected] = [other["params"] for other in theirs if other["weight_decay"] == group["weight_decay"]]
            assert {names[parameter] for parameter in group["params"]} == {names[parameter] for parameter in expected}


def test_tokens_and_patterns_that_the_network_names_have_no_weight_decay() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.scale = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(4))
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def no_weight_decay(self) -> set[str]:
            return {"token", "blocks.1.*"}

    network = Network()
    decayed, exempt = parameter_groups(network, 1.0)
    assert decayed["params"] == [network.blocks[0].weight]
    assert len(exempt["params"]) == 5


@pytest.mark.parametrize("lr", [0.1, 0.001])
def test_a_first_step_that_overflows_is_only_skipped(lr: float) -> None:
    junk = [torch.full((64,), 1e30) for _ in range(2000)]  # what uninitialised memory holds
    del junk
    losses = {}
    for precision in ("fp32", "fp16"):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
        optimizer = create_sgd(parameter_groups(network, 1e-4), lr, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", 2.0**30, enabled=precision == "fp16")  # too high: steps are skipped
        losses[precision], scale = [], scaler.get_scale()
        while len(losses[precision]) < 20:
            with mixed_precision(torch.device("cpu"), precision):
                inputs = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
                loss = nn.functional.cross_entropy(network(inputs), torch.arange(32) % 3)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if scaler.get_scale() >= scale:  # not skipped
                losses[precision].append(loss.item())
            scale = scaler.get_scale()
    assert scale < 2.0**30
    assert losses["fp16"] == pytest.approx(losses["fp32"], abs=5e-3)


def test_bn_wd_decays_everything() -> None:
    network = create_network("resnet18", 10)
    decayed, exempt = parameter_groups(network, 1e-4, bn_wd=True)
    assert len(decayed["params"]) == len(list(network.parameters()))
    assert exempt["params"] == []
    torch.optim.SGD([decayed, exempt], lr=0.1)  # takes the empty group


def test_unknown_architecture_names_close_ones() -> None:
    with pytest.raises(ValueError, match=r"model.arch: .*'resnet51'; close to it: .*resnet50") as caught:
        create_network("resnet51", 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_off(arch: str) -> None:
    network = create_network(arch, 5).train()
    assert network(torch.zeros(2, 3, 96, 96)).shape == (2, 5)


def test_pretrained_weights_keep_all_but_the_head(monkeypatch, capsys) -> None:
    weights = torchvision.models.get_model("resnet18").state_dict()
    default = torchvision.models.get_model_weights("resnet18").DEFAULT
    monkeypatch.setattr(type(default), "get_state_dict", lambda *_, **__: weights)
    network = create_network("resnet18", 10, pretrained=True)
    assert network.fc.out_features == 10
    assert torch.equal(network.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])
    assert capsys.readouterr().out == "pretrained weights loaded; afresh: fc.bias, fc.weight\n"
    assert torch.equal(create_network("resnet18", 1000, pretrained=True).fc.weight, weights["fc.weight"])
    assert capsys.readouterr().out == "pretrained weights loaded\n"


@pytest.mark.parametrize(
    ("arch", "images", "sides", "refused"),
    [
        ("resnet18", 1, [64, 32], 32),
        ("resnet18", 1, [64], None),
        ("resnet18", 2, [32], None),
        ("vit_b_32", 1, [224], None),
        ("mobilenet_v3_small", 1, [32], 32),
        ("timm/resnet18", 1, [32], 32),
    ],
)
def test_one_image_is_too_few_for_batch_normalisation(
    arch: str, images: int, sides: list[int], refused: int | None
) -> None:
    with torch.device("meta"):
        network = create_network(arch, 3)
    message = f"cannot be trained on a single image of {refused} x {refused} px: use a larger training.batch_size"
    with pytest.raises(ValueError, match=message) if refused else nullcontext():
        check_batch(network, images, sides)


@pytest.mark.parametrize(
    "failure", [URLError("Temporary failure in name resolution"), RuntimeError("invalid hash value"), KeyError()]
)
@pytest.mark.parametrize("arch", ["resnet18", "timm/resnet18"])
def test_weights_that_cannot_be_had_are_one_line(failure: Exception, arch: str, monkeypatch) -> None:
    pytest.importorskip("timm")

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(DataError, match=f"model.pretrained=1: {arch} has no weights, or .*without a network") as caught:
        create_network(arch, 10, pretrained=True)
    assert "\n" not in str(caught.value)


def test_a_resolution_that_the_model_cannot_take_is_named() -> None:
    model = NormalizedModel(create_network("vit_b_32", 10))
    check_resolutions(model, [224])
    with pytest.raises(ValueError, match="does not take images of 192 x 192 px"):
        check_resolutions(model, [224, 192])


def test_a_cifar_stem_keeps_the_side() -> None:
    network = create_network("resnet18", 10, cifar_stem=True)
    assert network.layer1(network.maxpool(network.conv1(torch.zeros(1, 3, 32, 32)))).shape == (1, 64, 32, 32)
    assert float(network.conv1.weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)
    with pytest.raises(ValueError, match="cifar_stem=1 is for torchvision's ResNets, not for AlexNet"):
        create_network("alexnet", 10, cifar_stem=True)


def test_timm_is_named_where_it_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm/resnet18 needs timm, which is not installed: pip install timm"):
        check_arch("timm/resnet18")


def test_timms_architectures() -> None:
    pytest.importorskip("timm")
    assert create_network("timm/resnet18", 7).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    tagged = ("timm/resnet18.a1_in1k", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    for arch in tagged:
        check_arch(arch)
    assert create_network(tagged[0], 7).fc.out_features == 7
    for wrong, close in (("timm/resnet81", "timm/resnet"), ("timm/resnet18.a1_in2k", "timm/resnet18.a1_in1k")):
        with pytest.raises(ValueError, match=f"timm has no architecture '{wrong}'; close to it: .*{close}"):
            check_arch(wrong)


class _OneDevice(TorchDispatchMode):
    """Fails if an operation has tensors of two devices: on a GPU, that would make the host wait."""

    def __torch_dispatch__(self, function, kinds, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        devices = {leaf.device for leaf in tree_leaves((arguments, result)) if isinstance(leaf, torch.Tensor)}
        assert len(devices) < 2, f"{function} on {devices}"
        return result


def test_the_average_of_weights_does_not_wait_for_its_device() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to("meta")  # stands for a GPU
    average = average_weights(network, 0.9)
    with _OneDevice():
        for _ in range(3):
            average.update_parameters(network)


def test_the_average_of_weights_is_torchs() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    expected = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average = average_weights(network, 0.9)
    for step in range(3):
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.data += step + 1
        expected.update_parameters(network)
        average.update_parameters(network)
    assert all(torch.equal(average.state_dict()[name], value) for name, value in expected.state_dict().items())
