"""Several views of one decode: each is what `cropmix` and `sample_plan` say, and what stock FFCV does with them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import ffcv.loader
import numpy as np
import pytest
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.loader import OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import RandomHorizontalFlip, ToDevice, ToTensor, ToTorchImage
from numba.core import event

import ffcv_cropmix.loader
from ffcv_cropmix import (
    CropMixRGBImageDecoder,
    Loader,
    MultiViewRGBImageDecoder,
    SelectView,
    ToTorchViews,
    ViewSpec,
    cropmix,
    sample_plan,
)
from ffcv_cropmix.data.reader import Beton
from ffcv_cropmix.decoders import DecodeError
from tests.betons import COUNT, damaged, payload, stored_image

SIZE, SMALL = (24, 31), (9, 8)
SEED = 2**40 + 3
VIEWS = [
    ViewSpec(SIZE, scale=(0.2, 0.6)),
    ViewSpec(SIZE, scale=(0.6, 1.0), flip_probability=0.5, ratio=(0.5, 2.0)),
    ViewSpec(SIZE, scale=0.01, number=(2, 3, 4), mix_ratio=1.0, inter_aug=True),
    ViewSpec(SIZE, scale=0.1, number=2, operation="cutmix", inter_aug=True, flip_probability=0.5),
]
CROPS = [ViewSpec(SIZE, (0.4, 1))] * 2 + [ViewSpec(SMALL, (0.05, 0.4), flip_probability=0.5)] * 3
KINDS = [Loader, ffcv.loader.Loader]
CPU = torch.device("cpu")


def loader_of(path: Path, decoder: Any, *operations: Any, kind: Any = Loader, **options: Any) -> Any:
    pipelines = {"image": [decoder, *operations], "label": [IntDecoder(), ToTensor()], **options.pop("others", {})}
    options = {"batch_size": 8, "num_workers": 2, "drop_last": False, **options}
    return kind(str(path), pipelines=pipelines, **options)


def read(loader: Any) -> dict[int, list[np.ndarray]]:
    """Of one pass, the views of each sample, (height, width, 3), by row."""
    samples = {}
    for views, labels in loader:
        if isinstance(views, torch.Tensor):  # (batch, views, height, width, 3)
            views = views.unbind(1)
        else:
            views = [view.permute(0, 2, 3, 1) for view in views]
        for position, label in enumerate(labels[:, 0].tolist()):
            samples[label] = [view[position].numpy().copy() for view in views]
    return samples


@cache
def expected(path: Path, spec: ViewSpec, view: int, epoch: int, index: int, size: tuple[int, int]) -> np.ndarray:
    image = stored_image(path, index)
    options = {**asdict(spec), "output_size": size}
    return cropmix(
        image, sample_plan(*image.shape[:2], **options, seed=SEED, epoch=epoch, index=index, view=view), size
    )


def check(
    samples: dict[int, list[np.ndarray]], path: Path, specs: list[ViewSpec], epoch: int, sizes: Any = None
) -> None:
    sizes = sizes or [spec.output_size for spec in specs]
    for index, views in samples.items():
        assert len(views) == len(specs)
        for number, (view, spec, size) in enumerate(zip(views, specs, sizes)):
            wanted = expected(path, spec, number, epoch, index, size)
            np.testing.assert_array_equal(view, wanted, err_msg=f"sample {index}, view {number}")


@pytest.mark.parametrize("mode", ["raw", "jpg"])
@pytest.mark.parametrize(("specs", "operation"), [(VIEWS, ToTensor), (CROPS, ToTorchViews)], ids=["one size", "two"])
def test_each_view_is_cropmix_of_its_plan(betons, mode: str, specs: list, operation: Callable[[], Any]) -> None:
    loader = loader_of(betons[mode], MultiViewRGBImageDecoder(specs, seed=SEED), operation())
    for epoch in range(2):
        samples = read(loader)
        assert sorted(samples) == list(range(COUNT))
        check(samples, betons[mode], specs, epoch)


@pytest.mark.parametrize(
    ("kind", "num_workers", "batch_size", "order"),
    [
        (Loader, 1, 7, OrderOption.SEQUENTIAL),
        (ffcv.loader.Loader, 2, 32, OrderOption.RANDOM),
        (Loader, 2, 1, OrderOption.QUASI_RANDOM),
    ],
)
def test_same_bytes_however_it_is_read(betons, kind, num_workers: int, batch_size: int, order) -> None:
    for specs, operation in (VIEWS, ToTensor()), (CROPS, ToTorchViews()):
        decoder = MultiViewRGBImageDecoder(specs, seed=SEED)
        options = {"num_workers": num_workers, "batch_size": batch_size, "order": order, "seed": batch_size}
        loader = loader_of(betons["raw"], decoder, operation, kind=kind, **options)
        check(read(loader), betons["raw"], specs, epoch=0)
        for _ in loader:  # a pass broken off counts
            break
        samples = read(loader)
        assert sorted(samples) == list(range(COUNT))
        check(samples, betons["raw"], specs, epoch=2)


@pytest.mark.parametrize("decode", ["rgb", "rows", "ycbcr"])
def test_the_first_view_is_the_decoder_of_one_image(betons, decode: str) -> None:
    options = {"scale": 0.05, "number": (1, 2, 3), "inter_aug": True, "flip_probability": 0.5}
    views = [ViewSpec(SIZE, **options), ViewSpec(SIZE, scale=0.9)]  # the second needs more rows than the first
    several = read(loader_of(betons["jpg"], MultiViewRGBImageDecoder(views, seed=SEED, decode=decode), ToTensor()))
    one = CropMixRGBImageDecoder(SIZE, seed=SEED, decode=decode, **options)
    for images, labels in loader_of(betons["jpg"], one, ToTensor()):
        for image, label in zip(images.numpy(), labels[:, 0].tolist()):
            np.testing.assert_array_equal(image, several[label][0])


def test_decoding_rows_gives_the_same_pixels(betons) -> None:
    """Those that any view needs."""
    views = [ViewSpec(SIZE, scale=(0.01, 0.1)) for _ in range(4)]
    for order in (views, views[::-1]):
        decoder = MultiViewRGBImageDecoder(order, seed=SEED, decode="rows")
        check(read(loader_of(betons["jpg"], decoder, ToTensor())), betons["jpg"], order, epoch=0)


def test_bicubic(betons) -> None:
    decoder = MultiViewRGBImageDecoder(VIEWS[1:3], seed=SEED, interpolation="bicubic")
    for index, views in read(loader_of(betons["raw"], decoder, ToTensor())).items():
        image = stored_image(betons["raw"], index)
        for number, (view, spec) in enumerate(zip(views, VIEWS[1:3])):
            plan = sample_plan(*image.shape[:2], **asdict(spec), seed=SEED, index=index, view=number)
            np.testing.assert_array_equal(view, cropmix(image, plan, SIZE, "bicubic"))


@pytest.fixture(scope="module")
def colours(betons, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each image is of one colour, its row."""
    content = bytearray(betons["raw"].read_bytes())
    for index in range(COUNT):
        address, size = payload(betons["raw"], index)
        content[address : address + size] = bytes([index, 100 + index, 250 - index]) * (size // 3)
    path = tmp_path_factory.mktemp("colours") / "colours.beton"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("specs", [[ViewSpec(SIZE)] * 12, CROPS], ids=["one size", "two"])
def test_all_views_are_of_the_samples_own_image(colours: Path, specs: list) -> None:
    decoder = MultiViewRGBImageDecoder(specs)
    samples = read(loader_of(colours, decoder, ToTorchViews(), order=OrderOption.RANDOM, batch_size=5))
    assert sorted(samples) == list(range(COUNT))
    for index, views in samples.items():
        assert [view.shape[:2] for view in views] == [spec.output_size for spec in specs]
        for view in views:
            assert (view == [index, 100 + index, 250 - index]).all()


def test_views_differ(betons) -> None:
    """Of equal specs, and from one seed, epoch and sample to the other."""
    seen = []
    for seed in (0, 1):
        loader = loader_of(betons["raw"], MultiViewRGBImageDecoder([ViewSpec(SIZE, scale=0.01)] * 3, seed), ToTensor())
        for _ in range(2):
            samples = read(loader)
            seen += [[samples[index][view].tobytes() for index in range(8, COUNT)] for view in range(3)]
    for images in zip(*seen):
        assert len(set(images)) == len(images)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("specs", "sizes"), [(VIEWS, (12, 40)), (CROPS, [(40, 12)] * 2 + [(5, 6), (1, 1), SIZE])])
def test_output_size_between_epochs_compiles_nothing(betons, kind, specs: list, sizes: Any, monkeypatch) -> None:
    decoder = MultiViewRGBImageDecoder(specs, seed=SEED)
    assert decoder.output_size == tuple(spec.output_size for spec in specs)
    loader = loader_of(betons["jpg"], decoder, ToTorchViews(), kind=kind)
    read(loader)
    monkeypatch.setattr("ffcv_cropmix.kernels.cache._folder", lambda: None)  # nothing is loaded either
    for epoch, size in enumerate([(33, 70), sizes], start=1):
        decoder.output_size = size
        with event.install_recorder("numba:compile") as compiled:
            images = read(loader)
        assert not compiled.buffer
        check(images, betons["jpg"], specs, epoch, decoder.output_size)


def test_output_size_before_and_after(betons) -> None:
    decoder = MultiViewRGBImageDecoder(CROPS)
    decoder.output_size = (5, 4)
    assert decoder.output_size == ((5, 4),) * len(CROPS)
    for size, message in (
        ((0, 3), r"output_size .* got \(0, 3\)"),
        (224, "output_size .* got 224"),
        ([(5, 5)] * 2, r"output_size is one .* or 5, one for each view, got \[\(5, 5\), \(5, 5\)\]"),
        ([(5, 5)] * 4 + [(5, 0)], r"output_size .* got \(5, 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.output_size = size
    assert decoder.output_size == ((5, 4),) * len(CROPS)
    with pytest.raises(ValueError, match="output_size: these views are one batch"):
        MultiViewRGBImageDecoder(VIEWS).output_size = [(5, 5)] * 3 + [(5, 4)]


@pytest.mark.parametrize("specs", [VIEWS, CROPS, VIEWS[:1]], ids=["one size", "two", "one view"])
def test_tensors_are_channels_last_and_not_copied(betons, specs: list) -> None:
    decoder = MultiViewRGBImageDecoder(specs)
    loader = loader_of(betons["raw"], decoder, ToTorchViews(), others={"raw": PipelineSpec(decoder)})
    for views, labels, arrays in loader:
        arrays = [arrays] if isinstance(arrays, np.ndarray) else arrays
        memory = sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays)
        for view, spec in zip(views, specs, strict=True):
            assert view.dtype == torch.uint8
            assert view.shape == (len(labels), 3, *spec.output_size)
            assert view.is_contiguous(memory_format=torch.channels_last)
            assert any(begin <= view.data_ptr() and view.data_ptr() + view.numel() <= end for begin, end in memory)
        if len(arrays) == 1:
            assert arrays[0].shape == (len(labels), len(specs), *SIZE, 3)


def test_another_device(betons) -> None:
    """A device without memory: where tensors are, not what is in them."""
    loader = loader_of(betons["raw"], MultiViewRGBImageDecoder(CROPS), ToTorchViews("meta", views=[4, 0]))
    for (small, large), labels in loader:
        assert (small.device.type, large.device.type) == ("meta", "meta")
        assert (small.shape, large.shape) == ((len(labels), 3, *SMALL), (len(labels), 3, *SIZE))
        assert small.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kind", "specs"), [(Loader, CROPS), (ffcv.loader.Loader, VIEWS)])
def test_several_outputs_of_one_decode(betons, kind, specs: list) -> None:
    """FFCV's own operations take a view as they take an image."""
    decoder = MultiViewRGBImageDecoder(specs, seed=SEED)
    loader = loader_of(
        betons["jpg"],
        decoder,
        *(SelectView(0), RandomHorizontalFlip(1.0), ToTensor(), ToTorchImage()),
        kind=kind,
        num_workers=1,  # with more, FFCV's operations take long to compile
        others={
            "last": PipelineSpec(
                decoder, transforms=[SelectView(len(specs) - 1), ToTensor(), ToDevice(CPU), ToTorchImage()]
            ),
            "two": PipelineSpec(decoder, transforms=[ToTorchViews(views=[2, 1])]),
        },
    )
    assert sum(hasattr(node, "decoder") and node.decoder is decoder for node in loader.graph.nodes) == 1
    indices = []
    for images, labels, last, two in loader:
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert len(last) == len(images) == len(labels)
        for position, index in enumerate(labels[:, 0].tolist()):
            wanted = [
                expected(betons["jpg"], spec, view, 0, index, spec.output_size).transpose(2, 0, 1)
                for view, spec in enumerate(specs)
            ]
            np.testing.assert_array_equal(images[position], wanted[0][:, :, ::-1])
            np.testing.assert_array_equal(last[position], wanted[-1])
            for view, image in zip((2, 1), two):
                np.testing.assert_array_equal(image[position], wanted[view])
            indices.append(index)
    assert sorted(indices) == list(range(COUNT))


def test_a_decoder_in_two_pipelines_is_an_error(betons) -> None:
    """It would decode twice, the second time with the random numbers of another epoch."""
    decoder = MultiViewRGBImageDecoder(VIEWS, seed=SEED)
    others = {"second": PipelineSpec("image", decoder, [SelectView(1), ToTensor()])}
    with pytest.raises(ValueError, match=r"would decode twice.* PipelineSpec\(decoder"):
        loader_of(betons["raw"], decoder, SelectView(0), ToTensor(), others=others)


def test_what_stock_operations_do_with_all_views(betons) -> None:
    """As docs/views.md says: an error, and images upside down."""
    with pytest.raises(ValueError, match="too many values to unpack"):
        loader_of(betons["raw"], MultiViewRGBImageDecoder(VIEWS), ToTensor(), ToTorchImage())
    decoder = MultiViewRGBImageDecoder(VIEWS, seed=SEED)
    loader = loader_of(betons["raw"], decoder, RandomHorizontalFlip(1.0), ToTensor(), num_workers=1)
    for index, views in read(loader).items():
        wanted = [expected(betons["raw"], spec, number, 0, index, SIZE) for number, spec in enumerate(VIEWS)]
        np.testing.assert_array_equal(views, np.flip(wanted, axis=1))


@pytest.fixture
def unchecked(betons, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is damaged after it was opened."""
    monkeypatch.setattr(ffcv_cropmix.loader, "check_beton", Beton)


@pytest.mark.parametrize(
    ("mode", "damage", "specs"),
    [("jpg", "truncated", VIEWS), ("jpg", "f0.mode=7", CROPS), ("raw", "f0.width=5", CROPS)],
)
def test_damage_to_zeros_or_an_error(betons, unchecked, tmp_path: Path, mode: str, damage: str, specs: list) -> None:
    path = damaged(betons[mode], tmp_path / "damaged.beton", 11, damage)
    decoder = MultiViewRGBImageDecoder(specs, seed=SEED, on_error="zero")
    loader = loader_of(path, decoder, ToTorchViews(), batch_size=4)
    for epoch in range(2):
        samples = read(loader)
        assert len(samples) == COUNT
        assert not any(view.any() for view in samples.pop(11))
        check(samples, betons[mode], specs, epoch)
    assert [(failure.index, failure.label) for failure in loader.report()] == [(11, "11")]
    decoder = MultiViewRGBImageDecoder(specs, seed=SEED)
    with pytest.raises(DecodeError, match="sample 11, of class 11: the "):
        read(loader_of(path, decoder, ToTorchViews()))


@pytest.mark.parametrize("specs", [VIEWS, CROPS], ids=["one size", "two"])
def test_checksums_are_compared(sealed, tmp_path: Path, specs: list) -> None:
    path = damaged(sealed["raw"], tmp_path / "damaged.beton", 11, "a bit")
    shutil.copy(f"{sealed['raw']}.json", f"{path}.json")
    decoder = MultiViewRGBImageDecoder(specs, seed=SEED, on_error="zero")
    loader = loader_of(path, decoder, ToTorchViews(), checksums=True)
    samples = read(loader)
    assert not any(view.any() for view in samples.pop(11))
    check(samples, sealed["raw"], specs, 0)
    assert [failure.index for failure in loader.report()] == [11]


@pytest.mark.parametrize("specs", [VIEWS, CROPS], ids=["one size", "two"])
def test_memory_is_that_of_the_output(betons, specs: list) -> None:
    """No image is kept before it is cropped."""
    loader = loader_of(betons["jpg"], MultiViewRGBImageDecoder(specs), ToTorchViews())
    (node,) = loader.image_nodes
    queries = loader.graph.collect_requirements()[0]["operation"][node.id]
    of_a_sample = sum(np.dtype(query.dtype).itemsize * math.prod(query.shape) for query in queries)
    assert of_a_sample == 3 * sum(math.prod(spec.output_size) for spec in specs) + 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViewSpec(output_size=(0, 3)), r"output_size .* got \(0, 3\)"),
        (lambda: ViewSpec(scale=0), "scale .* got"),
        (lambda: ViewSpec(number=9), "number .* got 9"),
        (lambda: ViewSpec(operation="add"), "operation .* got 'add'"),
        (lambda: ViewSpec(flip_probability=2), "flip_probability .* got 2"),
        (lambda: ViewSpec(ratio=(2, 1)), r"ratio .* got \(2, 1\)"),
        (lambda: MultiViewRGBImageDecoder([]), r"views is a list of at least one ViewSpec, got \[\]"),
        (lambda: MultiViewRGBImageDecoder([(8, 8)]), r"views is a list .* got \[\(8, 8\)\]"),
        (lambda: MultiViewRGBImageDecoder(VIEWS, seed=-1), "seed .* got -1"),
        (lambda: MultiViewRGBImageDecoder(VIEWS, interpolation="nearest"), "interpolation .* got 'nearest'"),
        (lambda: MultiViewRGBImageDecoder(VIEWS, on_error="skip"), "on_error .* got 'skip'"),
        (lambda: MultiViewRGBImageDecoder(VIEWS, decode="fast"), "decode .* got 'fast'"),
    ],
)
def test_wrong_options_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("decoder", "operation", "message"),
    [
        (MultiViewRGBImageDecoder(VIEWS), SelectView(4), "SelectView: the views are 0 to 3, got 4"),
        (MultiViewRGBImageDecoder(CROPS), SelectView(-1), "SelectView: the views are 0 to 4, got -1"),
        (MultiViewRGBImageDecoder(CROPS), ToTorchViews(views=[0, 5]), "ToTorchViews: the views are 0 to 4, got 5"),
        (CropMixRGBImageDecoder(SIZE), SelectView(0), "SelectView follows MultiViewRGBImageDecoder, not images of"),
        (CropMixRGBImageDecoder(SIZE), ToTorchViews(), "ToTorchViews follows MultiViewRGBImageDecoder, not images"),
    ],
)
def test_wrong_views_are_named(betons, decoder: Any, operation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader_of(betons["raw"], decoder, operation)
