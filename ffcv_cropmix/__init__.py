"""CropMix for FFCV: several crops of distinct scales of one image, mixed into one training input.

Names are imported on first use (PEP 562): importing the package is quick, and what does not need FFCV
(`cropmix`, `sample_plan`, `transforms.CropMix`) works without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; the same names as in _MODULE_OF
    from .data.check import check_beton as check_beton
    from .decoders import CenterCropRGBImageDecoder as CenterCropRGBImageDecoder
    from .decoders import CropMixRGBImageDecoder as CropMixRGBImageDecoder
    from .fields import DCTImageField as DCTImageField
    from .functional import cropmix as cropmix
    from .loader import Loader as Loader
    from .plan import MixPlan as MixPlan
    from .plan import sample_plan as sample_plan
    from .views import MultiViewRGBImageDecoder as MultiViewRGBImageDecoder
    from .views import SelectView as SelectView
    from .views import ToTorchViews as ToTorchViews
    from .views import ViewSpec as ViewSpec

__version__ = "0.1.0"

_MODULE_OF = {
    "CenterCropRGBImageDecoder": "decoders",
    "CropMixRGBImageDecoder": "decoders",
    "DCTImageField": "fields",
    "Loader": "loader",
    "MixPlan": "plan",
    "MultiViewRGBImageDecoder": "views",
    "SelectView": "views",
    "ToTorchViews": "views",
    "ViewSpec": "views",
    "check_beton": "data.check",
    "cropmix": "functional",
    "sample_plan": "plan",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
