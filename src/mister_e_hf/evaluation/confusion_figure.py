"""A picture of what is taken for what."""

from collections.abc import Sequence

import numpy as np

from ..base.plain_text import for_plot


def confusion_figure(confusion: np.ndarray, labels: Sequence[str]):
    r"""
    Draw a confusion matrix.

    Args:
        confusion (`(C, C)`): numbers of turns, true class by row, predicted class by column.
        labels: C names.

    Returns:
        a `matplotlib.figure.Figure`: a cell is as dark as its share of the turns of its row, and says their number.
    """
    from matplotlib.figure import Figure

    confusion = np.asarray(confusion)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 2.2 + 0.55 * len(labels)
    figure = Figure(figsize=(side, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for row, column in np.ndindex(*confusion.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{confusion[row, column]}", ha="center", va="center", fontsize=8, color=colour)
    labels = [for_plot(label) for label in labels]
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure
