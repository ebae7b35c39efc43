"""Several views, output images, of one decode: the decoder, and the operations that separate its views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided

from .batch_loop import Decode
from .decoders import LayersRGBImageDecoder, OnError, mark_compiled, records, sample_cropmix
from .ffcv_compat import AllocationQuery, State
from .ffcv_compat import Operation as FFCVOperation
from .functional import Interpolation
from .kernels import sampling
from .plan import Operation, check_size, sampling_options


def _images_together(images: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return what `images_apart` does, for images in one array (batch, views, height, width, 3): see `_by_views`."""
    count, views, height, width, _ = images[0].shape
    first, size = images[0].ctypes.data, count * height * width * 3
    return np.array([(first + view * size, height, width) for view in range(views)], np.int64)


def _all(images: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return images


def _by_views(images: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the array of `_images_together` with its true strides: view follows view, so each view is contiguous."""
    count, views, height, width, _ = images[0].shape
    image = height * width * 3
    return as_strided(images[0], (count, views, height, width, 3), (image, count * image, width * 3, 3, 1))


@dataclass(frozen=True)
class ViewSpec:
    """Describe one view of a `MultiViewRGBImageDecoder`: a RandomResizedCrop (number=1, the default), or a CropMix.

    The options are those of `CropMixRGBImageDecoder`.

    Raises:
        ValueError: an option is out of range; the message names it and the value.

    Example:
        >>> ViewSpec((96, 96), scale=(0.05, 0.14), flip_probability=0.5).output_size
        (96, 96)
    """

    output_size: tuple[int, int] = (224, 224)
    """(height, width), px."""
    scale: float | tuple[float, float] = 0.08
    number: int | Sequence[int] = 1
    operation: Operation | Literal[0, 1] = "mixup"
    mix_ratio: float = 0.4
    inter_aug: bool = False
    flip_probability: float = 0.0
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        check_size("output_size", self.output_size)
        self.sampling_options(seed=0)

    def sampling_options(self, seed: int) -> sampling.SamplingOptions:
        """Check the options and return them in the form that compiled code takes."""
        options = asdict(self)
        del options["output_size"]
        return sampling_options(**options, seed=seed)


class MultiViewRGBImageDecoder(LayersRGBImageDecoder):
    """Decode an image once and make several views of it, each with its own crops, mix and mirroring.

    Views of one size are one batch: uint8 (batch, views, height, width, 3). In memory, view follows view, so that
    `batch[:, view]` is contiguous. Views of several sizes are a tuple of batches, uint8 (batch, height, width, 3), one
    for each view. `ToTorchViews` makes tensors of either; `SelectView` selects one view.

    A view depends on `seed`, the epoch, the row in the .beton file and the number of the view only.
    `sample_plan(..., view=number)` returns its plan. View 0 is the image of a `CropMixRGBImageDecoder`.

    Args:
        views: at least one; their options can differ.
        seed: 0 to 2**64 - 1.
        interpolation: of all views, as for `CropMixRGBImageDecoder`.
        on_error: as for `CropMixRGBImageDecoder`; a damaged sample becomes zeros in all views.
        decode: as for `CropMixRGBImageDecoder`.

    Raises:
        ValueError: an option is out of range; the message names it and the value.
        DecodeError: while iterating, see `on_error`.

    Example:
        >>> from ffcv_cropmix import Loader
        >>> decoder = MultiViewRGBImageDecoder([ViewSpec((8, 8)), ViewSpec((4, 4), number=2)])
        >>> pipelines = {"image": [decoder, ToTorchViews("cpu")], "label": None}
        >>> for (views,) in Loader("train.beton", batch_size=2, num_workers=1, pipelines=pipelines):
        ...     print([tuple(view.shape) for view in views])
        [(2, 3, 8, 8), (2, 3, 4, 4)]
    """

    _sample_layers = staticmethod(sample_cropmix)

    def __init__(
        self,
        views: Sequence[ViewSpec],
        seed: int = 0,
        interpolation: Interpolation = "bilinear",
        on_error: OnError = "raise",
        decode: Decode = "rgb",
    ) -> None:
        self.views = tuple(views)
        if not self.views or not all(isinstance(view, ViewSpec) for view in self.views):
            raise ValueError(f"views is a list of at least one ViewSpec, got {views!r}")
        sizes = [check_size("output_size", view.output_size) for view in self.views]
        self._together = len(set(sizes)) == 1
        super().__init__(sizes, interpolation, on_error, decode)
        self._options = records([view.sampling_options(seed) for view in self.views])
        if self._together:
            self._places, self._result = _images_together, _by_views
        else:
            self._result = _all

    @property
    def output_size(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each view, px. Set it to one size for all views, or to a list with one for each.

        A new value takes effect with the next pass, without recompilation. Views that had one size at construction,
        and so are one batch, must keep one size.
        """
        sizes = tuple((height, width) for *_, height, width, _ in self._shapes)
        return sizes * len(self.views) if self._together else sizes

    @output_size.setter
    def output_size(self, size: Any) -> None:
        each = isinstance(size, Sequence) and any(isinstance(part, Sequence) for part in size)
        sizes = [check_size("output_size", part) for part in (size if each else [size] * len(self.views))]
        if len(sizes) != len(self.views):
            raise ValueError(
                f"output_size is one (height, width), or {len(self.views)}, one for each view, got {size!r}"
            )
        if not self._together:
            self._shapes = tuple((*part, 3) for part in sizes)
        elif len(set(sizes)) == 1:
            self._shapes = ((len(sizes), *sizes[0], 3),)
        else:
            raise ValueError(f"output_size: these views are one batch and need one size, got {size!r}")


def _view_shapes(operation: FFCVOperation, shape: Any) -> tuple[tuple[int, int, int], ...]:
    """Return (height, width, 3) of each view from the shape that `MultiViewRGBImageDecoder` declares."""
    if isinstance(shape[0], tuple):
        return shape
    if len(shape) == 4:
        return (shape[1:],) * shape[0]
    raise ValueError(f"{type(operation).__name__} follows MultiViewRGBImageDecoder, not images of shape {shape}")


def _check_view(operation: FFCVOperation, view: int, count: int) -> None:
    if view not in range(count):
        raise ValueError(f"{type(operation).__name__}: the views are 0 to {count - 1}, got {view!r}")


class SelectView(FFCVOperation):
    """Select one view of a `MultiViewRGBImageDecoder`: uint8 (batch, height, width, 3), as FFCV's operations take it.

    The view is not copied. Use it for several outputs of one decode:
    `PipelineSpec(decoder, transforms=[SelectView(1), ...])`.

    Args:
        view: number of the view, from 0.

    Raises:
        ValueError: when a loader is made, if there is no such view.

    Example:
        >>> from ffcv.pipeline import PipelineSpec
        >>> from ffcv.transforms import ToTensor
        >>> from ffcv_cropmix import Loader
        >>> decoder = MultiViewRGBImageDecoder([ViewSpec((8, 8)), ViewSpec((4, 4), number=2)])
        >>> large = PipelineSpec("image", decoder, transforms=[SelectView(0), ToTensor()])
        >>> small = PipelineSpec(decoder, transforms=[SelectView(1), ToTensor()])
        >>> pipelines = {"image": None, "label": None, "large": large, "small": small}
        >>> for large, small in Loader("train.beton", batch_size=2, num_workers=1, pipelines=pipelines):
        ...     print(large.shape, small.shape)
        torch.Size([2, 8, 8, 3]) torch.Size([2, 4, 4, 3])
    """

    def __init__(self, view: int) -> None:
        super().__init__()
        self.view = view

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        shapes = _view_shapes(self, previous_state.shape)
        _check_view(self, self.view, len(shapes))
        self._apart = previous_state.shape == shapes
        # Declared as compiled: FFCV hangs at compiled operations after one that is not.
        return replace(previous_state, jit_mode=True, shape=shapes[self.view]), None

    def generate_code(self) -> Callable[..., Any]:
        view = self.view

        def select_apart(batches, memory):
            return batches[view]

        def select(batch, memory):
            return batch[:, view]

        return mark_compiled(select_apart if self._apart else select)


class ToTorchViews(FFCVOperation):
    """Move the views of a `MultiViewRGBImageDecoder` to a device: a tuple of uint8 tensors (batch, 3, height, width).

    Each tensor is contiguous in `torch.channels_last`. On the CPU the tensors share the decoder's memory.

    Args:
        device: the target device.
        views: numbers of the views to return, from 0; by default all.
        non_blocking: whether the copy is asynchronous, see `ffcv.transforms.ToDevice`.

    Raises:
        ValueError: when a loader is made, if there is no such view.

    Example:
        >>> decoder = MultiViewRGBImageDecoder([ViewSpec((8, 8)), ViewSpec((4, 4), number=2)])
        >>> second_on_gpu = {"image": [decoder, ToTorchViews("cuda:0", views=[1])], "label": None}
    """

    def __init__(
        self, device: torch.device | str = "cpu", views: Sequence[int] | None = None, non_blocking: bool = True
    ) -> None:
        super().__init__()
        self.device, self.views, self.non_blocking = torch.device(device), views, non_blocking

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...] | None]:
        shapes = _view_shapes(self, previous_state.shape)
        self._apart = previous_state.shape == shapes
        self._wanted = tuple(range(len(shapes)) if self.views is None else self.views)
        for view in self._wanted:
            _check_view(self, view, len(shapes))
        wanted = [shapes[view] for view in self._wanted]
        state = replace(
            previous_state,
            jit_mode=False,
            device=self.device,
            dtype=torch.uint8,
            shape=tuple((3, height, width) for height, width, _ in wanted),
        )
        if self.device.type == "cpu":
            return state, None
        return state, tuple(AllocationQuery(shape, torch.uint8, self.device) for shape in wanted)

    def generate_code(self) -> Callable[..., Any]:
        wanted, apart, non_blocking = self._wanted, self._apart, self.non_blocking

        def to_torch_views(batch, memory):
            views = [torch.as_tensor(batch[view] if apart else batch[:, view]) for view in wanted]
            if memory is not None:
                views = [target.copy_(view, non_blocking=non_blocking) for target, view in zip(memory, views)]
            return tuple(view.permute(0, 3, 1, 2) for view in views)

        return to_torch_views
