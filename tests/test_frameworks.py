"""The programs of docs/frameworks.md: what they read, and that they continue in the middle of an epoch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ffcv_cropmix import Loader
from ffcv_cropmix.passes import _PassThread
from tests.betons import COUNT

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/frameworks.md"
PROGRAMS = re.findall("^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)

pytestmark = pytest.mark.filterwarnings("ignore:.*no last checkpoint available", "ignore:.*LeafSpec")


class Killed(Exception):
    """As if the process ended."""


class Recording(Loader):
    """Records the labels of batches, which are rows, and a sum of their pixels; ends the process after `most`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, num_workers=1, **options)
        self.begin()

    def begin(self) -> None:
        """Be as new."""
        self.load_state_dict({**self.state_dict(), "epoch": 0, "batch": 0})
        self.seen: list[tuple[list[int], int]] = []
        self.most = 10**6

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return self._recorded(super().__iter__())

    def _recorded(self, batches: Iterator[tuple[torch.Tensor, ...]]) -> Iterator[tuple[torch.Tensor, ...]]:
        for images, labels in batches:
            if len(self.seen) == self.most:
                raise Killed
            self.seen.append((labels.tolist(), int(images.long().sum())))
            yield images, labels


class Programs:
    """The page's programs, with loaders of ours: made once, as that takes as long as all the training."""

    def __init__(self, beton: Path) -> None:
        self.beton = beton
        self.loaders: dict[tuple, Recording] = {}

    def loader(self, *args: Any, **options: Any) -> Recording:
        key = (*args, "order" in options)  # the one for training
        if key not in self.loaders:
            self.loaders[key] = Recording(*args, **options)
        return self.loaders[key]

    def training_loader(self, batch_size: int = 4) -> Recording:
        return self.loaders[self.beton, batch_size, True]

    def names(self, number: int) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "program"}
        exec(compile(PROGRAMS[number], PAGE, "exec", dont_inherit=True), names)
        names["Loader"] = self.loader
        return names

    def plain(self, folder: Path, epochs: int, **options: Any) -> torch.nn.Module:
        return self.names(0)["train"](self.beton, folder, COUNT, epochs, 4, **options)

    def lightning(self, folder: Path, epochs: int, **options: Any) -> torch.nn.Module:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        options = {"batch_size": 4, **quiet, **options}
        return self.names(1)["fit"](self.beton, self.beton, folder, COUNT, max_epochs=epochs, **options)

    def accelerate(self, folder: Path, epochs: int, **options: Any) -> torch.nn.Module:
        return self.names(2)["train"](self.beton, folder, COUNT, epochs, 4, cpu=True, **options)


def compare(
    programs: Programs, train: Callable[..., torch.nn.Module], folder: Path, *, epochs: int, saved: int, **options: Any
) -> list[tuple[list[int], int]]:
    """Compare a run with one that is killed after 13 batches and continues where `saved` ones had been trained on."""
    whole = train(folder / "whole", epochs, **options)
    loader = programs.training_loader()
    batches = loader.seen
    loader.begin()
    loader.most = 13
    with pytest.raises(Killed):
        train(folder / "killed", epochs, **options)
    assert loader.seen == batches[:13]
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    loader.begin()
    resumed = train(folder / "killed", epochs, **options)
    assert loader.seen == batches[saved:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    loader.begin()
    return batches


@pytest.fixture(scope="module")
def programs(betons) -> Programs:
    return Programs(betons["raw"])


@pytest.mark.parametrize(
    ("framework", "options", "epochs", "saved"),
    [
        ("plain", {}, 2, 12),
        ("lightning", {"accumulate_grad_batches": 2, "val_check_interval": 3}, 2, 11),  # nine batches are five steps
        ("lightning", {"limit_train_batches": 3}, 5, 12),  # between two epochs
        ("accelerate", {"accumulation_steps": 2}, 2, 12),  # the fifth step is of two epochs
    ],
)
def test_a_run_continues_in_the_middle_of_an_epoch(
    programs: Programs, tmp_path: Path, framework: str, options: dict, epochs: int, saved: int
) -> None:
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    batches = compare(programs, getattr(programs, framework), tmp_path, epochs=epochs, saved=saved, **options)
    loader, most = programs.training_loader(), options.get("limit_train_batches", 9)
    expected = []
    for _ in range(epochs):  # from epoch 0 on, in all frameworks
        for number, _ in enumerate(loader, 1):
            if number == most:
                break
        expected += loader.seen
        loader.seen = []
    loader.begin()
    assert batches == expected


def test_lightning_computes_what_it_reads(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    compute = _PassThread._compute

    def count(thread: _PassThread, number: int, rows: Any, slot: int) -> Any:
        begun.append(thread.loader)
        return compute(thread, number, rows, slot)

    monkeypatch.setattr(_PassThread, "_compute", count)
    threads = threading.active_count()
    limits = {"limit_train_batches": 4, "limit_val_batches": 2, "save_every": 100}
    programs.lightning(tmp_path, 2, batch_size=1, **limits)
    assert threading.active_count() == threads
    loader = programs.training_loader(1)
    assert len(loader) == COUNT
    assert len(loader.seen) == 2 * 4
    ahead = loader.batches_ahead + 2
    assert begun.count(loader) <= 2 * (4 + ahead)
    assert len(begun) - begun.count(loader) <= 3 * (2 + ahead)  # the sanity check, and two epochs


def test_processes_share_the_samples(betons, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = ["-m", "tests.test_frameworks", str(betons["raw"]), str(tmp_path)]
    result = subprocess.run([*command, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for first, second in zip(found[0]["epochs"], found[1]["epochs"]):
        assert len(first) == len(second) == 16
        assert len({*first, *second}) == 32  # of 37 samples, four batches of four in each process
    assert len(found[0]["epochs"]) == 4 + 1
    assert sorted(found[0]["validation"] + found[1]["validation"]) == list(range(COUNT))
    assert found[0]["weights"] == found[1]["weights"]
    scheduler = torch.load(tmp_path / "killed/checkpoint/custom_checkpoint_1.pkl")
    assert scheduler["last_epoch"] == 5  # of ten batches


def _process(beton: Path, folder: Path) -> None:
    """Train in one of two processes."""
    programs = Programs(beton)
    options = {"epochs": 4, "saved": 10, "save_every": 5, "accumulation_steps": 2}
    batches = compare(programs, programs.accelerate, folder, **options)
    programs.loaders.clear()
    module = programs.lightning(folder / "lightning", 1, devices=2, strategy="ddp", num_sanity_val_steps=0)
    batches += programs.training_loader().seen
    rows = [row for labels, _ in batches for row in labels]
    (validation,) = (loader for loader in programs.loaders.values() if loader is not programs.training_loader())
    found = {
        "epochs": [rows[16 * epoch : 16 * epoch + 16] for epoch in range(len(rows) // 16)],
        "validation": [row for labels, _ in validation.seen for row in labels],
        "weights": [tensor.tolist() for tensor in module.state_dict().values()],
    }
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _process(Path(sys.argv[1]), Path(sys.argv[2]))
