"""Plot of a confusion matrix."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..base.plain_text import for_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_figure(confusion: ArrayLike, labels: Sequence[str]) -> "Figure":
    r"""
    Plot a confusion matrix.

    Args:
        confusion (`(C, C)`): numbers of turns, true class by row, predicted class by column.
        labels: C names.

    Returns:
        a `matplotlib.figure.Figure`. The shade of a cell is its share of the turns of its row; the number in it counts
        the turns.
    """
    from ..base.fonts import PlotFigure

    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.2 + 0.55 * len(labels)
    figure = PlotFigure(figsize=(side, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=8, color=colour)
    labels = [for_plot(label) for label in labels]
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure
