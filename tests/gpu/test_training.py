"""The trainers on a GPU: resumed bit for bit, no wait in the loop, several processes, evaluation as on the CPU."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ffcv_cropmix import CenterCropRGBImageDecoder
from ffcv_cropmix.evaluation.accuracy import evaluate
from ffcv_cropmix.training import classifier
from ffcv_cropmix.training import run as run_module
from ffcv_cropmix.training.config import parse_config
from ffcv_cropmix.training.distributed import Processes
from ffcv_cropmix.training.loaders import validation_loader
from ffcv_cropmix.training.models import NormalizedModel, create_network

from .conftest import CLASSES, DEVICE, ON_CPU, no_host_sync

REPOSITORY = Path(__file__).parents[2]
TINY = [
    *("--model.arch=resnet18", "--model.cifar_stem=1", f"--model.num_classes={CLASSES}"),
    *("--resolution.min_res=16", "--resolution.max_res=32", "--resolution.end_ramp=1", "--validation.resolution=32"),
    *("--training.batch_size=16", "--training.epochs=2", "--lr.lr=0.05", "--logging.log_level=0"),
    *("--cropmix.enabled=1", "--validation.batch_size=8"),
]

pytestmark = pytest.mark.usefixtures("signals")


def _train(data: list[str], folder: Path, *options: str) -> list[dict[str, Any]]:
    classifier.train(parse_config([*TINY, *data, f"--logging.folder={folder}", *options]))
    return _log(folder)


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def _stop_at(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int, run: Callable[[], Any]) -> None:
    """Run until that step, and let a signal stop it there."""
    seed_step = run_module.seed_step

    def seed_and_stop(seed: int, *at: int) -> None:
        if at[:2] == (epoch, step):
            os.kill(os.getpid(), signal.SIGTERM)
        seed_step(seed, *at)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "seed_step", seed_and_stop)
        with pytest.raises(SystemExit):
            run()


@pytest.mark.parametrize("compiled", [0, 1])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_run_is_resumed_bit_for_bit(
    data: list[str], tmp_path: Path, monkeypatch, deterministic, precision: str, compiled: int
) -> None:
    """A run in each precision, compiled or not, that is stopped in an epoch and resumed has the same weights."""
    options = [f"--training.precision={precision}", f"--training.compile={compiled}", "--training.ema_decay=0.5"]
    whole = _train(data, tmp_path / "whole", *options)
    folder = tmp_path / "stopped"
    _stop_at(monkeypatch, 1, 2, lambda: _train(data, folder, *options))
    resumed = _train(data, folder, *options, "--resume=auto")
    assert [line["train_loss"] for line in resumed] == [line["train_loss"] for line in whole]
    expected, weights = (torch.load(path / "final_weights.pt") for path in (tmp_path / "whole", folder))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_no_step_waits_for_the_gpu(data: list[str], tmp_path: Path, monkeypatch, precision: str) -> None:
    """From the second step of an epoch to the last, no step makes the host wait: loss, scaler, mixing, average, log."""
    seed_step, end_epoch = run_module.seed_step, run_module.Run.end_epoch
    watched: list[int] = []
    watch = no_host_sync()

    def seed_and_watch(seed: int, epoch: int, step: int, rank: int) -> None:
        if (epoch, step) == (0, 1):
            watch.__enter__()
        if epoch == 0:
            watched.append(step)
        seed_step(seed, epoch, step, rank)

    def stop_watching(run: Any, **further: float) -> Any:
        if len(watched) == 3:
            watched.append(-1)
            watch.__exit__(None, None, None)
        return end_epoch(run, **further)

    monkeypatch.setattr(run_module, "seed_step", seed_and_watch)
    monkeypatch.setattr(run_module.Run, "end_epoch", stop_watching)
    options = [f"--training.precision={precision}", "--training.global_batch_size=32", "--training.ema_decay=0.9"]
    try:
        _train(data, tmp_path / "run", *options, "--training.mixup=0.2", "--training.cutmix=1")
    finally:
        if not ON_CPU:
            torch.cuda.set_sync_debug_mode("default")
    assert watched == [0, 1, 2, -1]


def test_evaluation_is_the_cpus(data: list[str], exact) -> None:
    """Accuracy, loss and calibration error on the GPU are within 1e-3 of the CPU's."""
    torch.manual_seed(0)
    network = create_network("resnet18", CLASSES, cifar_stem=True)
    config = parse_config([*TINY, *data, "--logging.folder=unused"]).data
    results = []
    for device in (torch.device("cpu"), DEVICE):
        model = NormalizedModel(network).to(device).to(memory_format=torch.channels_last)
        decoder = CenterCropRGBImageDecoder((32, 32))
        loader = validation_loader(config, decoder, batch_size=8, processes=Processes(device))
        results.append(evaluate(model, loader, num_classes=CLASSES).entries())
    assert results[1] == pytest.approx(results[0], rel=1e-3, abs=1e-3)


def _torchrun(count: int, data: list[str], folder: Path, *options: str) -> list[dict[str, Any]]:
    program = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "train_imagenet.py"]
    command = [sys.executable, *program, *TINY, *data, f"--logging.folder={folder}", *options]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    return _log(folder)


def test_nccl_and_sync_bn(data: list[str], tmp_path: Path, exact) -> None:
    """One process with NCCL has the losses of one without; all GPUs together with SyncBatchNorm have nearly those."""
    fp32 = "--training.precision=fp32"
    count = 1 if ON_CPU else torch.cuda.device_count()
    alone = _torchrun(1, data, tmp_path / "alone", fp32, "--training.sync_bn=1")
    assert [line["train_loss"] for line in alone] == pytest.approx(
        [line["train_loss"] for line in _train(data, tmp_path / "plain", fp32)], rel=0.02
    )
    if count > 1:  # in the first epoch: differences of rounding grow
        batch = f"--training.global_batch_size={16 // math.gcd(16, count) * count}"
        together = _torchrun(count, data, tmp_path / "together", fp32, "--training.sync_bn=1", batch)
        single = _train(data, tmp_path / "single", fp32, batch, "--training.batch_size=1024")
        assert together[0]["train_loss"] == pytest.approx(single[0]["train_loss"], rel=0.02)


def test_moco(data: list[str], tmp_path: Path) -> None:
    """MoCo trains for one epoch, and finds neighbours."""
    pytest.importorskip("lightly")
    pytest.importorskip("kornia")
    from examples.contrastive import moco
    from examples.contrastive.config import parse_pretrain

    options = ["--model.arch=resnet18", "--training.resolution=32", "--training.global_batch_size=16"]
    options += ["--training.epochs=1", "--training.queue=64", "--training.neighbors=5", *data]
    moco.pretrain(parse_pretrain([*options, f"--logging.folder={tmp_path}"]))
    assert all(math.isfinite(_log(tmp_path)[0][name]) for name in ("train_loss", "top_1"))


@pytest.mark.parametrize("compiled", [0, 1])
def test_mae(data: list[str], tmp_path: Path, compiled: int) -> None:
    """A masked autoencoder trains for one epoch, compiled or not, and plots reconstructions."""
    pytest.importorskip("timm")
    from examples.mae.config import parse_pretrain
    from examples.mae.pretraining import pretrain

    shape = {"resolution": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2}
    shape |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    options = [*(f"--model.{key}={value}" for key, value in shape.items()), "--training.batch_size=16"]
    options += ["--training.epochs=1", "--training.warmup_epochs=0", f"--training.compile={compiled}", *data]
    pretrain(parse_pretrain([*options, f"--logging.folder={tmp_path}"]))
    assert math.isfinite(_log(tmp_path)[0]["train_loss"])
    assert (tmp_path / "reconstructions.png").exists()
