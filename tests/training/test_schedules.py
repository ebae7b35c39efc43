"""Learning rate and resolution against values worked out by hand."""

from __future__ import annotations

import itertools

import pytest

from ffcv_cropmix.training.config import LrConfig, ResolutionConfig
from ffcv_cropmix.training.schedules import lr_schedule, resolution


@pytest.mark.parametrize(
    ("position", "expected"),
    [(0, 0), (0.5, 0.425), (1, 0.85), (2, 1.7), (2.5, 1.7 * 13.5 / 14), (9, 0.85), (15.5, 1.7 * 0.5 / 14), (16, 0)],
)
def test_cyclic_is_linear_up_to_the_peak_and_down_to_zero(position: float, expected: float) -> None:
    lr_at = lr_schedule(LrConfig(lr=1.7, lr_peak_epoch=2), epochs=16, global_batch_size=512)
    assert lr_at(position) == pytest.approx(expected, abs=1e-12)


def test_cyclic_peak_at_the_start_only_decays() -> None:
    lr_at = lr_schedule(LrConfig(lr=1.0, lr_peak_epoch=0), epochs=4, global_batch_size=512)
    assert [lr_at(epoch) for epoch in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("position", "expected"),
    [(0, 0), (0.5, 0.425), (2, 1.7), (5.5, 1.7 * (1 + 0.5**0.5) / 2), (9, 0.85), (16, 0)],  # cos 45, 90, 180 degrees
)
def test_cosine_is_linear_up_to_the_peak_and_half_a_cosine_down_to_zero(position: float, expected: float) -> None:
    config = LrConfig(lr=1.7, lr_schedule_type="cosine", lr_peak_epoch=2)
    assert lr_schedule(config, epochs=16, global_batch_size=512)(position) == pytest.approx(expected, abs=1e-12)


def test_step_is_ffcv_imagenets_ramp_within_each_epoch() -> None:
    """Its values for the start of an epoch, and numpy.interp to the next one's."""
    config = LrConfig(lr=0.8, lr_schedule_type="step", step_ratio=0.5, step_length=3)
    lr_at = lr_schedule(config, epochs=8, global_batch_size=512)
    starts = [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2, 0]
    for epoch, (start, end) in enumerate(itertools.pairwise(starts)):
        for share in (0, 0.25, 0.5, 0.9):
            assert lr_at(epoch + share) == pytest.approx(start + (end - start) * share)
    assert lr_at(8) == 0


def test_the_rate_is_for_the_reference_batch() -> None:
    for global_batch_size, expected in ((1024, 1.7), (4096, 6.8), (256, 0.425)):
        config = LrConfig(lr=1.7, reference_batch_size=1024, lr_peak_epoch=2)
        assert lr_schedule(config, 16, global_batch_size)(2) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["cyclic", "cosine"])
@pytest.mark.parametrize(("peak", "epochs"), [(2, 1), (2, 2), (5, 3)])
def test_peak_beyond_the_run_moves_to_its_middle_and_says_so(peak: int, epochs: int, kind: str, capsys) -> None:
    lr_at = lr_schedule(
        LrConfig(lr=1.0, lr_peak_epoch=peak, lr_schedule_type=kind), epochs=epochs, global_batch_size=512
    )
    assert lr_at(epochs / 2) == 1.0
    assert lr_at(epochs / 4) == lr_at(epochs * 3 / 4) == pytest.approx(0.5)
    assert capsys.readouterr().out == (
        f"lr.lr_peak_epoch={peak} is beyond the {epochs} epochs: moved to {epochs / 2:g}\n"
    )


def test_peak_inside_the_run_stays_and_nothing_is_said(capsys) -> None:
    assert lr_schedule(LrConfig(lr=1.0, lr_peak_epoch=2), epochs=3, global_batch_size=512)(2) == 1.0
    assert capsys.readouterr().out == ""


def test_resolution_ramp_of_the_16_epoch_schedule() -> None:
    config = ResolutionConfig(min_res=160, max_res=192, start_ramp=11, end_ramp=13)
    # Half way, 176 px is as near to 160 as to 192; Python and NumPy round 5.5 to 6.
    assert [resolution(epoch, config) for epoch in range(16)] == [160] * 12 + [192] * 4


def test_resolution_ramp_passes_multiples_of_32() -> None:
    config = ResolutionConfig(min_res=128, max_res=224, start_ramp=2, end_ramp=10)
    # On the line: 140, 152, 164, 176, 188, 200, 212 px in epochs 3 to 9.
    expected = [128, 128, 128, 128, 160, 160, 192, 192, 192, 224, 224, 224]
    assert [resolution(epoch, config) for epoch in range(12)] == expected


def test_resolution_stays_between_its_ends() -> None:
    config = ResolutionConfig(min_res=48, max_res=56, start_ramp=0, end_ramp=4)
    assert [resolution(epoch, config) for epoch in range(6)] == [48, 56, 56, 56, 56, 56]
