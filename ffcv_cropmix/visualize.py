"""What CropMix does to an image, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Rectangle

from .functional import cropmix
from .plan import MixPlan, sample_plan

_COLORS = ("tab:orange", "tab:cyan", "tab:pink", "tab:olive", "tab:red", "tab:blue", "tab:green", "tab:purple")


def view_weights(plan: MixPlan, output_size: tuple[int, int]) -> np.ndarray:
    """Share of each view in the mixed image, float64 (views,), sum 1: weight under mixup, visible area under cutmix."""
    shares = np.zeros((*output_size, len(plan.crops)))
    shares[:, :, 0] = 1
    for step in range(len(plan.crops) - 1):
        view = np.zeros_like(shares)
        view[:, :, step + 1] = 1
        if plan.operation == "mixup":
            shares = plan.lams[step] * shares + (1 - plan.lams[step]) * view
            continue
        row0, col0, row1, col1 = plan.boxes[step]
        below, above = (shares, view) if plan.paste_next[step] else (view, shares)
        shares = below.copy()
        shares[row0:row1, col0:col1] = above[row0:row1, col0:col1]
    return shares.mean((0, 1))


def contact_sheet(
    image: np.ndarray, plans: Sequence[MixPlan], output_size: tuple[int, int] = (224, 224), draws: int = 8
) -> Figure:
    """Draw how plans mix an image, and draws of RandomResizedCrop and CropMix to compare.

    Args:
        image: uint8 (height, width, 3).
        plans: a row each: the crops on the image, each view with its share, the mix. At most 5 views.
        output_size: (height, width) of views and mixes, px.
        draws: of RandomResizedCrop and of CropMix, a row each.
    """
    figure = plt.figure(figsize=(1.6 * draws, 2.1 * (len(plans) + 2)), layout="constrained")
    grid = figure.add_gridspec(len(plans) + 2, draws)

    def show(place: SubplotSpec, picture: np.ndarray, title: str = "") -> Axes:
        axes = figure.add_subplot(place)
        axes.imshow(picture)
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    for row, plan in enumerate(plans):
        axes = show(grid[row, :2], image, f"{plan.operation}: {len(plan.crops)} crops")
        shares = view_weights(plan, output_size)
        for number, (top, left, height, width) in enumerate(plan.crops):
            color = _COLORS[number]
            axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=color, linewidth=2))
            view = cropmix(image, MixPlan(crops=[plan.crops[number]]), output_size)
            panel = show(grid[row, 2 + number], view, f"{100 * shares[number]:.0f} %")
            for spine in panel.spines.values():
                spine.set(edgecolor=color, linewidth=2)
        show(grid[row, 2 + len(plan.crops)], cropmix(image, plan, output_size), "the mix")
    compared: dict[str, dict[str, Any]] = {
        "RandomResizedCrop": {"number": 1, "scale": 0.08},
        "CropMix": {"inter_aug": True},
    }
    for row, (name, options) in enumerate(compared.items(), start=len(plans)):
        for index in range(draws):
            plan = sample_plan(*image.shape[:2], output_size=output_size, index=index, **options)
            show(grid[row, index], cropmix(image, plan, output_size), name if index == 0 else "")
    return figure
