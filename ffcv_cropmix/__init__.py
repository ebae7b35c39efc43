"""CropMix for FFCV: several crops of distinct scales of one image, mixed into one training input.

Names are imported on first use (PEP 562): importing the package is quick, and what does not need FFCV
(`cropmix`, `sample_plan`, `transforms.CropMix`) works without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.check import check_beton
    from .fields import DCTImageField
    from .functional import cropmix
    from .loader import Loader
    from .operations import (
        CenterCropRGBImageDecoder,
        CropMixRGBImageDecoder,
        MultiViewRGBImageDecoder,
        SelectView,
        ToTorchViews,
        ViewSpec,
    )
    from .plan import MixPlan, sample_plan

__version__ = "0.1.0"

__all__ = [
    "CenterCropRGBImageDecoder",
    "CropMixRGBImageDecoder",
    "DCTImageField",
    "Loader",
    "MixPlan",
    "MultiViewRGBImageDecoder",
    "SelectView",
    "ToTorchViews",
    "ViewSpec",
    "check_beton",
    "cropmix",
    "sample_plan",
]

_MODULE_OF = {
    "CenterCropRGBImageDecoder": "operations",
    "CropMixRGBImageDecoder": "operations",
    "DCTImageField": "fields",
    "Loader": "loader",
    "MixPlan": "plan",
    "MultiViewRGBImageDecoder": "operations",
    "SelectView": "operations",
    "ToTorchViews": "operations",
    "ViewSpec": "operations",
    "check_beton": "data.check",
    "cropmix": "functional",
    "sample_plan": "plan",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
