"""benchmarks/gpu.py, tiny, on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu


def test_both_loops_and_their_resident_batches(tmp_path: Path, monkeypatch, capsys, signals: None) -> None:
    out = tmp_path / "gpu.json"
    options = ["--device=cpu", "--arch", "resnet18", "--side", "32", "--batch_size=4", "--images=8", "--num_workers=1"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options, "--precision=fp32", f"--json={out}"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpu.main()
    results = json.loads(out.read_text())["results"]
    assert [line["loop"] for line in results] == ["trainer", "ffcv-imagenet"]
    for line in results:
        assert line["images_per_second"] > 0 and line["resident"] > 0
        assert 0 <= line["waiting"] <= 100
    printed = capsys.readouterr().out
    assert all(f"{line['images_per_second']:,.0f}" in printed for line in results)


def test_without_a_gpu_it_says_what_it_would_do(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    gpu.main()
    assert capsys.readouterr().out == (
        "benchmarks/gpu.py: no CUDA. Would measure images/s of: trainer; ffcv-imagenet\n"
    )


def test_resident_batches_are_the_first_one(betons) -> None:
    from ffcv.transforms import ToTensor

    from ffcv_cropmix import CenterCropRGBImageDecoder

    decoder = CenterCropRGBImageDecoder((8, 8))
    loader = gpu.ResidentLoader(betons["raw"], 4, 1, pipelines={"image": [decoder, ToTensor()], "label": None})
    batches = [batch for (batch,) in loader]
    assert len(batches) == len(loader) == 9
    assert all(batch is batches[0] for batch in batches)
