"""Is a .beton file whole? python -m ffcv_cropmix.verify FILE [--full]

Checks header, tables and pointers, and compares them with the sidecar that write_dataset.py leaves; with --full decodes
every image and compares its bytes with their checksum. Exit status 0 if all is well, 1 if not.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field

from .errors import DataError, Parser, run_program, wrong_options

_SHOWN = 20  # damaged samples, of the summary


@dataclass(kw_only=True)
class Verification:
    """What is known of a file."""

    file: str
    samples: int
    fields: list[str]
    classes: int | None
    """Of the sidecar; None without one"""
    checksums: bool
    """Whether there is a sidecar with checksums to compare with"""
    decoded: int = 0
    """Images that were decoded"""
    damaged: list[dict[str, object]] = field(default_factory=list)
    """index, label and cause of each damaged sample"""

    def summary(self) -> str:
        """At most a screenful."""
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
        full: decode every image as well, and compare checksums where the sidecar has them.
        num_workers: threads; below 1: as many as the process may use cores.
        batch_size: images at a time.

    Raises:
        DataError: the file's tables are damaged, or it cannot be read; see `check_beton`.
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


def main() -> None:
    """The command line."""
    parser = Parser(prog="python -m ffcv_cropmix.verify", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("file", help="the .beton file")
    parser.add_argument("--full", action="store_true", help="decode every image, compare checksums")
    parser.add_argument("--num_workers", type=int, default=-1, help="threads; default: all cores")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
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
