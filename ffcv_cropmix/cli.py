"""The command `ffcv-cropmix`, and `python -m ffcv_cropmix`: one name for all programs of the package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from .errors import run_program, usage_error
from .options import closest

COMMANDS = {
    "convert": ("convert", "write images to a .beton file"),
    "train": ("train", "train an image classifier, with CropMix or RandomResizedCrop"),
    "evaluate": ("evaluate", "accuracy, calibration and robustness, beside the paper's numbers"),
    "verify": ("verify", "check whether a .beton file is whole"),
    "visualize": ("visualize", "plot crops, their share of the mix, and the mix"),
    "compare": ("training.compare", "training runs in one figure and one table"),
    "extract": ("extract", "write the images of a .beton file as image files"),
}
"""The module of each command, and what it does. A module has `main(arguments, prog)`."""


def usage(prog: str) -> str:
    """Describe the commands, and the programs that only a clone of the repository has."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {prog} {name:{width}}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "CropMix for FFCV: several crops of an image, mixed in one compiled decoder",
            "",
            *lines,
            "",
            "In a clone of the repository:",
            "  python write_dataset.py, python train_imagenet.py   the same as convert and train",
            "  python examples/quickstart.py                       from a folder of images to batches",
            "  examples/contrastive/, examples/mae/                MoCo v2, masked autoencoder: README.md there",
            "  make demo, make test                                two small trainings; all tests",
            "  make examples, make bench                           examples at toy size; speed against others",
            "",
            f"{prog} COMMAND --help lists the options of a command.",
        ]
    )


def main() -> None:
    """Run the command that the command line names."""
    prog = "ffcv-cropmix" if sys.argv[0].endswith("ffcv-cropmix") else "python -m ffcv_cropmix"
    name, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in ("-h", "--help"):
        print(usage(prog))
        return
    if name not in COMMANDS:
        usage_error(f"there is no command {name}{closest(name, COMMANDS)}; commands: {', '.join(COMMANDS)}")
    run_program(partial(_run, COMMANDS[name][0], arguments, f"{prog} {name}"))


def _run(module: str, arguments: Sequence[str], prog: str) -> None:
    import_module(f".{module}", __package__).main(arguments, prog=prog)


if __name__ == "__main__":
    main()
