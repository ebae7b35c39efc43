"""Networks of torchvision and timm, BlurPool, normalisation in the model, and optimizers."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,  # batch and instance normalisation
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
_TIMM = "timm/"
_HALF = (
    "googlenet",
    "inception_v3",
)  # their weights take images normalised by 0.5; they have auxiliary heads
_DESCRIPTION = "ffcv_cropmix"  # key in the metadata of state dicts
_BLURPOOL_MIN_CHANNELS = 16  # excludes the stem, whose input is the image


class BlurPoolConv2d(nn.Conv2d):
    """A strided convolution that blurs its input first, to reduce aliasing (Zhang 2019, arXiv 1904.11486).

    The filter is the 3 x 3 binomial, applied to each channel with zero padding. The state dict has the keys of the
    convolution that it replaces, plus `blur`, so that a network without the blur cannot load it by mistake.

    Example:
        >>> blurred = BlurPoolConv2d.replacing(nn.Conv2d(16, 8, 3, stride=2, padding=1))
        >>> blurred(torch.zeros(1, 16, 9, 9)).shape
        torch.Size([1, 8, 5, 5])
    """

    _version = 2  # of the state dict: 1 had no `blur`
    blur: Tensor

    @classmethod
    def replacing(cls, conv: nn.Conv2d) -> BlurPoolConv2d:
        """Create one from a convolution, with the same parameters."""
        blurred = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",  # samples no random numbers
        )
        blurred.weight, blurred.bias = conv.weight, conv.bias
        binomial = torch.tensor([1.0, 2.0, 1.0], device=conv.weight.device)
        kernel = torch.outer(binomial, binomial) / 16
        blurred.register_buffer("blur", kernel.repeat(conv.in_channels, 1, 1, 1))
        return blurred

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *others: Any
    ) -> None:
        if local_metadata.get("version", 1) < 2:
            state_dict.setdefault(f"{prefix}blur", self.blur)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.conv2d(input, self.blur, padding=1, groups=self.in_channels))


def apply_blurpool(module: nn.Module) -> None:
    """Blur the input of every strided convolution with at least 16 input channels, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= _BLURPOOL_MIN_CHANNELS:
            setattr(module, name, BlurPoolConv2d.replacing(child))
        else:
            apply_blurpool(child)


def describe(network: nn.Module, **facts: Any) -> None:
    """Add facts to a network's state dict that its tensors do not contain, such as the normalisation of images.

    The description is stored in the metadata of the state dict, `state_dict._metadata`, which torch.save keeps.
    `description` reads it. The network raises a DataError for a state dict that describes another network; other
    modules ignore the description.

    Args:
        network: Any module. Copies of it keep the description.
        facts: Facts to add to the description: numbers, strings, None, and lists of them.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> describe(network, classes=["cat", "dog", "newt"])
        >>> description(network.state_dict())
        {'classes': ['cat', 'dog', 'newt']}
    """
    if not hasattr(network, "description"):
        network.description = {}  # type: ignore[assignment]
        network.register_state_dict_post_hook(_add_description)
        network.register_load_state_dict_pre_hook(_compare_descriptions)
    network.description |= facts  # type: ignore[operator]


def _add_description(module: Any, state: Any, prefix: str, metadata: dict[str, Any]) -> None:
    metadata[_DESCRIPTION] = dict(module.description)


def _compare_descriptions(module: Any, state: Any, prefix: str, metadata: dict[str, Any], *others: Any) -> None:
    theirs = metadata.get(_DESCRIPTION, {})
    for name in ("arch", "blurpool", "mean", "std", "classes"):
        ours = module.description.get(name)
        if None not in (ours, theirs.get(name)) and theirs[name] != ours:
            raise DataError(f"the weights are of a network with {name} {theirs[name]}, not {ours}")


def description(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description in a state dict (see `describe`), or an empty dictionary."""
    for metadata in getattr(state, "_metadata", {}).values():
        if _DESCRIPTION in metadata:
            return dict(metadata[_DESCRIPTION])
    return {}


class NormalizedModel(nn.Module):
    """A network that normalises its images: it takes uint8 (N, 3, H, W), as the loader delivers them.

    Mean and standard deviation are those of the network's description (see `describe`), or else ImageNet's. To save
    the model, save `network.state_dict()`: this wrapper adds nothing to it.

    Args:
        network: Takes normalised float images (N, 3, H, W).

    Example:
        >>> model = NormalizedModel(nn.Identity())
        >>> model(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))[0, :, 0, 0]  # -mean / std
        tensor([-2.1179, -2.0357, -1.8044])
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        facts: dict[str, Any] = getattr(network, "description", {})
        mean = torch.tensor(facts.get("mean", IMAGENET_MEAN)).view(1, 3, 1, 1)
        std = torch.tensor(facts.get("std", IMAGENET_STD)).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images * self.scale + self.shift)


def check_arch(arch: str) -> None:
    """Check that a classification architecture exists.

    Raises:
        ValueError: It does not exist. The message lists similar names.

    Example:
        >>> check_arch("resnet50")
    """
    library, known = "torchvision", torchvision.models.list_models(module=torchvision.models)
    if arch.startswith(_TIMM):
        try:
            import timm
        except ImportError:
            raise ValueError(f"model.arch: {arch} needs timm, which is not installed: pip install timm") from None
        names = {*timm.list_models(), *timm.list_pretrained()}  # list_pretrained's have tags: resnet18.a1_in1k
        library, known = "timm", sorted(_TIMM + name for name in names)
    if arch not in known:
        close = difflib.get_close_matches(arch, known, n=3)
        hint = f"close to it: {', '.join(close)}" if close else f"known are {', '.join(known)}"
        raise ValueError(f"model.arch: {library} has no architecture {arch!r}; {hint}")


def takes_half(arch: str | None) -> bool:
    """Return whether torchvision's weights of an architecture take images normalised by 0.5, unlike other weights."""
    return arch in _HALF


def with_library(arch: str, *, timm: bool) -> str:
    """Return a checkpoint's architecture as timm/NAME if it is timm's, or unknown to torchvision."""
    if not timm and arch in torchvision.models.list_models(module=torchvision.models):
        return arch
    try:
        check_arch(_TIMM + arch)
    except ValueError:
        return arch
    return _TIMM + arch


def apply_cifar_stem(network: nn.Module) -> None:
    """Replace the stem of a torchvision ResNet by one for images of 32 px, in place: a 3 x 3 convolution, no pooling.

    Source: He et al. 2015, arXiv 1512.03385, section 4.2.

    Raises:
        ValueError: The network is not a ResNet of torchvision.
    """
    if not isinstance(network, torchvision.models.ResNet):
        raise ValueError(f"model.cifar_stem=1 is for torchvision's ResNets, not for {type(network).__name__}")
    network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


def create_network(
    arch: str, num_classes: int, *, pretrained: bool = False, blurpool: bool = False, cifar_stem: bool = False
) -> nn.Module:
    """Create a classifier for normalised float images (N, 3, H, W), with a description of itself.

    The description (see `describe`) contains arch, num_classes, blurpool, cifar_stem, and mean and std of the
    normalisation: ImageNet's, timm's for its architectures, and 0.5 for torchvision's weights of googlenet and
    inception_v3 (whose `transform_input` converts from ImageNet's).

    Args:
        arch: Name of a torchvision classification architecture, such as resnet50, or timm/NAME.
        num_classes: Number of outputs.
        pretrained: Start from the default pretrained weights. Parameters whose shape does not fit `num_classes` are
            reinitialised, and listed on stdout.
        blurpool: See `apply_blurpool`.
        cifar_stem: See `apply_cifar_stem`.

    Raises:
        ValueError: The architecture does not exist, or the stem does not fit it.
        DataError: There are no pretrained weights, or they cannot be downloaded.

    Example:
        >>> network = create_network("squeezenet1_1", 10)
        >>> network.eval()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    check_arch(arch)
    create = _create_timm if arch.startswith(_TIMM) else _create_torchvision
    try:
        network = create(arch, num_classes, pretrained)
    except Exception as error:  # the libraries that download raise errors of many kinds
        if not pretrained:
            raise
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"model.pretrained=1: {arch} has no weights, or they cannot be loaded: {first}; {_hint(arch)}"
        ) from error
    if cifar_stem:
        apply_cifar_stem(network)
    if blurpool:
        apply_blurpool(network)
    mean, std = normalization(network, arch, pretrained=pretrained)
    facts = {"arch": arch, "num_classes": num_classes, "blurpool": blurpool, "cifar_stem": cifar_stem}
    describe(network, **facts, mean=mean, std=std)
    return network


def normalization(network: nn.Module, arch: str, *, pretrained: bool) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation that normalise the images, in units of [0, 1]."""
    if arch in _HALF and pretrained:
        return [0.5] * 3, [0.5] * 3
    published: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}  # timm's
    return list(published.get("mean") or IMAGENET_MEAN), list(published.get("std") or IMAGENET_STD)


def _hint(arch: str) -> str:
    """Explain how to get pretrained weights to a machine without network access."""
    if arch.startswith(_TIMM):
        return "without a network, copy the cache of a machine that has them (HF_HOME)"
    url = torchvision.models.get_model_weights(arch).DEFAULT.url
    return f"without a network, put {url} into {torch.hub.get_dir()}/checkpoints"


def _create_timm(arch: str, num_classes: int, pretrained: bool) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(arch.removeprefix(_TIMM), pretrained=pretrained, num_classes=num_classes)
    return network


def _create_torchvision(arch: str, num_classes: int, pretrained: bool) -> nn.Module:
    options: dict[str, Any] = {}
    if arch in _HALF:
        options = {"aux_logits": False, "init_weights": True}
    network: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **options)
    if pretrained:
        weights = torchvision.models.get_model_weights(arch).DEFAULT.get_state_dict(progress=False, check_hash=True)
        own = network.state_dict()
        fitting = {key: value for key, value in weights.items() if key in own and value.shape == own[key].shape}
        network.load_state_dict(fitting, strict=False)
        afresh = sorted(own.keys() - fitting.keys())
        print(f"pretrained weights loaded{'; afresh: ' + ', '.join(afresh) if afresh else ''}")
    return network


def check_resolutions(model: NormalizedModel, resolutions: Iterable[int]) -> None:
    """Check that the model takes square images of these sides, px.

    Raises:
        ValueError: It does not take one of them.
    """
    device = model.scale.device
    model.eval()
    for side in sorted(set(resolutions)):
        try:
            with torch.no_grad():
                model(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ValueError(f"the model does not take images of {side} x {side} px: {error}") from error


def check_batch(network: nn.Module, images: int, sides: Iterable[int]) -> None:
    """Check that batch normalisation has more than one value to normalise.

    It has only one for a single image of which one pixel is left. The check uses torch's meta device, without data.

    Args:
        network: The network to train.
        images: Images per micro-batch.
        sides: Sides of the images, px.

    Raises:
        ValueError: The micro-batch is too small for one of the sides.
    """
    if images > 1 or any(isinstance(module, nn.SyncBatchNorm) for module in network.modules()):
        return
    network = copy.deepcopy(network).to("meta").train()
    for side in sorted(set(sides)):
        try:
            network(torch.empty(1, 3, side, side, device="meta"))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"batch normalisation cannot be trained on a single image of {side} x {side} px: use a larger "
                "training.batch_size, and a global_batch_size that it divides"
            ) from None


def parameter_groups(model: nn.Module, weight_decay: float, *, bn_wd: bool = False) -> list[dict[str, Any]]:
    """Split the parameters into two groups for an optimizer: with and without weight decay.

    As in timm, there is no weight decay on parameters of at most one dimension, on biases, and on parameters that the
    network's own `no_weight_decay()` names (patterns allowed), such as tokens and position embeddings. Parameters of
    normalisation layers have none either, whatever their dimensions.

    Args:
        model: A network, or a `NormalizedModel` around one.
        weight_decay: Weight decay of the first group; the second has 0.
        bn_wd: Put all parameters into the first group.

    Example:
        >>> decayed, exempt = parameter_groups(nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)), 1e-4)
        >>> len(decayed["params"]), len(exempt["params"])
        (1, 3)
    """
    network = model.network if isinstance(model, NormalizedModel) else model
    named: Iterable[str] = getattr(network, "no_weight_decay", list)()
    normalizing = {
        parameter
        for module in network.modules()
        if isinstance(module, _NORM_LAYERS)
        for parameter in module.parameters(recurse=False)
    }
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for name, parameter in network.named_parameters():
        small = parameter.ndim <= 1 or name.rpartition(".")[2] == "bias" or parameter in normalizing
        exempt = small or any(fnmatch(name, pattern) for pattern in named)
        groups[exempt and not bn_wd].append(parameter)
    return [{"params": group, "weight_decay": decay} for group, decay in zip(groups, (weight_decay, 0.0))]


def create_sgd(params: Iterable[Any], lr: float, *, momentum: float, weight_decay: float = 0.0) -> torch.optim.SGD:
    """Create fused SGD whose momentum buffers start at zero, which gives the same first step as torch's.

    torch allocates the momentum of a fused optimizer in its first step, and leaves it uninitialised if a `GradScaler`
    skips that step, as it does whenever its initial scale is too high.

    Args:
        params: Parameters or parameter groups, as `torch.optim.SGD` takes them.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: L2 penalty of groups that set none.

    Example:
        >>> optimizer = create_sgd(nn.Linear(2, 3).parameters(), 0.1, momentum=0.9)
        >>> sorted({key for state in optimizer.state.values() for key in state})
        ['momentum_buffer']
    """
    optimizer = torch.optim.SGD(params, lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    for group in optimizer.param_groups if momentum else ():
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class WeightAverage(AveragedModel):
    """An exponential moving average of weights and buffers, as `AveragedModel`, whose updates do not wait for the GPU.

    Torch's own copies its counter of updates to the GPU in each of them, and that waits for all work there.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self._average: Any = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the weights and buffers of `model` to the average."""
        both = [[*module.parameters(), *module.buffers()] for module in (self.module, model)]
        if self.n_averaged == 0:  # on the CPU
            for average, value in zip(*both):
                average.copy_(value)
        else:
            for dtype in {average.dtype for average in both[0]}:
                averages, values = ([tensor for tensor in side if tensor.dtype == dtype] for side in both)
                self._average(averages, values, None)
        self.n_averaged += 1


def average_weights(network: nn.Module, decay: float) -> WeightAverage:
    """Create an exponential moving average of weights and statistics, with `decay` per step, in its `module`."""
    return WeightAverage(network, decay)


def choose_precision(wanted: str | None, device: torch.device) -> str:
    """Return the precision: as wanted, or else bf16 on a GPU, which needs no loss scaling, and fp32 on the CPU."""
    return wanted or ("bf16" if device.type == "cuda" else "fp32")


def mixed_precision(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a forward pass."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    return torch.autocast(device.type, kind, enabled=precision != "fp32")
