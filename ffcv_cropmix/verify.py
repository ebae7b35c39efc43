"""Check whether a .beton file is whole.

Checks header, tables and pointers and compares them with the sidecar file FILE.beton.json, if there is one. With
--full, decodes every image and compares its checksum too. The exit status is 0 if the file is sound and 1 if it is not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from .errors import DataError, run_program, wrong_options
from .options import option, parse_options

_SHOWN = 20  # damaged samples in the summary


@dataclass(kw_only=True)
class Verification:
    """The result of `verify`."""

    file: str
    samples: int
    fields: list[str]
    classes: int | None
    """Number of classes in the sidecar; None without a sidecar"""
    checksums: bool
    """Whether the sidecar has checksums to compare with"""
    decoded: int = 0
    """Number of images decoded"""
    damaged: list[dict[str, object]] = field(default_factory=list)
    """index, label and cause of each damaged sample"""

    def summary(self) -> str:
        """Describe the result in at most a screenful of text."""
        checked = "compared with the sidecar's" if self.checksums else "no checksums to compare with"
        lines = [
            f"{self.file}: {self.samples:,} samples of {', '.join(self.fields)}"
            + (f", {self.classes:,} classes" if self.classes is not None else ""),
            f"header, tables and pointers are sound; {checked}",
        ]
        if self.decoded:
            lines.append(f"{self.decoded:,} images decoded, {len(self.damaged):,} samples damaged")
        for sample in self.damaged[:_SHOWN]:
            label = "" if sample["label"] is None else f", of class {sample['label']}"
            lines.append(f"  sample {sample['index']}{label}: {sample['cause']}")
        if len(self.damaged) > _SHOWN:
            lines.append(f"  and {len(self.damaged) - _SHOWN:,} more: --json lists all")
        return "\n".join(lines)


def verify(path: str, *, full: bool = False, num_workers: int = -1, batch_size: int = 64) -> Verification:
    """Check a .beton file.

    Args:
        path: the file.
        full: also decode every image, and compare checksums if the sidecar has them.
        num_workers: threads; below 1: one per core.
        batch_size: images decoded at a time.

    Raises:
        DataError: the tables are damaged or the file cannot be read; see `check_beton`.

    Example:
        >>> print(verify("train.beton").summary())
        train.beton: 2 samples of image, label, 2 classes
        header, tables and pointers are sound; compared with the sidecar's
    """
    from .data.check import check_beton

    beton = check_beton(path)
    digests = beton.sidecar.digests() if beton.sidecar else None
    result = Verification(
        file=path,
        samples=len(beton.metadata),
        fields=list(beton.fields),
        classes=len(beton.sidecar.classes) if beton.sidecar else None,
        checksums=digests is not None,
    )
    if not full:
        return result

    from .decoders import CenterCropRGBImageDecoder
    from .loader import Loader
    from .progress import progress

    for name in beton.images():
        pipelines = {
            other: [CenterCropRGBImageDecoder((1, 1), ratio=1.0, on_error="zero")] if other == name else None
            for other in beton.fields
        }
        loader = Loader(path, batch_size, num_workers, pipelines=pipelines, drop_last=False, checksums=result.checksums)
        for (images,) in progress(loader, len(loader), f"{path}, {name}"):
            result.decoded += len(images)
        result.damaged += [
            {"index": failure.index, "label": failure.label, "cause": failure.cause} for failure in loader.report()
        ]
    return result


@dataclass(kw_only=True)
class Options:
    """The command line of `ffcv-cropmix verify`."""

    file: str = option(positional=True, metavar="FILE.beton")
    """The .beton file"""
    full: bool = False
    """Decode every image and compare its checksum"""
    num_workers: int = -1
    """Threads; -1: one per core"""
    json: bool = False
    """Print the result as JSON"""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m ffcv_cropmix.verify") -> None:
    """Run the command line (default: `sys.argv[1:]`)."""
    options = parse_options(Options, arguments, prog=prog, description=__doc__ or "")
    try:
        with wrong_options():
            result = verify(options.file, full=options.full, num_workers=options.num_workers)
    except DataError as error:
        if not options.json:
            raise
        print(json.dumps({"file": options.file, "error": str(error)}))
        sys.exit(1)
    print(json.dumps(asdict(result)) if options.json else result.summary())
    if result.damaged:
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)
